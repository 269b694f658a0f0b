/* The other registers through which KVM learns where the guest keeps what they share. */
#include "check.h"
#include "kvm.h"

static volatile struct steal_time steal __attribute__((aligned(64)));
static volatile u32 eoi __attribute__((aligned(4)));

static void stolen(void)
{
	u64 before, value;

	if (!kvm_has(STEAL_TIME)) {
		skipped("msr.steal_time", "not advertised");
		return;
	}
	steal.flags = 0xffffffff;
	expect("write", msr_try_write(MSR_STEAL_TIME, (u64)&steal | 1), NO_TRAP);
	expect("read", msr_try_read(MSR_STEAL_TIME, &value), NO_TRAP);
	expect("value", value, (u64)&steal | 1);
	hypercall(HC_VAPIC_POLL_IRQ, 0, 0, 0, 0);
	expect("version is even", steal.version & 1, 0);
	expect("we are running", steal.preempted & 1, 0);
	before = steal.steal;
	for (u32 i = 0; i < 20; i++)
		hypercall(HC_VAPIC_POLL_IRQ, 0, 0, 0, 0);
	expect_that("never backwards", steal.steal >= before);
	expect("reserved bits", msr_try_write(MSR_STEAL_TIME, (u64)&steal | 3), GENERAL_PROTECTION);
	expect("switching off", msr_try_write(MSR_STEAL_TIME, 0), NO_TRAP);
	verdict("msr.steal_time");
}

static void end_of_interrupt(void)
{
	if (!kvm_has(PV_EOI)) {
		skipped("msr.pv_eoi", "not advertised");
		return;
	}
	expect("write", msr_try_write(MSR_PV_EOI_EN, (u64)&eoi | 1), NO_TRAP);
	hypercall(HC_VAPIC_POLL_IRQ, 0, 0, 0, 0);
	expect("no interrupt, nothing to skip", eoi & 1, 0);
	expect("reserved bits", msr_try_write(MSR_PV_EOI_EN, (u64)&eoi | 3), GENERAL_PROTECTION);
	expect("switching off", msr_try_write(MSR_PV_EOI_EN, 0), NO_TRAP);
	verdict("msr.pv_eoi");
}

static void polling(void)
{
	u64 value;

	if (!kvm_has(POLL_CONTROL)) {
		skipped("msr.poll_control", "not advertised");
		return;
	}
	expect("read", msr_try_read(MSR_POLL_CONTROL, &value), NO_TRAP);
	expect("on at first", value, 1);
	expect("write", msr_try_write(MSR_POLL_CONTROL, 0), NO_TRAP);
	msr_try_read(MSR_POLL_CONTROL, &value);
	expect("off", value, 0);
	expect("reserved bits", msr_try_write(MSR_POLL_CONTROL, 2), GENERAL_PROTECTION);
	msr_try_write(MSR_POLL_CONTROL, 1);
	verdict("msr.poll_control");
}

static void page_faults(void)
{
	u64 value;

	if (!kvm_has(ASYNC_PF_INT)) {
		skipped("msr.async_pf", "not advertised");
		return;
	}
	expect("write", msr_try_write(MSR_ASYNC_PF_INT, 0xf3), NO_TRAP);
	msr_try_read(MSR_ASYNC_PF_INT, &value);
	expect("vector", value, 0xf3);
	expect("reserved bits", msr_try_write(MSR_ASYNC_PF_EN, 0x30), GENERAL_PROTECTION);
	verdict("msr.async_pf");
}

static void unknown(void)
{
	u64 value;

	expect("read", msr_try_read(MSR_NO_SUCH, &value), GENERAL_PROTECTION);
	expect("error code", last_trap.error, 0);
	expect("write", msr_try_write(MSR_NO_SUCH, 0), GENERAL_PROTECTION);
	verdict("msr.unknown");
}

void test_registers(void)
{
	stolen();
	end_of_interrupt();
	polling();
	page_faults();
	unknown();
}
