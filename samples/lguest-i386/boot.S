/*
 * The entry: privilege 1, flat segments, linear addresses are physical ones. Tell the host
 * where the shared page is, give it page tables, and go to where the kernel is linked.
 */
#include "lguest.h"

#define PHYSICAL(name) (name - KERNEL_BASE)

	.text
	.globl start
	.type start, @function
start:
	mov %cs, %eax                   /* how we were started, before anything changes it */
	mov %eax, PHYSICAL(boot_state)
	mov %ss, %eax
	mov %eax, PHYSICAL(boot_state) + 4
	mov %ds, %eax
	mov %eax, PHYSICAL(boot_state) + 8
	mov %esi, PHYSICAL(boot_state) + 12
	mov $PHYSICAL(stack_top), %esp
	pushf
	popl PHYSICAL(boot_state) + 16

	mov $LHCALL_LGUEST_INIT, %eax
	mov $PHYSICAL(lguest_data), %ebx
	int $LGUEST_VECTOR

	/* The first 4 MiB, at 0 while we are here and at KERNEL_BASE for good. */
	mov $PHYSICAL(kernel_table), %edi
	mov $3, %eax                    /* writable, present */
1:	mov %eax, (%edi)
	add $4, %edi
	add $0x1000, %eax
	cmp $0x400003, %eax
	jne 1b
	movl $PHYSICAL(kernel_table) + 3, PHYSICAL(directory)
	movl $PHYSICAL(kernel_table) + 3, PHYSICAL(directory) + (KERNEL_BASE >> 22) * 4
	mov $LHCALL_NEW_PGTABLE, %eax
	mov $PHYSICAL(directory), %ebx
	int $LGUEST_VECTOR

	mov $stack_top, %esp
	mov $kernel_main, %eax
	call *%eax
	.size start, . - start

	.data
	.p2align 12
	.globl lguest_data
lguest_data:                            /* layout: lguest.h */
	.long 0                         /* irq_enabled: not yet */
	.long 1                         /* blocked_interrupts: the clock */
	.long 0, 0, 0, 0
	.fill 64, 1, 0xff               /* hcall_status: every ring entry is free */
	.fill 64 * 5, 4, 0
	.long 0, 0                      /* reserve_mem, tsc_khz */
	.long noirq_start, noirq_end
	.long KERNEL_BASE               /* kernel_address */
	.long 0x80                      /* syscall_vector */

	.globl boot_state
boot_state:                             /* CS, SS, DS, ESI, flags */
	.space 20

	.bss
	.p2align 12
	.globl directory
directory:
	.space 4096
	.globl kernel_table
kernel_table:
	.space 4096
	.space 8192
stack_top:

	.section .note.GNU-stack, "", @progbits
