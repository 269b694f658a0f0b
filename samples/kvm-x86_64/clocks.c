/* Time from shared memory: kvmclock and the wall clock. */
#include "check.h"
#include "kvm.h"
#include "pc.h"

static volatile struct system_time shared __attribute__((aligned(64)));
static volatile struct wall_clock wall __attribute__((aligned(64)));

/* ns since the machine started: what the host wrote, extended by the time stamp counter. */
static u64 clock_ns(void)
{
	u32 version;
	u64 delta, ns;

	do {
		version = shared.version & ~1u; /* odd: being written, try again */
		asm volatile("" : : : "memory");
		delta = tsc_read() - shared.tsc_timestamp;
		if (shared.tsc_shift >= 0)
			delta <<= shared.tsc_shift;
		else
			delta >>= -shared.tsc_shift;
		ns = shared.system_time +
		     (u64)((unsigned __int128)delta * shared.tsc_to_system_mul >> 32);
		asm volatile("" : : : "memory");
	} while (version != shared.version);
	return ns;
}

static void system_clock(u32 index, const char *name)
{
	u64 before, after, value;

	shared.version = 0;
	shared.tsc_to_system_mul = 0;
	expect("write", msr_try_write(index, (u64)&shared | 1), NO_TRAP);
	hypercall(HC_VAPIC_POLL_IRQ, 0, 0, 0, 0); /* one way out and in: now it is filled */
	expect("version is even", shared.version & 1, 0);
	expect_that("filled", shared.version != 0 && shared.tsc_to_system_mul != 0);
	expect_that("plausible shift", shared.tsc_shift > -32 && shared.tsc_shift < 32);
	expect("read", msr_try_read(index, &value), NO_TRAP);
	expect("value", value, (u64)&shared | 1);
	before = clock_ns();
	for (u32 i = 0; i < 1000; i++) {
		after = clock_ns();
		expect_that("never backwards", after >= before);
		before = after;
	}
	for (u32 i = 0; i < 20; i++) { /* nor across exits, where the host writes anew */
		hypercall(HC_VAPIC_POLL_IRQ, 0, 0, 0, 0);
		after = clock_ns();
		expect_that("never backwards over an exit", after >= before);
		before = after;
	}
	verdict(name);
}

/* Ten milliseconds by the interval timer are about as long by the clock. */
static void against_timer(void)
{
	u64 before, elapsed;

	out8(PORT_PIT_MODE, 0x30);
	before = clock_ns();
	out8(PORT_PIT_CHANNEL0, 11932 & 0xff);
	out8(PORT_PIT_CHANNEL0, 11932 >> 8);
	do {
		for (u32 i = 0; i < 2000; i++)
			asm volatile("pause");
		out8(PORT_PIT_MODE, 0xe2); /* read back the status of channel 0 */
	} while (!(in8(PORT_PIT_CHANNEL0) & 0x80));
	elapsed = clock_ns() - before;
	expect_that("at least 9 ms", elapsed >= 9000000);
	expect_that("at most 5 s", elapsed <= 5000000000);
	verdict("clock.agrees_with_timer");
}

static void wall_clock(u32 index, const char *name)
{
	u32 version;

	wall.version = 0;
	wall.seconds = 0;
	wall.nanoseconds = ~0u;
	expect("write", msr_try_write(index, (u64)&wall), NO_TRAP);
	expect("version is even", wall.version & 1, 0);
	expect_that("filled", wall.version != 0);
	expect_that("seconds", wall.seconds != 0);
	expect_that("nanoseconds in a second", wall.nanoseconds < 1000000000);
	version = wall.version;
	expect("second write", msr_try_write(index, (u64)&wall), NO_TRAP);
	expect_that("filled again", wall.version != version && !(wall.version & 1));
	verdict(name);
}

void test_clocks(void)
{
	if (kvm_has(CLOCKSOURCE2)) {
		system_clock(MSR_SYSTEM_TIME, "clock.system_time");
		if (kvm_has(CLOCKSOURCE_STABLE)) {
			expect("stable flag", shared.flags & 1, 1);
			verdict("clock.stable");
		} else {
			skipped("clock.stable", "not advertised");
		}
		against_timer();
		wall_clock(MSR_WALL_CLOCK, "clock.wall_clock");
	} else {
		skipped("clock.system_time", "not advertised");
	}
	if (kvm_has(CLOCKSOURCE)) {
		system_clock(MSR_SYSTEM_TIME_OLD, "clock.system_time_old");
		wall_clock(MSR_WALL_CLOCK_OLD, "clock.wall_clock_old");
	} else {
		skipped("clock.system_time_old", "not advertised");
	}
}
