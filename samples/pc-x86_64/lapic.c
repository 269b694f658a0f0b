/* The local APIC: registers, interrupts to itself, priorities, NMI, and the 8259s through LINT0. */
#include "check.h"
#include "control.h"
#include "kernel.h"
#include "pc.h"

#define MSR_APIC_BASE 0x1b

static void there(void)
{
	expect("CPUID 1, EDX bit 9", cpuid(1, 0).edx >> 9 & 1, 1);
	expect("IA32_APIC_BASE", msr_read(MSR_APIC_BASE), APIC_BASE | 0x900);
	verdict("lapic.announced");
	expect("version register", apic_read(APIC_VERSION), 0x50014);
	verdict("lapic.version");
	expect("number", apic_read(APIC_ID) >> 24, 0);
	verdict("lapic.number");
}

static void enable(void)
{
	apic_write(APIC_SVR, 0x100 | SPURIOUS);
	expect("spurious vector", apic_read(APIC_SVR), 0x1ff);
	apic_write(APIC_TPR, 0x5a);
	expect("task priority", apic_read(APIC_TPR), 0x5a);
	expect("processor priority", apic_read(APIC_PPR), 0x5a);
	apic_write(APIC_TPR, 0);
	apic_write(APIC_LVT_ERROR, MASKED | 0xfe);
	expect("error entry", apic_read(APIC_LVT_ERROR), MASKED | 0xfe);
	apic_write(APIC_LDR, 0x02000000);
	expect("logical number", apic_read(APIC_LDR), 0x02000000);
	expect("destination format", apic_read(APIC_DFR), 0xffffffff);
	verdict("lapic.registers");
}

static void arrives(const char *name, u32 destination, u32 low, int wanted)
{
	forget();
	send_to(destination, low | 0x51);
	expect("requested", (u64)in_set(APIC_IRR, 0x51), (u64)wanted);
	let_in();
	expect("interrupts", came, (u64)wanted);
	if (wanted)
		expect("vector", vectors[0], 0x51);
	expect("in service at the end", (u64)in_set(APIC_ISR, 0x51), 0);
	verdict(name);
}

static void destinations(void)
{
	arrives("lapic.to_itself", 0, TO_SELF | ASSERT, 1);
	arrives("lapic.to_all", 0, TO_ALL | ASSERT, 1);
	arrives("lapic.to_others", 0, TO_OTHERS | ASSERT, 0);
	arrives("lapic.by_number", 0, ASSERT, 1);
	arrives("lapic.by_number_of_nobody", 7, ASSERT, 0);
	arrives("lapic.broadcast", 0xff, ASSERT, 1);
	arrives("lapic.logical", 2, ASSERT | LOGICAL, 1);
	arrives("lapic.logical_of_nobody", 4, ASSERT | LOGICAL, 0);
}

static void priorities(void)
{
	forget();
	send(TO_SELF | ASSERT | 0x51);
	send(TO_SELF | ASSERT | 0x72);
	send(TO_SELF | ASSERT | 0x71);
	let_in();
	expect("interrupts", came, 3);
	expect("first", vectors[0], 0x72);
	expect("second", vectors[1], 0x71);
	expect("third", vectors[2], 0x51);
	verdict("lapic.highest_first");

	forget();
	keep_in_service = 1;
	send(TO_SELF | ASSERT | 0x61);
	let_in();
	expect("interrupts", came, 1);
	expect("in service", (u64)in_set(APIC_ISR, 0x61), 1);
	expect("requested", (u64)in_set(APIC_IRR, 0x61), 0);
	expect("processor priority", apic_read(APIC_PPR), 0x60);
	send(TO_SELF | ASSERT | 0x62);
	let_in();
	expect("the same class", came, 1);
	send(TO_SELF | ASSERT | 0x71);
	let_in();
	expect("a higher class", came, 2);
	keep_in_service = 0;
	apic_write(APIC_EOI, 0);
	expect("after one end", apic_read(APIC_PPR), 0x60);
	apic_write(APIC_EOI, 0);
	let_in();
	expect("after the other", came, 3);
	expect("vector", vectors[2], 0x62);
	expect("processor priority at the end", apic_read(APIC_PPR), 0);
	verdict("lapic.in_service");

	forget();
	send(TO_SELF | ASSERT | 0x51);
	send(TO_SELF | ASSERT | 0x51);
	let_in();
	expect("interrupts", came, 1);
	verdict("lapic.requests_merge");
}

static void task_priority(void)
{
	ulong held;

	forget();
	apic_write(APIC_TPR, 0x50);
	send(TO_SELF | ASSERT | 0x5f);
	let_in();
	expect("held back", came, 0);
	send(TO_SELF | ASSERT | 0x60);
	let_in();
	expect("a higher class", came, 1);
	apic_write(APIC_TPR, 0x4f);
	let_in();
	expect("let in", came, 2);
	apic_write(APIC_TPR, 0);
	verdict("lapic.task_priority");

	forget();
	asm volatile("mov %0, %%cr8" : : "r"(5ul) : "memory");
	expect("task priority", apic_read(APIC_TPR), 0x50);
	send(TO_SELF | ASSERT | 0x51);
	let_in();
	expect("held back", came, 0);
	asm volatile("mov %%cr8, %0" : "=r"(held));
	expect("CR8", held, 5);
	apic_write(APIC_TPR, 0x40);
	asm volatile("mov %%cr8, %0" : "=r"(held));
	expect("CR8", held, 4);
	let_in();
	expect("let in", came, 1);
	asm volatile("mov %0, %%cr8" : : "r"(0ul) : "memory");
	verdict("lapic.cr8");
}

static void again(u8 vector)
{
	if (vector == NMI_VECTOR && came == 1)
		send(TO_SELF | ASSERT | DELIVER_NMI);
	if (vector == NMI_VECTOR && came == 1)
		expect("inside the first", came, 1);
}

static void nmi(void)
{
	forget();
	send_to(0, ASSERT | DELIVER_NMI);
	expect("interrupts", came, 1);
	expect("vector", vectors[0], NMI_VECTOR);
	verdict("lapic.nmi_with_interrupts_off");
	forget();
	on_interrupt = again;
	send_to(0, ASSERT | DELIVER_NMI);
	on_interrupt = 0;
	pm_wait(PM_MS);
	expect("NMIs", came, 2);
	verdict("lapic.nmi_waits_for_iret");
}

static void through_lint0(void)
{
	forget();
	apic_write(APIC_LINT0, DELIVER_EXTINT);
	out8(PORT_PIC1_MASK, 0xfe);
	pit_once(1193);
	expect_that("the 8254 through the 8259", await(1));
	expect("vector", vectors[0], PIC_BASE);
	forget();
	apic_write(APIC_LINT0, MASKED | DELIVER_EXTINT);
	pit_once(1193);
	pm_wait(5 * PM_MS);
	let_in();
	expect("while masked", came, 0);
	apic_write(APIC_LINT0, DELIVER_EXTINT);
	let_in();
	expect("when unmasked", came, 1);
	out8(PORT_PIC1_MASK, 0xff);
	apic_write(APIC_LINT0, MASKED | DELIVER_EXTINT);
	pit_stop();
	verdict("lapic.lint0_passes_the_8259");
}

void test_local_apic(void)
{
	there();
	enable();
	destinations();
	priorities();
	task_priority();
	nmi();
	through_lint0();
}
