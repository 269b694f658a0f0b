/*
 * From the 32-bit state in which a PVH loader leaves us (protected mode, paging off, flat
 * segments, no stack) to 64-bit code in the upper half.
 */
#include "layout.h"

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
	/* One gigabyte, mapped twice: at 0 for this code and at KERNEL_BASE for the rest. */
	mov $boot_directory, %edi
	mov $0x83, %eax                 /* 2 MiB page, writable, present */
1:	mov %eax, (%edi)
	movl $0, 4(%edi)
	add $8, %edi
	add $0x200000, %eax
	cmp $0x40000083, %eax
	jne 1b
	mov $boot_directory + 3, %eax
	mov %eax, boot_pointers         /* entry 0: the low gigabyte */
	mov %eax, boot_pointers_high + 510 * 8
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
	jmp compatibility
	.size start32, . - start32

/*
 * Also entered later, from 64-bit code, through a 32-bit code segment: leaves long mode
 * (paging off), looks around, and enters it again.
 */
	.globl compatibility
	.type compatibility, @function
compatibility:
	mov %cs, %eax
	mov %eax, compatibility_seen
	mov %cr0, %eax
	and $0x7fffffff, %eax
	mov %eax, %cr0
	mov $0xc0000080, %ecx
	rdmsr
	mov %eax, compatibility_seen + 4 /* EFER without paging: LMA is gone */
	pushf
	popl compatibility_seen + 8
	mov %cr0, %eax
	or $0x80000001, %eax
	mov %eax, %cr0
	ljmp $SEL_KERNEL_CODE, $1f
	.code64
1:	mov high_entry(%rip), %rax
	jmp *%rax
	.size compatibility, . - compatibility

	.p2align 3
	.globl high_entry
high_entry:
	.quad start64                   /* where to go on, in the upper half */
	.globl compatibility_seen
compatibility_seen:
	.long 0, 0, 0
	.p2align 2
	.word 0
boot_gdt_pointer:
	.word GDT_ENTRIES * 8 - 1
	.long PHYSICAL(gdt)
	.p2align 4
	.space 512
	.globl boot_stack_top
boot_stack_top:
	.p2align 12
	.globl boot_top
boot_top:
	.space 4096
boot_pointers:
	.space 4096
boot_pointers_high:
	.space 4096
boot_directory:
	.space 4096

	.text
	.code64
	.type start64, @function
start64:
	mov $stack_top, %rsp
	lgdt gdt_pointer(%rip)
	mov $SEL_KERNEL_DATA, %eax
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

/* void long_mode_round_trip(by return or by jump): down to 32 bits without paging, and back. */
	.globl long_mode_round_trip
	.type long_mode_round_trip, @function
long_mode_round_trip:
	push %rbx
	push %rbp
	pushf
	cli
	mov %rsp, saved_stack(%rip)
	movabs $high_entry, %rbx
	lea 1f(%rip), %rax
	mov %rax, (%rbx)
	mov $boot_stack_top, %rsp
	test %rdi, %rdi
	jnz 2f
	ljmp *compatibility_pointer(%rip)
2:	push compatibility_pointer(%rip) /* offset and selector, 32 bits each */
	lretl
1:	mov saved_stack(%rip), %rsp
	popf
	pop %rbp
	pop %rbx
	ret
	.size long_mode_round_trip, . - long_mode_round_trip

	.data
	.p2align 3
	.globl gdt
gdt:
	.quad 0
	.quad 0x00af9a000000ffff        /* kernel code, 64-bit */
	.quad 0x00cf92000000ffff        /* kernel data */
	.quad 0x00cffa000000ffff        /* user code, 32-bit */
	.quad 0x00cff2000000ffff        /* user data */
	.quad 0x00affa000000ffff        /* user code, 64-bit */
	.quad 0x00cff2000000ffff        /* user data again */
	.quad 0, 0                      /* TSS, filled in at run time */
	.quad 0, 0                      /* LDT, filled in at run time */
	.quad 0                         /* window, filled in at run time */
	.quad 0x00cf12000000ffff        /* absent */
	.quad 0x00cf90000000ffff        /* read-only */
	.quad 0x00af98000000ffff        /* execute-only */
	.quad 0x00af9a000000ffff        /* other code, 64-bit */
	.quad 0x00cf9a000000ffff        /* kernel code, 32-bit */
	.globl gdt_pointer
	.p2align 3
	.word 0, 0, 0
gdt_pointer:
	.word GDT_ENTRIES * 8 - 1
	.quad gdt
	.p2align 3
compatibility_pointer:
	.long compatibility
	.long SEL_KERNEL_CODE32

	.bss
	.p2align 4
saved_stack:
	.quad 0
	.p2align 4
	.space 16384
stack_top:

	.section .note.GNU-stack, "", @progbits
