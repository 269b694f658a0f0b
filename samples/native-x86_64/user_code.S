/*
 * Programs for user mode. They are data here (.rodata) and are copied to a page of
 * their own, so nobody takes them for kernel code; each ends in a trap.
 */
#include "layout.h"

	.macro program name
	.globl \name
\name:
	.endm
	.macro exit
	mov $SYS_EXIT, %eax
	int $0x80
	.endm

	.section .rodata
	.globl user_code, user_code_end
user_code:
program user_segments           /* CS and SS, as user mode sees them */
	mov %ss, %ebx
	shl $16, %ebx
	mov %cs, %bx
	exit
program user_call               /* a system call that returns */
	mov $SYS_ADD, %eax
	mov $40, %ebx
	mov $2, %ecx
	int $0x80
	mov %eax, %ebx
	exit
program user_spin               /* until an interrupt changes the word at RAX */
1:	cmpl $0, (%rax)
	je 1b
	pushf
	pop %rbx
	exit
program user_popf               /* neither IF nor IOPL may change, silently */
	push $0x3002
	popf
	pushf
	pop %rbx
	exit
program user_inspect            /* kernel segments are out of sight */
	mov $SEL_KERNEL_DATA, %ecx
	xor %ebx, %ebx
	lar %ecx, %eax
	setz %bl
	verw %cx
	setz %bh
	exit
program user_syscall            /* RAX = RBX + RDX */
	mov $SYS_ADD, %eax
	mov $40, %ebx
	mov $2, %edx
	stc
	syscall
program user_syscall_end
	mov %rax, %rbx
	exit
program user_to_compat          /* SYSRET to 32-bit code, which is this: */
	mov $SYS_COMPAT, %eax
	lea 1f(%rip), %rbx
	syscall
	.code32
1:	mov %cs, %ebx
	shl $16, %ebx
	inc %ebx                /* 43 in 32-bit code, a prefix in 64-bit code */
	exit
	.code64
program user_compat             /* entered in 32-bit user mode */
	.code32
	mov %ss, %ebx
	shl $16, %ebx
	mov %cs, %bx
	exit
	.code64
program user_compat_end
program user_sysenter           /* RDX, RCX: where SYSEXIT comes back to */
	lea 2f(%rip), %rdx
	mov %rsp, %rcx
	mov $0x51, %ebx
	sysenter
2:	add $1, %ebx
	exit
program user_sysenter32         /* the same in 32-bit code */
	.code32
	call 1f
1:	pop %edx
	add $(2f - 1b), %edx
	mov %esp, %ecx
	mov $SYSENTER_FROM_32, %ebx
	sysenter
2:	add $1, %ebx
	exit
	.code64
program user_breakpoint
	int3
program user_step               /* entered with TF set: one instruction, then #DB */
	nop
program user_step_end
	nop
program user_divide
	xor %ecx, %ecx
	div %ecx
program user_read               /* of memory that is not its own */
	mov (%rax), %eax
program user_gate               /* a gate that it may not use */
	int $0x30
program user_cli
	cli
program user_sti
	sti
program user_hlt
	hlt
program user_in
	in $0x21, %al
program user_out
	out %al, (%dx)
program user_cr0
	mov %cr0, %rax
program user_cr3
	mov %rax, %cr3
program user_cr8
	mov %cr8, %rax
program user_clts
	clts
program user_invlpg
	invlpg (%rax)
program user_rdmsr
	rdmsr
program user_swapgs
	swapgs
program user_lgdt
	lgdt (%rax)
program user_ltr
	ltr %ax
program user_wbinvd
	wbinvd
program user_sysret
	sysretq
user_code_end:

	.section .note.GNU-stack, "", @progbits
