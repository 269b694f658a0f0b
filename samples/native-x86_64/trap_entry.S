/* From the interrupt descriptor table to trap() in C, and back by IRETQ; SYSCALL and SYSRET. */
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
	testb $3, 24(%rsp)              /* CS: from user mode the user's GS is in force */
	jz 1f
	swapgs
1:	push %rax
	push %rcx
	push %rdx
	push %rbx
	push %rbp
	push %rsi
	push %rdi
	push %r8
	push %r9
	push %r10
	push %r11
	push %r12
	push %r13
	push %r14
	push %r15
	cld
	mov %rsp, %rdi
	mov %rsp, %rbx
	and $-16, %rsp                  /* as C expects it */
	call trap
	mov %rbx, %rsp
	pop %r15
	pop %r14
	pop %r13
	pop %r12
	pop %r11
	pop %r10
	pop %r9
	pop %r8
	pop %rdi
	pop %rsi
	pop %rbp
	pop %rbx
	pop %rdx
	pop %rcx
	pop %rax
	testb $3, 24(%rsp)
	jz 1f
	swapgs
1:	add $16, %rsp                   /* vector, error code */
	iretq
	.size trap_common, . - trap_common

/*
 * void user_enter(ip, sp, flags, argument, code selector): runs user code until something
 * is recorded that does not return there; then trap() comes back behind the IRETQ.
 */
	.globl user_enter
	.type user_enter, @function
user_enter:
	push %rbx
	push %rbp
	push %r12
	push %r13
	push %r14
	push %r15
	movq $user_return, trap_resume(%rip)
	mov %rsp, trap_resume + 8(%rip)
	mov %rcx, %rax
	push $SEL_USER_DATA
	push %rsi
	push %rdx
	push %r8
	push %rdi
	cli
	swapgs
	iretq
user_return:
	movq $0, trap_resume(%rip)
	pop %r15
	pop %r14
	pop %r13
	pop %r12
	pop %rbp
	pop %rbx
	ret
	.size user_enter, . - user_enter

/* The same by a far return, which does not touch the flags. */
	.globl user_enter_lret
	.type user_enter_lret, @function
user_enter_lret:
	push %rbx
	push %rbp
	push %r12
	push %r13
	push %r14
	push %r15
	movq $user_return, trap_resume(%rip)
	mov %rsp, trap_resume + 8(%rip)
	push $SEL_USER_DATA
	push %rsi
	push $SEL_USER_CODE
	push %rdi
	swapgs
	lretq
	.size user_enter_lret, . - user_enter_lret

/* SYSCALL arrives here on the user's stack: RCX is its RIP, R11 its flags. */
	.globl syscall_entry
	.type syscall_entry, @function
syscall_entry:
	swapgs
	mov %rsp, %gs:8
	mov %gs:0, %rsp
	push %rax
	mov %rcx, syscall_seen(%rip)
	mov %r11, syscall_seen + 8(%rip)
	mov %cs, %eax
	mov %rax, syscall_seen + 16(%rip)
	mov %ss, %eax
	mov %rax, syscall_seen + 24(%rip)
	pushf
	popq syscall_seen + 32(%rip)
	pop %rax
	cmp $SYS_COMPAT, %eax
	je 1f
	lea (%rbx, %rdx), %rax
	mov %gs:8, %rsp
	swapgs
	sysretq
1:	mov %rbx, %rcx
	mov %gs:8, %rsp
	swapgs
	sysretl
	.size syscall_entry, . - syscall_entry

/* SYSENTER arrives here; RDX and RCX hold the user's RIP and RSP, by its own doing. */
	.globl sysenter_entry
	.type sysenter_entry, @function
sysenter_entry:
	swapgs
	mov %cs, %eax
	mov %rax, syscall_seen + 16(%rip)
	mov %ss, %eax
	mov %rax, syscall_seen + 24(%rip)
	pushf
	popq syscall_seen + 32(%rip)
	mov %rsp, syscall_seen + 40(%rip)
	swapgs
	sti
	cmp $SYSENTER_FROM_32, %ebx
	je 1f
	sysexitq
1:	sysexitl                        /* the same to 32-bit user code */
	.size sysenter_entry, . - sysenter_entry

	.bss
	.p2align 3
	.globl syscall_seen
syscall_seen:
	.space 48

	.section .note.GNU-stack, "", @progbits
