/* The clock, the shared interrupt words, and sleeping. */
#include "check.h"
#include "kernel.h"

#define MILLISECOND 1000000u

static void clock_in(u32 nanoseconds)
{
	hypercall(LHCALL_SET_CLOCKEVENT, nanoseconds, 0, 0, 0);
}

static int await_pending(void)
{
	for (u32 i = 0; i < 200000000; i++)
		if (lguest_data.irq_pending)
			return 1;
	return 0;
}

static void halting(void)
{
	lguest_data.blocked_interrupts = 0;
	ticks = 0;
	for (u32 i = 0; i < 3; i++) {
		irq_disable();
		clock_in(MILLISECOND);
		hypercall(LHCALL_HALT, 0, 0, 0, 0);
		expect("irq_enabled after waking", lguest_data.irq_enabled, FLAG_IF);
	}
	irq_disable();
	expect("ticks", ticks, 3);
	expect("irq_enabled in the handler", tick_enabled, 0);
	expect("cs in the frame", tick_trap.cs, SEL_KERNEL_CODE);
	expect("IF in the frame", tick_trap.flags & FLAG_IF, FLAG_IF);
	verdict("irq.halt_wakes");
}

static void pending(void)
{
	ticks = 0;
	irq_disable();
	clock_in(MILLISECOND);
	expect_that("irq_pending", await_pending());
	expect("ticks while off", ticks, 0);
	lguest_data.irq_enabled = FLAG_IF;
	hypercall(LHCALL_SEND_INTERRUPTS, 0, 0, 0, 0);
	irq_disable();
	expect("ticks", ticks, 1);
	expect("irq_pending afterwards", lguest_data.irq_pending, 0);
	verdict("irq.pending_then_send");

	clock_in(MILLISECOND);
	irq_enable();
	for (u32 i = 0; i < 200000000 && ticks == 1; i++)
		;
	irq_disable();
	expect("ticks", ticks, 2);
	verdict("irq.delivered_while_running");
}

static void blocking(void)
{
	ticks = 0;
	lguest_data.blocked_interrupts = 1;
	irq_enable();
	clock_in(MILLISECOND / 10);
	for (volatile u32 i = 0; i < 1000000; i++) /* milliseconds, at any speed there is */
		;
	expect("ticks while blocked", ticks, 0);
	irq_disable();
	lguest_data.blocked_interrupts = 0;
	hypercall(LHCALL_HALT, 0, 0, 0, 0); /* it has waited: no sleep at all */
	irq_disable();
	expect("ticks", ticks, 1);
	verdict("irq.blocked");

	ticks = 0;
	clock_in(MILLISECOND);
	clock_in(0); /* stopped */
	clock_in(2 * MILLISECOND);
	hypercall(LHCALL_HALT, 0, 0, 0, 0);
	irq_disable();
	expect("ticks", ticks, 1);
	verdict("irq.one_shot_stopped");
}

static void wall_clock(void)
{
	u32 seconds = lguest_data.time_seconds, nanoseconds = lguest_data.time_nanoseconds;

	clock_in(MILLISECOND);
	hypercall(LHCALL_HALT, 0, 0, 0, 0);
	irq_disable();
	expect_that("time goes on", lguest_data.time_seconds > seconds ||
		    (lguest_data.time_seconds == seconds &&
		     lguest_data.time_nanoseconds > nanoseconds));
	verdict("irq.time_updated");
}

void test_interrupts(void)
{
	halting();
	pending();
	blocking();
	wall_clock();
}
