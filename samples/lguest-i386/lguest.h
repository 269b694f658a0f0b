/*
 * lguest's interface as Linux 3.1 .. 4.13 had it (arch/x86/include/asm/lguest_hcall.h,
 * include/linux/lguest.h). A guest runs at privilege 1 and asks by INT 0x1F, number in EAX,
 * arguments in EBX, ECX, EDX, ESI. There are no error codes: a bad call ends the guest.
 *
 * For C and for the assembler.
 */
#ifndef SAMPLES_LGUEST_H
#define SAMPLES_LGUEST_H

#define KERNEL_BASE 0xc0000000
#define LGUEST_VECTOR 0x1f

#define LHCALL_FLUSH_ASYNC 0
#define LHCALL_LGUEST_INIT 1
#define LHCALL_SHUTDOWN 2
#define LHCALL_NEW_PGTABLE 4
#define LHCALL_FLUSH_TLB 5
#define LHCALL_LOAD_IDT_ENTRY 6
#define LHCALL_SET_STACK 7
#define LHCALL_TS 8
#define LHCALL_SET_CLOCKEVENT 9
#define LHCALL_HALT 10
#define LHCALL_SET_PTE 14
#define LHCALL_SET_PGD 15
#define LHCALL_LOAD_TLS 16
#define LHCALL_NOTIFY 17
#define LHCALL_LOAD_GDT_ENTRY 18
#define LHCALL_SEND_INTERRUPTS 19

#define LGUEST_SHUTDOWN_POWEROFF 1

/* The selectors of a Linux guest of that time; the kernel's carry RPL 1. */
#define SEL_KERNEL_CODE 0x61
#define SEL_KERNEL_DATA 0x69
#define SEL_USER_CODE 0x73
#define SEL_USER_DATA 0x7b
#define GDT_FREE_ENTRY 5
#define SEL_FREE 0x29
#define GDT_TLS_ENTRY 6
#define SEL_TLS 0x33

#define IRQ_ENABLED 0 /* offset in struct lguest_data */
#define RING_ENTRIES 64

#define USER_CODE 0x08048000
#define USER_STACK_TOP 0x0804a000
#define ALIAS 0x40000000

#define SYS_EXIT 0 /* ebx: result */
#define SYS_ADD 1  /* eax = ebx + ecx */

#ifndef __ASSEMBLER__
#include "types.h"

/* Shared between guest and host, named to the host by LGUEST_INIT. */
struct lguest_data {
	u32 irq_enabled;        /* guest: 0x200 or 0, in place of the real flag */
	u32 blocked_interrupts; /* guest: bit n blocks interrupt n */
	u32 cr2;                /* host: address of the last page fault */
	u32 time_seconds, time_nanoseconds; /* host: wall clock at the last interrupt */
	u32 irq_pending;        /* host: 0x200 if something waits for irq_enabled */
	u8 hcall_status[RING_ENTRIES]; /* 0xff free, 0 pending */
	struct {
		u32 eax, ebx, ecx, edx, esi;
	} hcalls[RING_ENTRIES];
	u32 reserve_mem;        /* host: bytes at the top of the address space that are its own */
	u32 tsc_khz;
	u32 noirq_start, noirq_end; /* guest: no interrupts while EIP is in there */
	u32 kernel_address;     /* guest: from here on mappings are the same everywhere */
	u32 syscall_vector;
};

_Static_assert(__builtin_offsetof(struct lguest_data, irq_pending) == 0x14, "layout");
_Static_assert(__builtin_offsetof(struct lguest_data, hcalls) == 0x58, "layout");
_Static_assert(__builtin_offsetof(struct lguest_data, reserve_mem) == 0x558, "layout");
_Static_assert(sizeof(struct lguest_data) == 0x570, "layout");

extern volatile struct lguest_data lguest_data;

static inline void hypercall(u32 number, u32 a1, u32 a2, u32 a3, u32 a4)
{
	asm volatile("int $0x1f" : "+a"(number)
		     : "b"(a1), "c"(a2), "d"(a3), "S"(a4) : "memory");
}

static inline u32 physical(const volatile void *address)
{
	return (u32)address - KERNEL_BASE;
}
#endif
#endif
