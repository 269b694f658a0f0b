/* A guest written for Xen's own interface, for comparing whoever claims to be Xen. */
#include "check.h"
#include "kernel.h"

void console_line(const char *text)
{
	static char buffer[162];
	u32 length = 0;

	while (*text && length < sizeof buffer - 1)
		buffer[length++] = *text++;
	buffer[length++] = '\n';
	HC3(console_io, 0, length, buffer);
}

int is_initial_domain(void)
{
	return (start_info->flags & SIF_INITDOMAIN) != 0;
}

_Noreturn void kernel_main(void);
void kernel_main(void)
{
	static u32 power_off;

	say("xen-x86_64");
	traps_init();
	shared_info_map();
	test_boot();
	test_version();
	test_tables();
	test_traps();
	test_memory();
	test_mapping();
	test_user();
	test_events();
	test_time();
	test_virtual_cpu();
	test_others();
	summary();
	for (;;)
		HC2(sched_op, SCHED_SHUTDOWN, &power_off);
}
