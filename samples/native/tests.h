/* The chapters of the native samples, in the order in which they run. */
#ifndef SAMPLES_NATIVE_TESTS_H
#define SAMPLES_NATIVE_TESTS_H

#include "traps.h"
#include "types.h"

/* Shared by both widths. */
void test_flags(void);
void test_control(void);
void test_identification(void);
void test_ports(void);
void test_timer(void);
void test_tight(void);

/* One per width. */
void test_segments(void);
void test_traps(void);
void test_paging(void);
void test_user(void);

/* timer.c, also used where user mode is interrupted */
extern volatile u32 ticks;
extern volatile ulong tick_flags; /* flags inside the last timer interrupt */
extern volatile struct trap_record tick_trap; /* the frame of the last one */
extern volatile u32 *tick_word; /* set to 1 by the next one, if not null */
void interrupts_init(void);
void timer_interrupt(void);
void timer_once(u16 count); /* one IRQ 0 after count / 1193182 seconds */
void timer_stop(void);

static inline ulong flags_read(void)
{
	ulong flags;

	asm volatile("pushf; pop %0" : "=r"(flags));
	return flags;
}

static inline void flags_write(ulong flags)
{
	asm volatile("push %0; popf" : : "r"(flags) : "memory", "cc");
}

static inline void irq_disable(void)
{
	asm volatile("cli" : : : "memory");
}

static inline void irq_enable(void)
{
	asm volatile("sti" : : : "memory");
}

#endif
