/* One entry per vector, all to interrupt(vector) in C and back. */
	.text
	.set vector, 0
	.rept 256
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
	.set trap_entries, trap_common - 256 * 16

	.p2align 4
	.type trap_common, @function
trap_common:
	push %rax
	push %rcx
	push %rdx
	push %rbx
	push %rsi
	push %rdi
	push %r8
	push %r9
	push %r10
	push %r11
	cld
	mov 80(%rsp), %rdi              /* the vector */
	mov 96(%rsp), %rsi              /* the instruction pointer */
	mov %rsp, %rbx
	and $-16, %rsp                  /* as C expects it */
	call interrupt
	mov %rbx, %rsp
	pop %r11
	pop %r10
	pop %r9
	pop %r8
	pop %rdi
	pop %rsi
	pop %rbx
	pop %rdx
	pop %rcx
	pop %rax
	add $16, %rsp                   /* vector, error code */
	iretq
	.size trap_common, . - trap_common

	.section .note.GNU-stack, "", @progbits
