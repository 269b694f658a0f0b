/* What the chapters of the lguest sample share. */
#ifndef SAMPLES_LGUEST_KERNEL_H
#define SAMPLES_LGUEST_KERNEL_H

#include "lguest.h"
#include "traps.h"

extern volatile u32 ticks;
extern volatile u32 tick_enabled; /* irq_enabled inside the clock interrupt */
extern volatile struct trap_record tick_trap;
extern volatile u32 *tick_word; /* set to 1 by the next one, if not null */
extern u32 user_result;
extern u32 directory[1024];
extern u8 trap_stack[8192];

void user_enter(u32 ip, u32 sp, u32 irq_enabled);

/*
 * Vectors for INT n in the kernel. They are exceptions' vectors, since lguest takes every
 * vector from 32 on (but the system call's) for an interrupt of the host.
 */
enum { TRAP_GATE = 4, INTERRUPT_GATE = 5 };

void test_boot(void);
void test_tables(void);
void test_traps(void);
void test_memory(void);
void test_user(void);
void test_interrupts(void);
void test_ring(void);

static inline void gdt_entry(u32 index, u32 low, u32 high)
{
	hypercall(LHCALL_LOAD_GDT_ENTRY, index, low, high, 0);
}

/* A 16-byte data segment at `base`, of the given privilege, in bytes. */
static inline u32 window_low(u32 base)
{
	return base << 16 | 15;
}

static inline u32 window_high(u32 base, u32 privilege)
{
	return (base & 0xff000000) | 0x00409200 | privilege << 13 | (base >> 16 & 0xff);
}

/* What interrupts off and on are on lguest: a store, and a look at what waits. */
static inline void irq_disable(void)
{
	lguest_data.irq_enabled = 0;
	asm volatile("" : : : "memory");
}

static inline void irq_enable(void)
{
	asm volatile("" : : : "memory");
	lguest_data.irq_enabled = FLAG_IF;
	if (lguest_data.irq_pending)
		hypercall(LHCALL_SEND_INTERRUPTS, 0, 0, 0, 0);
}

#endif
