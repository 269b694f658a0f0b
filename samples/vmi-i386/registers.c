/* Control, debug and model-specific registers, identification. */
#include "kernel.h"

static void control(void)
{
	u32 cr0 = (u32)vmi0(VMI_GetCR0), cr4 = (u32)vmi0(VMI_GetCR4);

	expect("cr0 PG and PE", cr0 & 0x80000001, 0x80000001);
	expect("cr0 WP", cr0 & 0x10000, 0x10000);
	expect("cr4 PAE", cr4 & 0x20, entry_size == 8 ? 0x20 : 0);
	expect("cr3", (u32)vmi0(VMI_GetCR3), root);
	vmi(VMI_SetCR0, cr0 | 8, 0, 0);
	expect("TS set", (u32)vmi0(VMI_GetCR0), cr0 | 8);
	vmi(VMI_SetCR0, cr0 & ~8u, 0, 0);
	expect("TS clear", (u32)vmi0(VMI_GetCR0), cr0 & ~8u);
	vmi(VMI_SetCR0, 0, 0, 0); /* what cannot be off stays on */
	expect("PG and PE stay", (u32)vmi0(VMI_GetCR0) & 0x80000001, 0x80000001);
	vmi(VMI_SetCR0, cr0, 0, 0);
	vmi(VMI_SetCR4, cr4 | 0x200, 0, 0);
	expect("cr4 OSFXSR", (u32)vmi0(VMI_GetCR4), cr4 | 0x200);
	vmi(VMI_SetCR4, cr4, 0, 0);
	vmi(VMI_SetCR2, 0x12345678, 0, 0);
	expect("cr2", (u32)vmi0(VMI_GetCR2), 0x12345678);
	verdict("registers.control");

	vmi(VMI_SetCR0, cr0 | 8, 0, 0);
	PROBE("fnop", (), ());
	expect("vector with TS", last_trap.vector, NO_DEVICE);
	vmi0(VMI_CLTS);
	PROBE("fnop", (), ());
	expect("vector after CLTS", last_trap.vector, NO_TRAP);
	expect("TS after CLTS", (u32)vmi0(VMI_GetCR0) & 8, 0);
	verdict("registers.clts");
}

static void debug(void)
{
	for (u32 n = 0; n < 4; n++)
		vmi(VMI_SetDR, n, 0x1000 * n + 1, 0);
	for (u32 n = 0; n < 4; n++)
		expect("debug register", (u32)vmi(VMI_GetDR, n, 0, 0), 0x1000 * n + 1);
	vmi(VMI_SetDR, 6, 0, 0);
	expect("dr6 with nothing set", (u32)vmi(VMI_GetDR, 6, 0, 0), 0xffff0ff0);
	vmi(VMI_SetDR, 7, 0, 0);
	expect("dr7 with nothing set", (u32)vmi(VMI_GetDR, 7, 0, 0), 0x400);
	vmi(VMI_SetDR, 1000, 1, 0);
	expect("no such register", (u32)vmi(VMI_GetDR, 1000, 0, 0), 0);
	verdict("registers.debug");
}

static void model_specific(void)
{
	vmi(VMI_WRMSR, 0x11111111, 0, 0x175); /* SYSENTER_ESP */
	expect("read back", vmi(VMI_RDMSR, 0, 0, 0x175), 0x11111111);
	vmi(VMI_WRMSR, 1, 2, 0xdeadbeef);
	expect("no such register", vmi(VMI_RDMSR, 0, 0, 0xdeadbeef), 0);
	expect_that("time-stamp counter", vmi(VMI_RDMSR, 0, 0, 0x10) != 0);
	expect("performance counter", vmi(VMI_RDPMC, 0, 0, 77), 0);
	verdict("registers.model_specific");
}

static void identification(void)
{
	u32 r[7] = { 0, 0, 0, 0, 0, 0, 0 }, eax = 0, ebx, ecx = 0, edx;
	u32 low, high, again, again_high;

	asm volatile("cpuid" : "+a"(eax), "=b"(ebx), "+c"(ecx), "=d"(edx));
	vmi_registers(vmi_entry[VMI_CPUID], r);
	expect("highest leaf", r[0], eax);
	expect("ecx", r[1], ecx);
	expect("edx", r[2], edx);
	expect("ebx", r[3], ebx);
	r[0] = 0xffffffff;
	vmi_registers(vmi_entry[VMI_CPUID], r);
	verdict("registers.cpuid");

	asm volatile("rdtsc" : "=a"(low), "=d"(high)); /* relocation NONE: natively */
	asm volatile("rdtsc" : "=a"(again), "=d"(again_high));
	expect("relocation", vmi_type[VMI_RDTSC], RELOCATION_NONE);
	expect_that("it counts", ((u64)again_high << 32 | again) > ((u64)high << 32 | low));
	vmi0(VMI_WBINVD);
	verdict("registers.rdtsc");
}

void test_registers(void)
{
	control();
	debug();
	model_specific();
	identification();
}
