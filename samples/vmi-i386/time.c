/* Counters, alarms in cycles, and the wall clock in nanoseconds. */
#include "kernel.h"

static u64 frequency;

static u64 counter(u32 which)
{
	return vmi(VMI_GetCycleCounter, which, 0, 0);
}

/* cycles in `us` microseconds, without a 64-bit division */
static u32 microseconds(u32 us)
{
	return (u32)frequency / 1000000 * us;
}

static void alarm(u32 flags, u64 expiry, u32 period)
{
	vmi5(VMI_SetAlarm, flags, (u32)expiry, (u32)(expiry >> 32), period, 0);
}

static void sleep(void)
{
	irq_disable();
	vmi0(VMI_Halt);
	irq_disable();
}

static void counters(void)
{
	u64 before, stolen, after, available;

	frequency = vmi0(VMI_GetCycleFrequency);
	expect_that("a frequency", frequency > 1000000 && frequency >> 32 == 0);
	expect("it stays", vmi0(VMI_GetCycleFrequency), frequency);
	for (u32 i = 0; i < 100; i++) {
		before = counter(VMI_REAL);
		after = counter(VMI_REAL);
		expect_that("real never goes back", after >= before);
	}
	before = counter(VMI_REAL);
	available = counter(VMI_AVAILABLE);
	stolen = counter(VMI_STOLEN);
	after = counter(VMI_REAL);
	expect_that("real is the sum, at some moment between", available + stolen >= before &&
		    available + stolen <= after);
	expect_that("something was stolen", stolen > 0);
	expect("no such counter", counter(3), 0);
	expect("nor such", counter(0xffffffff), 0);
	verdict("time.counters");
}

static void one_shot(void)
{
	u64 at;

	pic_mask(0xfe);
	ticks = 0;
	at = counter(VMI_REAL) + microseconds(500);
	alarm(VMI_REAL, at, 0);
	sleep();
	expect("ticks", ticks, 1);
	expect_that("not early", counter(VMI_REAL) >= at);
	expect_that("not late", counter(VMI_REAL) < at + microseconds(50));
	expect("armed afterwards", (u32)vmi(VMI_CancelAlarm, VMI_REAL, 0, 0), 0);
	verdict("time.one_shot");

	alarm(VMI_REAL, 1, 0); /* long ago */
	irq_enable();
	irq_disable();
	expect("ticks", ticks, 2);
	verdict("time.in_the_past");

	alarm(VMI_REAL, counter(VMI_REAL) + microseconds(100), 0);
	expect("was armed", (u32)vmi(VMI_CancelAlarm, VMI_REAL, 0, 0), 1);
	expect("is not", (u32)vmi(VMI_CancelAlarm, VMI_REAL, 0, 0), 0);
	alarm(VMI_REAL, counter(VMI_REAL) + microseconds(300), 0);
	alarm(VMI_REAL, counter(VMI_REAL) + microseconds(600), 0); /* in place of the first */
	sleep();
	expect("ticks", ticks, 3);
	verdict("time.cancel_and_replace");
}

static void periodic(void)
{
	u64 start = counter(VMI_REAL), at;

	ticks = 0;
	alarm(VMI_REAL | VMI_PERIODIC, start + microseconds(1000), microseconds(1000));
	for (u32 i = 0; i < 5; i++)
		sleep();
	expect("ticks", ticks, 5);
	expect_that("periods add up", counter(VMI_REAL) >= start + microseconds(5000) &&
		    counter(VMI_REAL) < start + microseconds(5050));
	for (at = counter(VMI_REAL) + microseconds(4500); counter(VMI_REAL) < at;)
		;
	irq_enable();
	irq_disable();
	expect("missed periods are one", ticks, 6);
	expect("was armed", (u32)vmi(VMI_CancelAlarm, VMI_REAL | VMI_PERIODIC, 0, 0), 1);
	verdict("time.periodic");
}

static void kinds(void)
{
	u64 at;

	ticks = 0;
	at = counter(VMI_AVAILABLE) + microseconds(400);
	alarm(VMI_AVAILABLE, at, 0);
	alarm(VMI_REAL, counter(VMI_REAL) + microseconds(100), 0);
	sleep();
	expect("ticks of real", ticks, 1);
	sleep();
	expect("ticks of both", ticks, 2);
	expect_that("available has come", counter(VMI_AVAILABLE) >= at);
	verdict("time.two_counters");

	alarm(VMI_STOLEN, counter(VMI_STOLEN) + 1, 0);
	expect("stolen has no alarm", (u32)vmi(VMI_CancelAlarm, VMI_STOLEN, 0, 0), 0);
	alarm(0xff, 1, 0);
	expect("nor has a counter that is none", (u32)vmi(VMI_CancelAlarm, 0xff, 0, 0), 0);
	expect("ticks", ticks, 2);
	alarm(VMI_REAL, ~0ull, 0); /* never */
	expect("armed for ever", (u32)vmi(VMI_CancelAlarm, VMI_REAL, 0, 0), 1);
	verdict("time.no_alarm");

	pic_mask(0xff);
	vmi(VMI_APICWrite, 0xfee00320, LVTT_VECTOR, 0);
	alarm(VMI_REAL | VMI_WIRED_LVTT, counter(VMI_REAL) + microseconds(100), 0);
	sleep();
	expect("ticks", ticks, 3);
	expect("vector", tick_vector, LVTT_VECTOR);
	verdict("time.wired_lvtt");
}

static void wall(void)
{
	u64 before = vmi0(VMI_GetWallclockTime), cycles = counter(VMI_REAL), after;

	expect_that("after the year 2000", before > 946684800ull * 1000000000);
	pic_mask(0xfe);
	alarm(VMI_REAL, cycles + frequency / 1, 0); /* one second */
	sleep();
	after = vmi0(VMI_GetWallclockTime);
	expect_that("a second is 10^9", after - before >= 1000000000 && after - before < 1000100000);
	vmi0(VMI_WallclockUpdated);
	expect("updated", (u32)vmi0(VMI_WallclockUpdated), 0);
	verdict("time.wall_clock");
}

void test_time(void)
{
	counters();
	one_shot();
	periodic();
	kinds();
	wall();
}
