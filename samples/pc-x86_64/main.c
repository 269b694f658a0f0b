/* What a PC offers besides its CPU, as kernels since 2005 look for it: is it there, and does it work? */
#include "check.h"
#include "kernel.h"
#include "pc.h"

_Noreturn void kernel_main(void);
void kernel_main(void)
{
	say("pc-x86_64");
	interrupts_init();
	test_tables();
	test_local_apic();
	test_timers();
	test_io_apic();
	summary();
	acpi_power_off();
}
