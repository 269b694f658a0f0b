/* Selectors and addresses of the x86-64 native sample, for C and for the assembler. */
#ifndef SAMPLES_NATIVE_X86_64_LAYOUT_H
#define SAMPLES_NATIVE_X86_64_LAYOUT_H

#define KERNEL_BASE 0xffffffff80000000 /* virtual address of physical 0 */

#define SEL_KERNEL_CODE 0x08
#define SEL_KERNEL_DATA 0x10
#define SEL_USER_CODE32 0x1b /* SYSRET wants these three in this order, */
#define SEL_USER_DATA 0x23
#define SEL_USER_CODE 0x2b
#define SEL_USER_DATA2 0x33  /* and SYSEXIT data behind them */
#define SEL_TSS 0x38         /* two entries */
#define SEL_LDT 0x48         /* two entries */
#define SEL_WINDOW 0x58      /* data with a base of its own */
#define SEL_ABSENT 0x60      /* data, not present */
#define SEL_READ_ONLY 0x68
#define SEL_EXECUTE_ONLY 0x70
#define SEL_OTHER_CODE 0x78  /* a second 64-bit code segment */
#define SEL_KERNEL_CODE32 0x80
#define GDT_ENTRIES 17
#define SEL_BEYOND 0x88      /* the first one past the limit */
#define SEL_IN_LDT 0x0c      /* entry 1 of the local table */

#define USER_CODE 0x00400000 /* one page of user code, copied there */
#define USER_STACK 0x00401000
#define USER_STACK_TOP 0x00402000
#define ALIAS 0xffffc00000000000 /* a virtual page that is somewhere else physically */

#define SYS_EXIT 0   /* rbx: result */
#define SYS_ADD 1    /* rax = rbx + rcx */
#define SYSENTER_FROM_32 0x61 /* ebx at SYSENTER in 32-bit user code */
#define SYS_COMPAT 2 /* by SYSCALL: continue at RBX in 32-bit user mode */

#endif
