/* A kernel that does once what kernels do, and says whether it went right. */
#include "check.h"
#include "pc.h"
#include "tests.h"
#include "traps.h"

_Noreturn void kernel_main(void);
void kernel_main(void)
{
	say("native-x86_64");
	traps_init();
	interrupts_init();
	test_flags();
	test_segments();
	test_traps();
	test_control();
	test_identification();
	test_ports();
	test_timer();
	test_tight();
	test_paging();
	test_user();
	summary();
	power_off();
}
