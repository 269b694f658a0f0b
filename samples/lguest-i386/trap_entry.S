/* Traps in C and back; the return has to set the shared interrupt flag by itself. */
#include "lguest.h"

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
	/*
	 * IRET at privilege 1 leaves the real IF alone, so the frame's goes to the shared word.
	 * From then until the IRET is done the host must not interrupt: it would find a stack
	 * that is half unwound. DS may be the user's already, SS is ours.
	 */
	push %eax
	mov 12(%esp), %eax
	and $0x200, %eax
	.globl noirq_start, noirq_end
noirq_start:
	mov %eax, %ss:lguest_data + IRQ_ENABLED
	pop %eax
	iret
noirq_end:
	.size trap_common, . - trap_common

/* void user_enter(ip, sp, irq_enabled): runs user code until it exits or faults. */
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
	mov 28(%esp), %ebx
	mov %ebx, lguest_data + IRQ_ENABLED
	push $SEL_USER_DATA
	push %ecx
	push $0x202
	push $SEL_USER_CODE
	push %edx
	mov $SEL_USER_DATA, %eax
	mov %eax, %ds
	mov %eax, %es
	iret
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

/* Programs for user mode: data here, copied to a page of their own. */
	.macro exit
	mov $SYS_EXIT, %eax
	int $0x80
	.endm

	.section .rodata
	.globl user_code, user_code_end, user_segments, user_call, user_read, user_privileged, user_spin
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
	mov KERNEL_BASE + 0x100000, %eax
user_privileged:
	cli
user_spin:                              /* until an interrupt changes a word on the stack */
	cmpl $0, USER_STACK_TOP - 64
	je user_spin
	exit
user_code_end:

	.section .note.GNU-stack, "", @progbits
