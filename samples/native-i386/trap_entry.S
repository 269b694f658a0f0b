/* From the interrupt descriptor table to trap() in C, and back by IRET. */
#include "layout.h"

	.text
/* One entry per vector: it leaves an error code (or 0) and the vector on the stack. */
	.set vector, 0
	.rept 0x91
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
	.set trap_entries, trap_common - 0x91 * 16

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
	iret
	.size trap_common, . - trap_common

/*
 * int user_enter(ip, sp, flags, argument): runs user code until something is recorded
 * that does not return there; then trap() comes back behind the IRET.
 */
	.globl user_enter
	.type user_enter, @function
user_enter:
	push %ebp
	push %ebx
	push %esi
	push %edi
	mov 20(%esp), %edx
	mov 24(%esp), %ecx
	mov 28(%esp), %ebx
	mov 32(%esp), %eax
	movl $user_return, trap_resume
	mov %esp, trap_resume + 4
	mov $SEL_USER_DATA, %esi
	mov %esi, %ds
	mov %esi, %es
	push $SEL_USER_DATA
	push %ecx
	push %ebx
	push $SEL_USER_CODE
	push %edx
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

/* The same by a far return, which does not touch the flags. */
	.globl user_enter_lret
	.type user_enter_lret, @function
user_enter_lret:
	push %ebp
	push %ebx
	push %esi
	push %edi
	mov 20(%esp), %edx
	mov 24(%esp), %ecx
	movl $user_return, trap_resume
	mov %esp, trap_resume + 4
	push $SEL_USER_DATA
	push %ecx
	push $SEL_USER_CODE
	push %edx
	lret
	.size user_enter_lret, . - user_enter_lret

/* SYSENTER arrives here: flat kernel segments, interrupts off, no frame at all. */
	.globl sysenter_entry
	.type sysenter_entry, @function
sysenter_entry:
	mov %cs, %eax
	mov %eax, sysenter_seen
	mov %ss, %eax
	mov %eax, sysenter_seen + 4
	mov %esp, sysenter_seen + 8
	pushf
	popl sysenter_seen + 12
	sti                             /* in force after SYSEXIT, as Linux has it */
	sysexit                         /* EDX: user EIP, ECX: user ESP, both from the user */
	.size sysenter_entry, . - sysenter_entry

	.bss
	.p2align 2
	.globl sysenter_seen
sysenter_seen:
	.space 16

	.section .note.GNU-stack, "", @progbits
