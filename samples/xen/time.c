/* Time in shared memory, in nanoseconds; the timer takes the same nanoseconds, absolute. */
#include "check.h"
#include "control.h"
#include "kernel.h"

#define MILLISECOND 1000000ull
#define SLACK (MILLISECOND / 5) /* Xen fires together what is due within 50 us */

static u64 system_time(void)
{
	const volatile struct time_info *info = &shared->vcpu_info[0].time;
	u32 version;
	u64 delta, ns;

	do {
		version = info->version & ~1u; /* odd: being written, try again */
		asm volatile("" : : : "memory");
		delta = tsc_read() - info->tsc_timestamp;
		if (info->tsc_shift >= 0)
			delta <<= info->tsc_shift;
		else
			delta >>= -info->tsc_shift;
		ns = info->system_time +
		     (delta >> 32) * info->tsc_to_system_mul +
		     ((delta & 0xffffffff) * info->tsc_to_system_mul >> 32);
		asm volatile("" : : : "memory");
	} while (version != info->version);
	return ns;
}

static long block_until(u64 ns)
{
	set_timer_op(ns);
	return HC2(sched_op, SCHED_BLOCK, 0); /* enables events, atomically with sleeping */
}

void test_time(void)
{
	u64 before = system_time(), after, wanted;
	struct {
		u32 *ports;
		u32 nr_ports;
		u64 timeout;
	} poll = { 0, 0, 0 };

	for (u32 i = 0; i < 1000; i++) {
		after = system_time();
		expect_that("never backwards", after >= before);
		before = after;
	}
	verdict("time.monotonic");

	/* A guest starts with a periodic timer of 10 ms, for those who expect one. */
	returns("vcpu_op.stop_periodic", HC3(vcpu_op, 7, 0, 0), 0);
	events_enable(); /* and what it has left behind */
	events_disable();
	event_ports = 0;
	events = 0;
	wanted = system_time() + MILLISECOND;
	returns("set_timer_op.good", set_timer_op(wanted), 0);
	returns("sched_op.block", HC2(sched_op, SCHED_BLOCK, 0), 0);
	events_disable();
	expect_that("an event", events > 0 && event_ports != 0);
	expect_that("not long before its time", system_time() + SLACK >= wanted);
	verdict("set_timer_op.wakes");
	event_ports = 0;
	block_until(1); /* long ago: at once */
	events_disable();
	expect_that("an event", event_ports != 0);
	verdict("set_timer_op.past");
	set_timer_op(system_time() + 50 * MILLISECOND);
	returns("set_timer_op.cancel", set_timer_op(0), 0);

	wanted = system_time() + 2 * MILLISECOND;
	poll.timeout = wanted;
	returns("sched_op.poll", HC2(sched_op, SCHED_POLL, &poll), 0);
	expect_that("not long before its time", system_time() + SLACK >= wanted);
	verdict("sched_op.poll_waits");
	returns("sched_op.yield", HC2(sched_op, SCHED_YIELD, 0), 0);
	returns("sched_op_compat.yield", HC2(sched_op_compat, 0, 0), 0);
	returns("sched_op.unknown", HC2(sched_op, 77, 0), -XEN_ENOSYS);
	returns("sched_op.bad_pointer", HC2(sched_op, SCHED_POLL, WILD), -XEN_EFAULT);
	returns("sched_op_compat.unknown", HC2(sched_op_compat, 77, 0), -XEN_ENOSYS);
}
