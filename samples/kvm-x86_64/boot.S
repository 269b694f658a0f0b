/*
 * From the PVH entry (32-bit protected mode, paging off) to 64-bit C, and the little that
 * C needs of traps: what was raised, and on behind the instruction that was tried.
 */
	.section .note.pvh, "a", @note
	.p2align 2
	.long 4, 8, 18                  /* name size, description size, PHYS32_ENTRY */
	.asciz "Xen"
	.quad start32

	.text
	.code32
	.globl start32
	.type start32, @function
start32:
	cli
	cld
	lgdt gdt_pointer
	mov $stack_top, %esp
	mov $directory, %edi
	mov $0x83, %eax                 /* 2 MiB page, writable, present */
1:	mov %eax, (%edi)
	movl $0, 4(%edi)
	add $8, %edi
	add $0x200000, %eax
	cmp $0x40000083, %eax
	jne 1b
	movl $directory + 7, pointers   /* user mode has a page of its own below it */
	movl $pointers + 7, top
	orl $4, directory + (0x400000 >> 21) * 8
	mov $top, %eax
	mov %eax, %cr3
	mov $0x20, %eax                 /* PAE */
	mov %eax, %cr4
	mov $0xc0000080, %ecx           /* EFER: long mode, and SYSCALL */
	rdmsr
	or $0x101, %eax
	wrmsr
	mov $0x80000001, %eax           /* paging, protection */
	mov %eax, %cr0
	ljmp $0x08, $1f
	.code64
1:	mov $0x10, %eax
	mov %eax, %ds
	mov %eax, %es
	mov %eax, %ss
	xor %eax, %eax
	mov %eax, %fs
	mov %eax, %gs
	call kernel_main
	.size start32, . - start32

/* One entry per exception: note the vector (and code), take the stack of the PROBE, go on. */
	.set vector, 0
	.rept 32
	.p2align 5
	movq $vector, last_trap
	.if vector == 8 || (vector >= 10 && vector <= 14) || vector == 17
	popq last_trap + 8
	.endif
	jmp trap_continue
	.set vector, vector + 1
	.endr
	.globl trap_entries
	.set trap_entries, trap_continue - 32 * 32
	.p2align 5
	.type trap_continue, @function
trap_continue:
	mov trap_resume + 8, %rsp
	jmp *trap_resume
	.size trap_continue, . - trap_continue

/*
 * long from_user_mode(void *program): runs it with SYSRET; its SYSCALL comes back here with
 * the result in RAX. No stack and no frame are involved.
 */
	.globl from_user_mode
	.type from_user_mode, @function
from_user_mode:
	push %rbx
	push %rbp
	push %r12
	push %r13
	push %r14
	push %r15
	mov %rsp, kernel_stack
	mov %rdi, %rcx
	mov $2, %r11d                   /* flags for user mode: interrupts stay off */
	sysretq
	.globl syscall_entry
syscall_entry:
	mov kernel_stack, %rsp
	pop %r15
	pop %r14
	pop %r13
	pop %r12
	pop %rbp
	pop %rbx
	ret
	.size from_user_mode, . - from_user_mode

	.data
	.p2align 3
gdt:
	.quad 0
	.quad 0x00af9a000000ffff        /* 08 kernel code */
	.quad 0x00cf92000000ffff        /* 10 kernel data */
	.quad 0                         /* 18 would be 32-bit user code */
	.quad 0x00cff2000000ffff        /* 20 user data */
	.quad 0x00affa000000ffff        /* 28 user code */
	.word 0, 0, 0
gdt_pointer:
	.word 6 * 8 - 1
	.quad gdt

	.bss
	.p2align 12
top:
	.space 4096
pointers:
	.space 4096
directory:
	.space 4096
	.space 16384
stack_top:
kernel_stack:
	.quad 0

	.section .note.GNU-stack, "", @progbits
