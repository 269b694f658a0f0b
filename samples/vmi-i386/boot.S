/*
 * The entry, by multiboot: native, at privilege 0, paging off. The kernel turns paging on, finds
 * the ROM and calls it from there on. What a native kernel would do by one instruction is a site
 * here, five bytes or more, which the ROM's relocations change in place.
 */
#include "vmi.h"

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
	mov $stack_top, %esp
	mov %ebx, multiboot_info
	lgdt gdt_pointer
	ljmp $SEL_KERNEL_CODE, $1f
1:	mov $SEL_KERNEL_DATA, %ecx
	mov %ecx, %ds
	mov %ecx, %es
	mov %ecx, %ss
	mov %ecx, %fs
	mov %ecx, %gs
	push $0
	popf
	call kernel_main
1:	jmp 1b
	.size _start, . - _start

/* The sites: padded to the length of a CALL or JMP. */
	.macro site name, length, code
	.p2align 4
	.globl site_\name
site_\name:
	\code
	.fill \length - (. - site_\name), 1, 0x90
	.endm

	.globl irq_disable, irq_enable, irq_save, irq_restore, io_delay, kernel_iret, kernel_sysexit
irq_disable:
	site irq_disable, 5, cli
	ret
irq_enable:
	site irq_enable, 5, sti
	ret
irq_save:                               /* flags with IF, as PUSHF; POP EAX */
	site irq_save, 5, "pushf; pop %eax"
	ret
irq_restore:                            /* regparm: EAX */
	mov 4(%esp), %eax
	site irq_restore, 5, "push %eax; popf"
	ret
io_delay:
	site io_delay, 5, "out %al, $0x80"
	ret
kernel_iret:
	site iret, 7, iret
kernel_sysexit:                         /* EDX eip, ECX esp */
	site sysexit, 7, "sti; sysexit"

/* u64 vmi_call(entry, a, b, c, d, e): regparm(3), and everything it may destroy is destroyed. */
	.globl vmi_call
	.type vmi_call, @function
vmi_call:
	push %ebx
	push %esi
	push %edi
	push %ebp
	mov %esp, %ebp
	push 40(%ebp)                   /* e */
	push 36(%ebp)                   /* d */
	mov 24(%ebp), %eax
	mov 28(%ebp), %edx
	mov 32(%ebp), %ecx
	call *20(%ebp)
	mov %ebp, %esp
	pop %ebp
	pop %edi
	pop %esi
	pop %ebx
	ret
	.size vmi_call, . - vmi_call

/* void vmi_registers(entry, u32 r[7]): eax ecx edx ebx esi edi flags, in and out. */
	.globl vmi_registers
	.type vmi_registers, @function
vmi_registers:
	push %ebx
	push %esi
	push %edi
	push %ebp
	mov 24(%esp), %ebp
	push 20(%esp)                   /* the entry */
	push 24(%ebp)
	popf
	mov (%ebp), %eax
	mov 4(%ebp), %ecx
	mov 8(%ebp), %edx
	mov 12(%ebp), %ebx
	mov 16(%ebp), %esi
	mov 20(%ebp), %edi
	push %ebp
	call *4(%esp)
	pop %ebp
	mov %eax, (%ebp)
	mov %ecx, 4(%ebp)
	mov %edx, 8(%ebp)
	mov %ebx, 12(%ebp)
	mov %esi, 16(%ebp)
	mov %edi, 20(%ebp)
	pushf
	pop 24(%ebp)
	cld
	add $4, %esp
	pop %ebp
	pop %edi
	pop %esi
	pop %ebx
	ret
	.size vmi_registers, . - vmi_registers

	.data
	.p2align 12
	.globl gdt
gdt:
	.quad 0
	.quad 0x00cf9a000000ffff        /* kernel code, flat */
	.quad 0x00cf92000000ffff        /* kernel data, flat */
	.quad 0x00cffa000000ffff        /* user code, flat */
	.quad 0x00cff2000000ffff        /* user data, flat */
	.quad 0, 0, 0                   /* TSS, LDT, free */
	.globl gdt_pointer
	.p2align 2
	.word 0
gdt_pointer:
	.word GDT_ENTRIES * 8 - 1
	.long gdt
	.globl multiboot_info
multiboot_info:
	.long 0

	.bss
	.p2align 12
	.space 16384
stack_top:

	.section .note.GNU-stack, "", @progbits
