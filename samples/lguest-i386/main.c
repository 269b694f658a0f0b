/* A guest written for lguest's own interface, for checking whoever claims to offer it. */
#include "check.h"
#include "kernel.h"

/* The console is a hypercall with the guest-physical address of a string. */
void console_line(const char *text)
{
	static char buffer[162];
	u32 length = 0;

	while (*text && length < sizeof buffer - 2)
		buffer[length++] = *text++;
	buffer[length++] = '\n';
	buffer[length] = 0;
	hypercall(LHCALL_NOTIFY, physical(buffer), 0, 0, 0);
}

_Noreturn void kernel_main(void);
void kernel_main(void)
{
	say("lguest-i386");
	test_boot();
	traps_init();
	test_tables();
	test_traps();
	test_memory();
	test_user();
	test_interrupts();
	test_ring();
	summary();
	for (;;)
		hypercall(LHCALL_SHUTDOWN, physical("end of the sample"),
			  LGUEST_SHUTDOWN_POWEROFF, 0, 0);
}
