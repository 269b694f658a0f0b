/*
 * The first instructions: what a multiboot loader promises is little (32-bit protected
 * mode, paging off, flat segments in a GDT that we must not rely on, no stack).
 */
#include "layout.h"

	.section .multiboot, "a"
	.p2align 2
	.long 0x1badb002                /* magic, flags 0, checksum: the ELF says the rest */
	.long 0
	.long -0x1badb002

	.text
	.globl _start
	.type _start, @function
_start:
	cli
	cld
	mov $boot_stack_top, %esp
	lgdt gdt_pointer
	ljmp $SEL_KERNEL_CODE, $1f
1:	mov $SEL_KERNEL_DATA, %ecx
	mov %ecx, %ds
	mov %ecx, %es
	mov %ecx, %ss
	mov %ecx, %fs
	mov %ecx, %gs
	push $0                         /* flags in a known state */
	popf
	call kernel_main
1:	cli
	hlt
	jmp 1b
	.size _start, . - _start

	.data
	.p2align 3
	.globl gdt
gdt:
	.quad 0
	.quad 0x00cf9a000000ffff        /* kernel code, flat */
	.quad 0x00cf92000000ffff        /* kernel data, flat */
	.quad 0x00cffa000000ffff        /* user code, flat */
	.quad 0x00cff2000000ffff        /* user data, flat */
	.quad 0                         /* TSS, filled in at run time */
	.quad 0                         /* LDT, filled in at run time */
	.quad 0                         /* window, filled in at run time */
	.quad 0x00cf9a000000ffff        /* other code */
	.quad 0x00cf12000000ffff        /* absent */
	.quad 0, 0                      /* unused */
	.quad 0x00cf90000000ffff        /* read-only */
	.quad 0x00cf98000000ffff        /* execute-only */
	.globl gdt_end
gdt_end:

	.globl gdt_pointer
	.p2align 2
	.word 0
gdt_pointer:
	.word gdt_end - gdt - 1
	.long gdt

	.bss
	.p2align 4
	.space 16384
	.globl boot_stack_top
boot_stack_top:

	.section .note.GNU-stack, "", @progbits
