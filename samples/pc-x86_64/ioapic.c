/* The I/O APIC: the 8254's edges at pin 2, the serial port as a level. */
#include "check.h"
#include "kernel.h"
#include "pc.h"

#define IOAPIC_INDEX 0xfec00000ull
#define IOAPIC_DATA 0xfec00010ull
#define IOAPIC_END 0xfec00040ull
#define LEVEL (1u << 15)
#define REMOTE_IRR (1u << 14)
#define TIMER_PIN 2
#define SERIAL_PIN 4
#define TIMER_VECTOR 0x52
#define SERIAL_VECTOR 0x53
#define COM1_ENABLE 0x3f9
#define COM1_IDENTIFY 0x3fa
#define COM1_MODEM 0x3fc

static u32 read(u32 index)
{
	reg_write(IOAPIC_INDEX, index);
	return reg_read(IOAPIC_DATA);
}

static void route(u32 pin, u32 low)
{
	reg_write(IOAPIC_INDEX, 0x11 + 2 * pin);
	reg_write(IOAPIC_DATA, 0); /* to the APIC with number 0 */
	reg_write(IOAPIC_INDEX, 0x10 + 2 * pin);
	reg_write(IOAPIC_DATA, low);
}

static u32 entry(u32 pin)
{
	return read(0x10 + 2 * pin);
}

static void registers(void)
{
	expect("version register", read(1), 0x170020);
	for (u32 pin = 0; pin < 24; pin++)
		expect("masked", entry(pin) & MASKED, MASKED);
	route(23, MASKED | LEVEL | 0x2000 | LOGICAL | 0x1fe);
	expect("low half", entry(23), MASKED | LEVEL | 0x2000 | LOGICAL | 0x1fe);
	reg_write(IOAPIC_INDEX, 0x11 + 2 * 23);
	reg_write(IOAPIC_DATA, 0xa5000000);
	expect("high half", read(0x11 + 2 * 23), 0xa5000000);
	route(23, MASKED);
	verdict("ioapic.registers");
}

static void edges(void)
{
	forget();
	route(TIMER_PIN, TIMER_VECTOR);
	pit_periodic(1193);
	expect_that("three ticks", await(3));
	expect("vector", vectors[0], TIMER_VECTOR);
	expect("trigger mode", (u64)in_set(APIC_TMR, TIMER_VECTOR), 0);
	pit_stop();
	verdict("ioapic.edges");

	pm_wait(3 * PM_MS);
	let_in();
	route(TIMER_PIN, MASKED | TIMER_VECTOR);
	forget();
	pit_once(1193);
	pm_wait(5 * PM_MS);
	route(TIMER_PIN, TIMER_VECTOR);
	let_in();
	expect("an edge while masked", came, 0);
	pit_stop();
	pit_once(1193);
	expect_that("the next one", await(1));
	route(TIMER_PIN, MASKED);
	pit_stop();
	verdict("ioapic.masked_edge_is_lost");
}

static void serial_event(u8 vector)
{
	if (vector != SERIAL_VECTOR)
		return;
	expect("remote IRR in service", entry(SERIAL_PIN) & REMOTE_IRR, REMOTE_IRR);
	if (came == 2)
		in8(COM1_IDENTIFY); /* the transmitter is empty: seen */
}

static void levels(void)
{
	u8 modem = in8(COM1_MODEM);

	out8(COM1_MODEM, 0xb);
	route(SERIAL_PIN, MASKED | LEVEL | SERIAL_VECTOR);
	out8(COM1_ENABLE, 2); /* the transmitter is empty: the line rises */
	forget();
	let_in();
	expect("while masked", came, 0);
	on_interrupt = serial_event;
	route(SERIAL_PIN, LEVEL | SERIAL_VECTOR);
	expect("requested", (u64)in_set(APIC_IRR, SERIAL_VECTOR), 1);
	expect("trigger mode", (u64)in_set(APIC_TMR, SERIAL_VECTOR), 1);
	expect("remote IRR", entry(SERIAL_PIN) & REMOTE_IRR, REMOTE_IRR);
	expect_that("again after its end", await(2));
	let_in();
	expect("until the line falls", came, 2);
	expect("remote IRR at the end", entry(SERIAL_PIN) & REMOTE_IRR, 0);
	on_interrupt = 0;
	verdict("ioapic.level");

	forget();
	keep_in_service = 1;
	out8(COM1_ENABLE, 0);
	out8(COM1_ENABLE, 2);
	let_in();
	expect("interrupts", came, 1);
	in8(COM1_IDENTIFY);
	expect("remote IRR", entry(SERIAL_PIN) & REMOTE_IRR, REMOTE_IRR);
	reg_write(IOAPIC_END, SERIAL_VECTOR);
	expect("ended by vector", entry(SERIAL_PIN) & REMOTE_IRR, 0);
	keep_in_service = 0;
	apic_write(APIC_EOI, 0);
	out8(COM1_ENABLE, 0);
	out8(COM1_MODEM, modem);
	route(SERIAL_PIN, MASKED);
	verdict("ioapic.end_register");
}

void test_io_apic(void)
{
	registers();
	edges();
	levels();
}
