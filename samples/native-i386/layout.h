/* Selectors and addresses of the i386 native sample, for C and for the assembler. */
#ifndef SAMPLES_NATIVE_I386_LAYOUT_H
#define SAMPLES_NATIVE_I386_LAYOUT_H

#define SEL_KERNEL_CODE 0x08 /* SYSENTER wants these four in this order */
#define SEL_KERNEL_DATA 0x10
#define SEL_USER_CODE 0x1b
#define SEL_USER_DATA 0x23
#define SEL_TSS 0x28
#define SEL_LDT 0x30
#define SEL_WINDOW 0x38      /* 16 bytes of data, with a base of its own */
#define SEL_OTHER_CODE 0x40  /* a second flat code segment */
#define SEL_ABSENT 0x48      /* data, not present */
#define SEL_READ_ONLY 0x60   /* data that cannot be written */
#define SEL_EXECUTE_ONLY 0x68
#define GDT_ENTRIES 14
#define SEL_BEYOND 0x70      /* the first one past the limit */

#define USER_CODE 0x00400000 /* one page of user code, copied there */
#define USER_STACK 0x00401000
#define USER_STACK_TOP 0x00402000
#define ALIAS 0x40000000 /* a virtual page that is somewhere else physically */

#define SYS_EXIT 0 /* ebx: result */
#define SYS_ADD 1  /* eax = ebx + ecx */

#endif
