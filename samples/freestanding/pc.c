/* The serial console and the way out of the machine. */
#include "check.h"
#include "pc.h"

static void serial_put(char c)
{
	while (!(in8(PORT_COM1_STATUS) & 0x20)) /* transmitter holding register empty */
		;
	out8(PORT_COM1, (u8)c);
}

void console_line(const char *text)
{
	while (*text)
		serial_put(*text++);
	serial_put('\n');
}

void power_off(void)
{
	out16(PORT_ACPI_CONTROL, 0x2000); /* PM1a control: SLP_EN, type 0 */
	out8(PORT_DEBUG_EXIT, 0);
	for (;;)
		asm volatile("cli; hlt");
}
