/*
 * Sensitive instructions where there is no room for anything longer.
 *
 * CLI, STI, PUSHF, POPF, HLT and IRET are one byte, a call is five. A rewriter has to
 * find the room among the neighbours, and each function here takes one way of doing so
 * away: the next instruction is a branch target, or leaves the function, or is relative
 * to its own address, or the flags are alive, or the bytes are data after all.
 */
#ifdef __x86_64__
#define ACC %rax
#define CNT %rcx
#define DAT %rdx
#define WORD .quad
#define HERE(name) name(%rip)
#else
#define ACC %eax
#define CNT %ecx
#define DAT %edx
#define WORD .long
#define HERE(name) name
#endif

	.macro function name
	.globl \name
	.type \name, @function
	.p2align 4
\name:
	.endm
	.macro end name
	.size \name, . - \name
	.endm

	.text

/* The head of a loop and the byte before its branch, both branch targets' neighbours. */
function tight_loop
	xor %eax, %eax
	mov $1000, %ecx
1:	cli
	inc %eax
	sti
	dec %ecx
	jnz 1b
	cli
	ret
end tight_loop

/* Four bytes in all: as compilers emit irq_save. */
function tight_save
	pushf
	pop ACC
	cli
	ret
end tight_save

function tight_restore
#ifdef __x86_64__
	push tight_saved(%rip)
#else
	push tight_saved
#endif
	popf
	ret
end tight_restore

/* Two bytes, then the alignment gap. */
function tight_off
	cli
	ret
end tight_off

function tight_on
	sti
	ret
end tight_on

function tight_flags
	pushf
	pop ACC
	ret
end tight_flags

/* Functions back to back with no gap at all. */
function tight_packed
	call packed_on
	call packed_flags
	push ACC
	call packed_off
	call packed_flags
	pop DAT
	shr $9, DAT
	and $1, DAT
	shr $8, ACC
	and $2, ACC
	or DAT, ACC
	ret
end tight_packed
	.type packed_on, @function
packed_on:
	sti
	ret
end packed_on
	.type packed_off, @function
packed_off:
	cli
	ret
end packed_off
	.type packed_flags, @function
packed_flags:
	pushf
	pop ACC
	ret
end packed_flags

/* A jump table: cases of two or three bytes, reached by address only. */
function tight_switch
#ifdef __x86_64__
	lea switch_table(%rip), %rax
	jmp *(%rax, %rdi, 8)
#else
	mov 4(%esp), %eax
	jmp *switch_table(, %eax, 4)
#endif
case_off:
	cli
	jmp 1f
case_on:
	sti
	jmp 1f
case_nothing:
1:	pushf
	pop ACC
	cli
	shr $9, ACC
	and $1, ACC
	ret
end tight_switch

/* The flags of the comparison are alive across the one-byte instructions. */
function tight_compare
	mov $5, %eax
	cmp $5, %eax
	sti
	je 1f
	xor %eax, %eax
1:	cmp $6, %eax
	cli
	jb 2f
	xor %eax, %eax
2:	ret
end tight_compare

/* The return address of a call is the one-byte instruction. */
function tight_after_call
	sti
	call packed_flags
	cli
	push ACC
	call packed_flags
	pop DAT
	xor DAT, ACC
	ret
end tight_after_call

/* A branch into the middle of what would make room: between PUSHF and POP. */
function tight_branch_into
	sti
#ifdef __x86_64__
	test %rdi, %rdi
#else
	cmpl $0, 4(%esp)
#endif
	push $0
	jnz 1f
	pop ACC
	pushf
1:	pop ACC
	cli
	and $0x200, %eax
	ret
end tight_branch_into

/* A neighbour that asks for its own address. */
function tight_own_address
	cli
	call 1f
1:	pop ACC
	sti
	cli
#ifdef __x86_64__
	lea 1b(%rip), DAT
#else
	mov $1b, DAT
#endif
	sub DAT, ACC
	ret
end tight_own_address

/* Neighbours that are relative to their own address on x86-64. */
function tight_relative
	cli
	mov HERE(tight_constant), %eax
	sti
	add HERE(tight_constant), %eax
	cli
	ret
end tight_relative

/* Neighbours that only have a one-byte displacement. */
function tight_counted
	xor %eax, %eax
	mov $3, %ecx
1:	sti
	add $2, %eax
	cli
	loop 1b
	jecxz 2f
	cli
	xor %eax, %eax
2:	pushf
	pop DAT
	and $0x200, %edx
	or %edx, %eax
	ret
end tight_counted

/* The bytes of CLI, STI, HLT, POPF inside an operand are not instructions. */
function tight_immediate
	mov $0x1dfbf4fa, %eax
	cli
	xor $0x80000001, %eax
	ret
end tight_immediate

/* Data in the middle of code, stepped over: LIDT, WRMSR, IRET and HLT to a careless reader. */
function tight_status
	xor %eax, %eax
	cli
	jmp 1f
	.globl tight_table
	.type tight_table, @object
	.size tight_table, 16
tight_table:
	.byte 0xfa, 0xfb, 0xf4, 0x9c, 0x9d, 0xcf, 0x0f, 0x30
	.byte 0x0f, 0x01, 0x1d, 0xec, 0xef, 0x0f, 0xa2, 0xc3
1:	smsw %ax
	and $1, %eax
	ret
end tight_status

	.section .rodata
	.p2align 3
switch_table:
	WORD case_off, case_on, case_nothing
tight_constant:
	.long 0x1234

	.data
	.p2align 3
	.globl tight_saved
tight_saved:
	WORD 0

	.section .note.GNU-stack, "", @progbits
