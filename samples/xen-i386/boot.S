/*
 * What Xen's domain builder reads (the notes), and what it starts: 32-bit code with PAE
 * paging on, privilege 1, events off, ESI = start_info, a stack of one page.
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
	note 9, 4                       /* PAE_MODE */
	.asciz "yes"
	note 3, 4                       /* VIRT_BASE */
	.long KERNEL_BASE
	note 4, 4                       /* PADDR_OFFSET */
	.long 0
	note 1, 4                       /* ENTRY */
	.long start
	note 2, 4                       /* HYPERCALL_PAGE */
	.long hypercall_page
	note 10, 44                     /* FEATURES */
	.ascii "!writable_page_tables|pae_pgdir_above_4gb\0\0\0"

	.text
	.globl start
	.type start, @function
start:
	cld
	mov %esi, start_info
	mov %esp, boot_state
	mov %cs, %eax
	mov %eax, boot_state + 4
	mov %ss, %eax
	mov %eax, boot_state + 8
	mov $stack_top, %esp
	call kernel_main
	.size start, . - start

/* long hypercall(number, a1, a2, a3, a4, a5): through the page that Xen filled in. */
	.globl hypercall
	.type hypercall, @function
hypercall:
	push %ebx
	push %esi
	push %edi
	mov 16(%esp), %eax
	shl $5, %eax
	add $hypercall_page, %eax
	mov 20(%esp), %ebx
	mov 24(%esp), %ecx
	mov 28(%esp), %edx
	mov 32(%esp), %esi
	mov 36(%esp), %edi
	call *%eax
	pop %edi
	pop %esi
	pop %ebx
	ret
	.size hypercall, . - hypercall

	.p2align 12
	.globl hypercall_page
	.type hypercall_page, @object
	.size hypercall_page, 4096
hypercall_page:
	.space 4096, 0x90

	.data
	.p2align 2
	.globl start_info
start_info:
	.long 0
	.globl boot_state
boot_state:                             /* ESP, CS, SS */
	.long 0, 0, 0

	.bss
	.p2align 12
	.space 16384
stack_top:

	.section .note.GNU-stack, "", @progbits
