/* The interval timer and the interrupt controllers: waiting, masking, waking. */
#include "check.h"
#include "control.h"
#include "pc.h"
#include "tests.h"
#include "traps.h"

volatile u32 ticks;
volatile ulong tick_flags;
volatile struct trap_record tick_trap;
volatile u32 *tick_word;

void interrupts_init(void)
{
	static const u8 words[][2] = {
		/* ICW1 edge, cascade; ICW2 first vector; ICW3 wiring; ICW4 8086 mode */
		{ PORT_PIC1, 0x11 }, { PORT_PIC1_MASK, IRQ_BASE },
		{ PORT_PIC1_MASK, 4 }, { PORT_PIC1_MASK, 1 },
		{ PORT_PIC2, 0x11 }, { PORT_PIC2_MASK, IRQ_BASE + 8 },
		{ PORT_PIC2_MASK, 2 }, { PORT_PIC2_MASK, 1 },
		{ PORT_PIC2_MASK, 0xff }, { PORT_PIC1_MASK, 0xfe }, /* only IRQ 0 */
		{ PORT_PIC1, 0x0a }, /* OCW3: reads of the command port show the requests */
	};

	for (u32 i = 0; i < ARRAY_LENGTH(words); i++)
		out8(words[i][0], words[i][1]);
	timer_stop();
}

void timer_interrupt(void)
{
	ticks++;
	tick_flags = flags_read();
	tick_trap = last_trap;
	if (tick_word)
		*tick_word = 1;
	out8(PORT_PIC1, 0x20); /* end of interrupt */
}

static void timer_program(u8 mode, u16 count)
{
	out8(PORT_PIT_MODE, mode);
	out8(PORT_PIT_CHANNEL0, (u8)count);
	out8(PORT_PIT_CHANNEL0, (u8)(count >> 8));
}

void timer_once(u16 count)
{
	timer_program(0x30, count); /* mode 0: output rises once, at the end of the count */
}

void timer_stop(void)
{
	out8(PORT_PIT_MODE, 0x30); /* mode 0 and no count: the output stays low */
}

static int requested(void)
{
	return in8(PORT_PIC1) & 1;
}

/* Waits, with interrupts off, until IRQ 0 is requested; false if it never comes. */
static int await_request(void)
{
	for (u32 i = 0; i < 100000; i++) {
		if (requested())
			return 1;
		for (u32 j = 0; j < 200; j++)
			asm volatile("pause");
	}
	return 0;
}

static void periodic(void)
{
	ticks = 0;
	timer_program(0x34, 1193); /* mode 2: about a thousand times a second */
	while (ticks < 5)
		asm volatile("sti; hlt; cli" : : : "memory");
	timer_stop();
	expect("ticks", ticks, 5);
	expect("IF inside the handler", tick_flags & FLAG_IF, 0);
	verdict("timer.periodic_hlt");
}

static void counting(void)
{
	u32 first, second = 0;

	timer_program(0x34, 0xffff);
	out8(PORT_PIT_MODE, 0); /* latch channel 0 */
	first = in8(PORT_PIT_CHANNEL0);
	first |= (u32)in8(PORT_PIT_CHANNEL0) << 8;
	for (u32 i = 0; i < 10000; i++) {
		out8(PORT_PIT_MODE, 0);
		second = in8(PORT_PIT_CHANNEL0);
		second |= (u32)in8(PORT_PIT_CHANNEL0) << 8;
		if (second != first)
			break;
	}
	timer_stop();
	expect_that("counter moves", first != second);
	verdict("timer.counter_moves");
}

static void pending(void)
{
	ulong flags;

	ticks = 0;
	irq_disable();
	timer_once(100);
	expect_that("a request", await_request());
	expect("ticks while off", ticks, 0);
	asm volatile("sti; nop; nop; cli" : : : "memory");
	expect("ticks after sti", ticks, 1);
	expect("IF in the frame", last_trap.flags & FLAG_IF, FLAG_IF);
	verdict("timer.pending_until_sti");

	irq_enable();
	flags = flags_read();
	irq_disable();
	timer_once(100);
	expect_that("a request", await_request());
	expect("ticks while off", ticks, 1);
	flags_write(flags);
	asm volatile("nop; cli" : : : "memory");
	expect("ticks after popf", ticks, 2);
	verdict("timer.pending_until_popf");

	/* The wake-up must not fall between STI and HLT: it would be lost and the halt endless. */
	timer_once(100);
	expect_that("a request", await_request());
	asm volatile("sti; hlt; cli" : : : "memory");
	expect("ticks after hlt", ticks, 3);
	verdict("timer.sti_hlt_is_atomic");
}

/* The other way to wait: for a write to a line of memory, or for an interrupt. */
static void monitored(void)
{
	static volatile u32 line[16] __attribute__((aligned(64)));
	int there = cpuid(1, 0).ecx >> 3 & 1;
	ulong wanted = there ? NO_TRAP : INVALID_OPCODE;

	PROBE("monitor", (), ("a"(line), "c"(0), "d"(0)));
	expect("monitor", last_trap.vector, wanted);
	ticks = 0;
	timer_once(1000);
	do { /* it may come back early, so the reason is checked */
		PROBE("monitor", (), ("a"(line), "c"(0), "d"(0)));
		PROBE("sti; mwait", (), ("a"(0), "c"(0)));
		irq_disable();
		if (ticks == 0)
			expect("mwait", last_trap.vector, wanted);
	} while (there && ticks == 0);
	timer_stop();
	if (!there) {
		PROBE("mwait", (), ("a"(0), "c"(0)));
		expect("mwait alone", last_trap.vector, wanted);
	}
	expect("IF", flags_read() & FLAG_IF, 0);
	verdict("timer.monitor_mwait");
}

static void masked(void)
{
	ticks = 0;
	out8(PORT_PIC1_MASK, 0xff);
	timer_once(100);
	expect_that("a request", await_request());
	asm volatile("sti; nop; nop; nop; cli" : : : "memory");
	expect("ticks while masked", ticks, 0);
	out8(PORT_PIC1_MASK, 0xfe);
	asm volatile("sti; nop; nop; nop; cli" : : : "memory");
	expect("ticks after unmasking", ticks, 1);
	verdict("timer.masked_in_controller");
}

void test_timer(void)
{
	periodic();
	counting();
	pending();
	masked();
	monitored();
}
