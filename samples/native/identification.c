/*
 * Identification, model-specific registers, time stamps and optional features.
 *
 * A feature that the processor does not advertise must raise #UD, one that it does
 * advertise must work: either way there is a definite right answer, so the transcript
 * does not depend on the processor.
 */
#include "check.h"
#include "control.h"
#include "tests.h"
#include "traps.h"

static u8 save_area[4096] __attribute__((aligned(64)));

static int advertised(u32 leaf, int reg, int bit)
{
	struct cpuid r = cpuid(leaf & 0x80000000, 0);
	u32 word;

	if (r.eax < leaf)
		return 0;
	r = cpuid(leaf, leaf == 0xd || (leaf == 7 && reg == 'a') ? 1 : 0);
	word = reg == 'a' ? r.eax : reg == 'b' ? r.ebx : reg == 'c' ? r.ecx : r.edx;
	return word >> bit & 1;
}

/* The instruction just probed must have worked if the feature is there, else #UD. */
static void expect_feature(const char *what, int there)
{
	expect(what, last_trap.vector, there ? NO_TRAP : INVALID_OPCODE);
}

static void identify(void)
{
	struct cpuid a = cpuid(0, 0), b = cpuid(0, 0);

	expect_that("leaf 1 exists", a.eax >= 1);
	expect("leaf 0 eax again", b.eax, a.eax);
	expect("leaf 0 ebx again", b.ebx, a.ebx);
	expect("leaf 0 ecx again", b.ecx, a.ecx);
	expect("leaf 0 edx again", b.edx, a.edx);
	a = cpuid(1, 0);
	b = cpuid(1, 0);
	expect("leaf 1 eax again", b.eax, a.eax);
	expect("FPU PSE TSC MSR", a.edx & 0x39, 0x39);
	verdict("cpuid.stable");
}

static void time_stamps(void)
{
	u64 first = tsc_read(), second = tsc_read();
	u32 low = 0, high = 0, aux = 0;

	expect_that("first <= second", first <= second);
	verdict("tsc.monotonic");

	first = tsc_read();
	PROBE("rdtscp", ("+a"(low), "+d"(high), "+c"(aux)), ());
	expect_feature("rdtscp", advertised(0x80000001, 'd', 27));
	if (last_trap.vector == NO_TRAP)
		expect_that("rdtsc <= rdtscp", first <= ((u64)high << 32 | low));
	verdict("tsc.rdtscp");

	/* Which counters exist differs: a value, or one of two faults, is what may happen. */
	PROBE("rdpmc", ("+a"(low), "+d"(high)), ("c"(0)));
	expect_that("value, #GP or #UD", last_trap.vector == NO_TRAP ||
		    last_trap.vector == GENERAL_PROTECTION || last_trap.vector == INVALID_OPCODE);
	verdict("pmc.defined");
}

static void registers(void)
{
	if (advertised(1, 'd', 11)) { /* SYSENTER's registers are plain storage */
		msr_write(MSR_SYSENTER_SP, 0x123450);
		msr_write(MSR_SYSENTER_IP, 0x456780);
		expect("sysenter sp", msr_read(MSR_SYSENTER_SP), 0x123450);
		expect("sysenter ip", msr_read(MSR_SYSENTER_IP), 0x456780);
		msr_write(MSR_SYSENTER_SP, 0);
		msr_write(MSR_SYSENTER_IP, 0);
		expect("sysenter sp", msr_read(MSR_SYSENTER_SP), 0);
	}
	verdict("msr.sysenter");

	/* WRMSR without the serialization, where there is such a thing. */
	PROBE("wrmsrns", (), ("c"(MSR_SYSENTER_SP), "a"(0), "d"(0)));
	expect_feature("wrmsrns", advertised(7, 'a', 19));
	verdict("msr.wrmsrns");
}

static void extended_state(void)
{
	int xsave = advertised(1, 'c', 26), compact = xsave && advertised(0xd, 'a', 3);
	ulong cr4 = cr4_read();
	u32 low = 0, high = 0;

	if (xsave) {
		cr4_write(cr4 | CR4_OSXSAVE);
		expect("OSXSAVE in cpuid", (ulong)advertised(1, 'c', 27), 1);
	}
	PROBE("xgetbv", ("+a"(low), "+d"(high)), ("c"(0)));
	expect_feature("xgetbv", xsave);
	if (xsave)
		expect("x87 in xcr0", low & 1, 1);
	else
		low = 1;
	PROBE("xsetbv", (), ("a"(low), "d"(high), "c"(0)));
	expect_feature("xsetbv", xsave);
	if (xsave) { /* x87 state cannot be switched off */
		PROBE("xsetbv", (), ("a"(0), "d"(0), "c"(0)));
		expect("xsetbv of 0", last_trap.vector, GENERAL_PROTECTION);
	}
	verdict("xcr.read_write");

	PROBE("xsaves (%0)", (), ("r"(save_area), "a"(1), "d"(0)));
	expect_feature("xsaves", compact);
	PROBE("xrstors (%0)", (), ("r"(save_area), "a"(1), "d"(0)));
	expect_feature("xrstors", compact);
#ifdef __x86_64__
	PROBE("xsaves64 (%0)", (), ("r"(save_area), "a"(1), "d"(0)));
	expect_feature("xsaves64", compact);
	PROBE("xrstors64 (%0)", (), ("r"(save_area), "a"(1), "d"(0)));
	expect_feature("xrstors64", compact);
#endif
	cr4_write(cr4);
	verdict("xsaves.save_restore");
}

static void access_control(void)
{
	int smap = advertised(7, 'b', 20);
	ulong flags = 0;

	PROBE("stac", (), ());
	expect_feature("stac", smap);
	asm volatile("pushf; pop %0" : "=r"(flags));
	if (smap)
		expect("AC", flags & FLAG_AC, FLAG_AC);
	PROBE("clac", (), ());
	expect_feature("clac", smap);
	asm volatile("pushf; pop %0" : "=r"(flags));
	expect("AC", flags & FLAG_AC, 0);
	verdict("smap.stac_clac");
}

static void caches(void)
{
	static volatile u32 word = 0xfeedface;

	asm volatile("wbinvd" : : : "memory");
	expect("memory", word, 0xfeedface);
	asm volatile("wbinvd; invd" : : : "memory");
	expect("memory", word, 0xfeedface);
	asm volatile("wbnoinvd" : : : "memory"); /* WBINVD to processors that do not know it */
	expect("memory", word, 0xfeedface);
	verdict("cache.wbinvd_invd");
}

static void invalidate_contexts(void)
{
	static const struct {
		u64 context, address;
	} all = { 0, 0 };

	/* Kind 2: every context, global pages too. */
	PROBE("invpcid %0, %1", (), ("m"(all), "r"(2ul)));
	expect_feature("invpcid", advertised(7, 'b', 10));
	verdict("tlb.invpcid");
}

void test_identification(void)
{
	identify();
	time_stamps();
	registers();
	extended_state();
	access_control();
	caches();
	invalidate_contexts();
}
