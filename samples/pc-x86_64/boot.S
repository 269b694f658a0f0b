/*
 * From the 32-bit state in which a PVH loader leaves us (protected mode, paging off, flat
 * segments, no stack) to 64-bit code in the upper half. Four gigabytes are mapped to
 * themselves: the registers of the APICs lie at the end of them.
 */
#define KERNEL_BASE 0xffffffff80000000
#define PHYSICAL(name) (name - KERNEL_BASE)

	.section .note.pvh, "a", @note
	.p2align 2
	.long 4, 8, 18                  /* name size, description size, PHYS32_ENTRY */
	.asciz "Xen"
	.quad start32

	.section .boot, "awx"
	.code32
	.globl start32
	.type start32, @function
start32:
	cli
	cld
	lgdt boot_gdt_pointer
	mov $boot_stack_top, %esp
	mov $boot_directories, %edi
	mov $0x83, %eax                 /* 2 MiB page, writable, present */
1:	mov %eax, (%edi)
	movl $0, 4(%edi)
	add $8, %edi
	add $0x200000, %eax
	cmp $boot_directories + 4 * 4096, %edi
	jne 1b
	mov $boot_directories + 3, %eax
	mov $boot_pointers, %edi
2:	mov %eax, (%edi)
	add $8, %edi
	add $4096, %eax
	cmp $boot_pointers + 4 * 8, %edi
	jne 2b
	movl $boot_directories + 3, boot_pointers_high + 510 * 8
	movl $boot_pointers + 3, boot_top
	movl $boot_pointers_high + 3, boot_top + 511 * 8
	mov $boot_top, %eax
	mov %eax, %cr3
	mov %cr4, %eax
	or $0x20, %eax                  /* PAE */
	mov %eax, %cr4
	mov $0xc0000080, %ecx           /* EFER: long mode, as soon as paging is on */
	rdmsr
	or $0x100, %eax
	wrmsr
	mov %cr0, %eax
	or $0x80000001, %eax
	mov %eax, %cr0
	ljmp $8, $1f
	.code64
1:	mov high_entry(%rip), %rax
	jmp *%rax
	.size start32, . - start32

	.p2align 3
high_entry:
	.quad start64                   /* where to go on, in the upper half */
	.word 0, 0, 0
boot_gdt_pointer:
	.word 3 * 8 - 1
	.long PHYSICAL(gdt)
	.p2align 12
boot_top:
	.space 4096
boot_pointers:
	.space 4096
boot_pointers_high:
	.space 4096
boot_directories:
	.space 4 * 4096
	.space 512
boot_stack_top:

	.text
	.code64
	.type start64, @function
start64:
	mov $stack_top, %rsp
	lgdt gdt_pointer(%rip)
	mov $16, %eax
	mov %eax, %ds
	mov %eax, %es
	mov %eax, %ss
	xor %eax, %eax
	mov %eax, %fs
	mov %eax, %gs
	push $0
	popf
	call kernel_main
1:	cli
	hlt
	jmp 1b
	.size start64, . - start64

	.data
	.p2align 3
gdt:
	.quad 0
	.quad 0x00af9a000000ffff        /* kernel code, 64-bit */
	.quad 0x00cf92000000ffff        /* kernel data */
	.word 0, 0, 0
gdt_pointer:
	.word 3 * 8 - 1
	.quad gdt

	.bss
	.p2align 4
	.space 16384
stack_top:

	.section .note.GNU-stack, "", @progbits
