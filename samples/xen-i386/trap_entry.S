/*
 * Traps and events from Xen: at 32 bits the frame is the hardware's, apart from the saved
 * event mask above CS. The way back is a hypercall, since IRET at privilege 1 leaves IF alone.
 */
#include "xen.h"

	.text
	.set vector, 0
	.rept 0x81
	.p2align 4
	.if vector == 8 || (vector >= 10 && vector <= 14) || vector == 17
	/* Xen has pushed an error code */
	.else
	push $0
	.endif
	push $vector
	jmp trap_common
	.set vector, vector + 1
	.endr
	.globl trap_entries
	.set trap_entries, trap_common - 0x81 * 16

	.p2align 4
	.type trap_common, @function
trap_common:
	pusha
	push %ds
	push %es
	mov $FLAT_KERNEL_STACK, %eax
	mov %eax, %ds
	mov %eax, %es
	cld
	push %esp
	call trap
	mov %eax, %esp                  /* the frame to go back through */
	pop %es
	pop %ds
	popa
	add $8, %esp                    /* vector, error code */
	jmp hypercall_page + HYPERVISOR_iret * 32
	.size trap_common, . - trap_common

	.globl event_entry
	.type event_entry, @function
event_entry:                            /* something is pending in shared_info */
	push $0
	push $0x100
	jmp trap_common
	.size event_entry, . - event_entry

	.globl failsafe_entry
	.type failsafe_entry, @function
failsafe_entry:                         /* a segment register could not be loaded */
	add $16, %esp                   /* DS, ES, FS, GS */
	push $0
	push $0x101
	jmp trap_common
	.size failsafe_entry, . - failsafe_entry

/* void user_enter(ip, sp): the address space stays, the privilege becomes 3. */
	.globl user_enter
	.type user_enter, @function
user_enter:
	push %ebp
	push %ebx
	push %esi
	push %edi
	mov 20(%esp), %edx
	mov 24(%esp), %ecx
	movl $user_return, trap_resume
	mov %esp, trap_resume + 4
	mov $FLAT_USER_STACK, %eax
	mov %eax, %ds
	mov %eax, %es
	push $FLAT_USER_STACK
	push %ecx
	push $0x202
	push $FLAT_USER_CODE
	push %edx
	jmp hypercall_page + HYPERVISOR_iret * 32
user_return:
	mov $FLAT_KERNEL_STACK, %ecx
	mov %ecx, %ds
	mov %ecx, %es
	movl $0, trap_resume
	pop %edi
	pop %esi
	pop %ebx
	pop %ebp
	ret
	.size user_enter, . - user_enter

	.section .rodata
	.globl user_code, user_gate, user_read, user_privileged, user_code_end
user_code:
user_gate:
	mov %cs, %ebx
	int $0x80
user_read:                              /* of the kernel's memory */
	mov KERNEL_BASE + 0x100000, %eax
user_privileged:
	cli
user_code_end:

	.section .note.GNU-stack, "", @progbits
