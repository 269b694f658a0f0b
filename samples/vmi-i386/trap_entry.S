/* Traps in C and back, user mode and its programs. */
#include "vmi.h"

	.text
	.set vector, 0
	.rept 0x81
	.p2align 4
	.if vector == 8 || (vector >= 10 && vector <= 14) || vector == 17
	/* the processor has pushed an error code */
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
	mov $SEL_KERNEL_DATA, %eax
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
	jmp kernel_iret
	.size trap_common, . - trap_common

/* void user_enter(ip, sp, flags): runs user code until it exits or faults. */
	.globl user_enter, user_sysexit
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
	mov 28(%esp), %ebx
	push $SEL_USER_DATA
	push %ecx
	push %ebx
	push $SEL_USER_CODE
	push %edx
	mov $SEL_USER_DATA, %eax
	mov %eax, %ds
	mov %eax, %es
	jmp kernel_iret
/* void user_sysexit(ip, sp) */
user_sysexit:
	push %ebp
	push %ebx
	push %esi
	push %edi
	mov 20(%esp), %edx
	mov 24(%esp), %ecx
	movl $user_return, trap_resume
	mov %esp, trap_resume + 4
	mov $SEL_USER_DATA, %eax
	mov %eax, %ds
	mov %eax, %es
	jmp kernel_sysexit
user_return:
	mov $SEL_KERNEL_DATA, %ecx
	mov %ecx, %ds
	mov %ecx, %es
	movl $0, trap_resume
	pop %edi
	pop %esi
	pop %ebx
	pop %ebp
	ret
	.size user_enter, . - user_enter

/* SYSENTER leads here: EBX is the result, ESP is the kernel's. */
	.globl sysenter_entry
sysenter_entry:
	mov $SEL_KERNEL_DATA, %eax
	mov %eax, %ds
	mov %eax, %es
	mov %ebx, user_result
	mov %cs, %eax
	mov %eax, sysenter_cs
	mov %esp, sysenter_esp
	mov trap_resume + 4, %esp
	jmp user_return

/* Programs for user mode: data here, copied to a page of their own. */
	.macro exit
	mov $SYS_EXIT, %eax
	int $0x80
	.endm

	.section .rodata
	.globl user_code, user_code_end, user_segments, user_call, user_read, user_privileged, user_spin
	.globl user_sysenter, user_port
user_code:
user_segments:
	mov %ss, %ebx
	shl $16, %ebx
	mov %cs, %bx
	exit
user_call:
	mov $SYS_ADD, %eax
	mov $40, %ebx
	mov $2, %ecx
	int $0x80
	mov %eax, %ebx
	exit
user_read:
	mov 0x100000, %eax
user_privileged:
	cli
user_port:
	mov $0x1230, %edx
	xor %eax, %eax
	in %dx, %al
	mov %eax, %ebx
	exit
user_sysenter:
	mov $0x51, %ebx
	sysenter
user_spin:                              /* until an interrupt changes a word on the stack */
	cmpl $0, USER_STACK_TOP - 64
	je user_spin
	exit
user_code_end:

	.section .note.GNU-stack, "", @progbits
