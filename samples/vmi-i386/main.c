/* A guest written for VMI, for checking whoever claims to offer it. */
#include "kernel.h"
#include "pc.h"

/* The serial line: natively until the ROM's calls are there. */
static u8 status(void)
{
	return vmi_entry[VMI_INB] ? (u8)vmi(VMI_INB, 0, PORT_COM1_STATUS, 0) : in8(PORT_COM1_STATUS);
}

static void put(char c)
{
	while (!(status() & 0x20)) /* transmitter holding register empty */
		;
	if (vmi_entry[VMI_OUTB])
		vmi(VMI_OUTB, (u8)c, PORT_COM1, 0);
	else
		out8(PORT_COM1, (u8)c);
}

void console_line(const char *text)
{
	while (*text)
		put(*text++);
	put('\n');
}

_Noreturn void kernel_main(void);
void kernel_main(void)
{
	say("vmi-i386");
	traps_init();
	paging_init();
	find_rom();
	if (vrom) {
		start_vmi();
		test_registers();
		test_tables();
		test_interrupts();
		test_memory();
		test_user();
		test_ports();
		test_time();
		test_conventions();
	}
	summary();
	if (vmi_entry[VMI_Shutdown])
		vmi0(VMI_Shutdown);
	for (;;)
		out16(PORT_ACPI_CONTROL, 0x2000);
}
