/*
 * Traps and events from Xen. The frame is the hardware's with RCX and R11 below it, since Xen
 * returns to us by SYSRET; the way back is a hypercall that pops one frame more.
 */
#include "xen.h"

	.text
	.set vector, 0
	.rept 0x81
	.p2align 4
	pop %rcx
	pop %r11
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
	push %rax
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
	and $-16, %rsp
	call trap
	mov %rax, %rsp                  /* the frame to go back through */
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
	add $16, %rsp                   /* vector, error code */
	push $0                         /* flags: not inside SYSCALL */
	jmp hypercall_page + HYPERVISOR_iret * 32
	.size trap_common, . - trap_common

	.globl event_entry
	.type event_entry, @function
event_entry:                            /* something is pending in shared_info */
	pop %rcx
	pop %r11
	push $0
	push $0x100
	jmp trap_common
	.size event_entry, . - event_entry

	.globl failsafe_entry
	.type failsafe_entry, @function
failsafe_entry:                         /* a segment register could not be loaded */
	pop %rcx
	pop %r11
	add $32, %rsp                   /* DS, ES, FS, GS */
	push $0
	push $0x101
	jmp trap_common
	.size failsafe_entry, . - failsafe_entry

	.globl syscall_entry
	.type syscall_entry, @function
syscall_entry:                          /* SYSCALL in user mode */
	pop %rcx
	pop %r11
	push $0
	push $0x102
	jmp trap_common
	.size syscall_entry, . - syscall_entry

/* void user_enter(ip, sp): to user mode, which has its own page tables. */
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
	push $FLAT_USER_STACK
	push %rsi
	push $0x202
	push $FLAT_USER_CODE
	push %rdi
	push $0
	jmp hypercall_page + HYPERVISOR_iret * 32
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

	.section .rodata
	.globl user_code, user_syscall, user_gate, user_privileged, user_code_end
user_code:
user_syscall:
	mov $0x51, %ebx
	syscall
user_gate:
	mov $0x52, %ebx
	int $0x80
user_privileged:
	cli
user_code_end:

	.section .note.GNU-stack, "", @progbits
