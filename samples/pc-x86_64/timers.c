/* Timers: the local APIC's, the 8254 and the power management timer, against each other. */
#include "check.h"
#include "kernel.h"
#include "pc.h"

#define PORT_PM_TIMER 0x608
#define VECTOR 0x61

u32 pm_ticks(void)
{
	return in32(PORT_PM_TIMER) & 0xffffff;
}

void pm_wait(u32 ticks)
{
	u32 start = pm_ticks();

	while (((pm_ticks() - start) & 0xffffff) < ticks)
		asm volatile("pause");
}

static void pit(u8 mode, u16 count)
{
	out8(PORT_PIT_MODE, mode);
	out8(PORT_PIT_CHANNEL0, (u8)count);
	out8(PORT_PIT_CHANNEL0, (u8)(count >> 8));
}

void pit_periodic(u16 count)
{
	pit(0x34, count);
}

void pit_once(u16 count)
{
	pit(0x30, count);
}

void pit_stop(void)
{
	out8(PORT_PIT_MODE, 0x30); /* mode 0 and no count: the output stays low */
}

static void pm_timer(void)
{
	u32 first = pm_ticks(), second;

	second = first;
	for (u32 i = 0; i < 100000 && second == first; i++)
		second = pm_ticks();
	expect_that("it moves", second != first);
	expect_that("forwards", ((second - first) & 0xffffff) < 0x800000);
	verdict("pm_timer.moves");
}

static void one_shot(void)
{
	u32 start, later;

	apic_write(APIC_DIVIDE, 0xb); /* by 1 */
	apic_write(APIC_LVT_TIMER, VECTOR);
	forget();
	start = pm_ticks();
	apic_write(APIC_INITIAL, 10 * 1000 * 1000);
	later = apic_read(APIC_CURRENT);
	expect_that("it counts down", later && later <= 10 * 1000 * 1000);
	expect("initial count", apic_read(APIC_INITIAL), 10 * 1000 * 1000);
	expect_that("an interrupt", await(1));
	expect_that("not too early", ((pm_ticks() - start) & 0xffffff) >= 9 * PM_MS);
	expect("vector", vectors[0], VECTOR);
	expect("count at the end", apic_read(APIC_CURRENT), 0);
	pm_wait(15 * PM_MS);
	let_in();
	expect("once", came, 1);
	verdict("apic_timer.one_shot");

	forget();
	apic_write(APIC_DIVIDE, 0x3); /* by 16 */
	start = pm_ticks();
	apic_write(APIC_INITIAL, 1000 * 1000);
	expect_that("an interrupt", await(1));
	expect_that("not too early", ((pm_ticks() - start) & 0xffffff) >= 15 * PM_MS);
	verdict("apic_timer.divided");

	forget();
	apic_write(APIC_INITIAL, 1000 * 1000);
	apic_write(APIC_INITIAL, 0);
	pm_wait(20 * PM_MS);
	let_in();
	expect("interrupts", came, 0);
	expect("count", apic_read(APIC_CURRENT), 0);
	verdict("apic_timer.stopped");

	apic_write(APIC_LVT_TIMER, MASKED | VECTOR);
	apic_write(APIC_INITIAL, 100 * 1000);
	pm_wait(5 * PM_MS);
	let_in();
	expect("interrupts", came, 0);
	verdict("apic_timer.masked");
}

static void periodic(void)
{
	u32 start;

	forget();
	apic_write(APIC_DIVIDE, 0xb);
	apic_write(APIC_LVT_TIMER, PERIODIC | VECTOR);
	start = pm_ticks();
	apic_write(APIC_INITIAL, 5 * 1000 * 1000);
	expect_that("five interrupts", await(5));
	expect_that("not too early", ((pm_ticks() - start) & 0xffffff) >= 20 * PM_MS);
	expect_that("it goes on counting", apic_read(APIC_CURRENT) != 0);
	apic_write(APIC_LVT_TIMER, MASKED);
	apic_write(APIC_INITIAL, 0);
	verdict("apic_timer.periodic");
}

static void halts(void)
{
	forget();
	apic_write(APIC_LVT_TIMER, VECTOR);
	apic_write(APIC_INITIAL, 3 * 1000 * 1000);
	asm volatile("sti; hlt; cli" : : : "memory");
	expect("interrupts", came, 1);
	apic_write(APIC_LVT_TIMER, MASKED);
	verdict("apic_timer.ends_a_halt");
}

void test_timers(void)
{
	pm_timer();
	one_shot();
	periodic();
	halts();
}
