/* Ports at every size, string calls, and the APIC that is not there. */
#include "kernel.h"
#include "pc.h"

static void expect_empty(enum vmi_call call, u32 want)
{
	u32 r[7] = { 0x12345678, 0, PORT_UNCLAIMED, 0, 0, 0, 0 };

	vmi_registers(vmi_entry[call], r);
	expect("eax", r[0], want);
	expect("edx stays", r[2], PORT_UNCLAIMED);
}

static void strings(enum vmi_call in, enum vmi_call out, u32 size)
{
	static u32 buffer[8] __attribute__((aligned(16)));
	u32 r[7] = { 0, 3, PORT_UNCLAIMED, 0, 0, (u32)buffer, 0 };

	for (u32 i = 0; i < 8; i++)
		buffer[i] = 0;
	vmi_registers(vmi_entry[in], r);
	expect("ecx", r[1], 0);
	expect("edi", r[5], (u32)buffer + 3 * size);
	for (u32 i = 0; i < 16; i++)
		expect("bytes", ((u8 *)buffer)[i], i < 3 * size ? 0xff : 0);
	r[1] = 3;
	r[4] = (u32)buffer + 2 * size;
	r[6] = FLAG_DF;
	vmi_registers(vmi_entry[out], r);
	expect("ecx", r[1], 0);
	expect("esi downwards", r[4], (u32)buffer - size);
}

void test_ports(void)
{
	expect_empty(VMI_INB, 0x123456ff);
	expect_empty(VMI_INW, 0x1234ffff);
	expect_empty(VMI_INL, 0xffffffff);
	vmi(VMI_OUTB, 0x5a, PORT_COM1_SCRATCH, 0);
	expect("scratch register", vmi(VMI_INB, 0, PORT_COM1_SCRATCH, 0) & 0xff, 0x5a);
	vmi(VMI_OUTW, 0xffff, PORT_UNCLAIMED, 0);
	vmi(VMI_OUTL, 0x80000000, PORT_PCI_ADDRESS, 0);
	expect("pci address", (u32)vmi(VMI_INL, 0, PORT_PCI_ADDRESS, 0), 0x80000000);
	verdict("ports.in_out");

	strings(VMI_INSB, VMI_OUTSB, 1);
	strings(VMI_INSW, VMI_OUTSW, 2);
	strings(VMI_INSL, VMI_OUTSL, 4);
	verdict("ports.strings");

	PROBE("call *%0", (), ("r"(vmi_entry[VMI_INSB]), "D"(UNMAPPED), "c"(1), "d"(PORT_UNCLAIMED)));
	expect("vector", last_trap.vector, PAGE_FAULT);
	expect("cr2", last_trap.cr2, UNMAPPED);
	verdict("ports.bad_pointer");

	io_delay();
	vmi(VMI_APICWrite, 0xfee00080, 0x10, 0);
	expect("no task priority", (u32)vmi(VMI_APICRead, 0xfee00080, 0, 0), 0);
	vmi(VMI_APICWrite, 0xfee00320, LVTT_VECTOR, 0);
	expect("the timer's vector", (u32)vmi(VMI_APICRead, 0xfee00320, 0, 0), LVTT_VECTOR);
	vmi(VMI_APICWrite, 0xfee00320, 0x10000, 0);
	verdict("ports.apic");
}
