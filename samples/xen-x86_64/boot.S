/*
 * What Xen's domain builder reads (the notes), and what it starts: 64-bit code with paging
 * on, privilege 3, events off, RSI = start_info, a stack of one page.
 */
#include "xen.h"

	.macro note type, size
	.p2align 2
	.long 4, \size, \type
	.asciz "Xen"
	.endm

	.section .note.xen, "a", @note
	note 6, 8                       /* GUEST_OS */
	.asciz "samples"
	note 5, 8                       /* XEN_VERSION */
	.asciz "xen-3.0"
	note 8, 8                       /* LOADER */
	.asciz "generic"
	note 3, 8                       /* VIRT_BASE */
	.quad KERNEL_BASE
	note 4, 8                       /* PADDR_OFFSET */
	.quad 0
	note 1, 8                       /* ENTRY */
	.quad start
	note 2, 8                       /* HYPERCALL_PAGE */
	.quad hypercall_page
	note 10, 24                     /* FEATURES */
	.ascii "!writable_page_tables\0\0\0"

	.text
	.globl start
	.type start, @function
start:
	cld
	mov %rsi, start_info(%rip)
	mov %rsp, boot_state(%rip)
	mov %cs, %eax
	mov %rax, boot_state + 8(%rip)
	mov %ss, %eax
	mov %rax, boot_state + 16(%rip)
	mov $stack_top, %rsp
	call kernel_main
	.size start, . - start

/* s64 hypercall(number, a1, a2, a3, a4, a5): through the page that Xen filled in. */
	.globl hypercall
	.type hypercall, @function
hypercall:
	mov %rdi, %rax
	shl $5, %rax
	add $hypercall_page, %rax
	mov %rsi, %rdi
	mov %rdx, %rsi
	mov %rcx, %rdx
	mov %r8, %r10
	mov %r9, %r8
	jmp *%rax
	.size hypercall, . - hypercall

	.p2align 12
	.globl hypercall_page
	.type hypercall_page, @object
	.size hypercall_page, 4096
hypercall_page:
	.space 4096, 0x90

	.data
	.p2align 3
	.globl start_info
start_info:
	.quad 0
	.globl boot_state
boot_state:                             /* RSP, CS, SS */
	.quad 0, 0, 0

	.bss
	.p2align 12
	.space 16384
stack_top:

	.section .note.GNU-stack, "", @progbits
