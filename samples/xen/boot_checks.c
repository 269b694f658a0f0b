/* The state in which the domain builder starts a guest, and what it says there. */
#include "check.h"
#include "kernel.h"

extern ulong boot_state[3];

void test_boot(void)
{
	static const char magic[] = AT_WIDTH("xen-3.0-x86_32p", "xen-3.0-x86_64");
	int same = 1;

	for (u32 i = 0; i < sizeof magic - 1; i++)
		same &= start_info->magic[i] == magic[i];
	expect_that("magic", same);
	expect_that("pages", start_info->nr_pages > 1024);
	expect("tables are whole pages", start_info->pt_base & 4095, 0);
	expect_that("number of tables", start_info->nr_pt_frames >= 3);
	expect_that("above the base", start_info->mfn_list >= KERNEL_BASE &&
		    start_info->pt_base > start_info->mfn_list);
	verdict("boot.start_info");

	expect("cs", boot_state[1] & 0xffff, FLAT_KERNEL_CODE);
	expect("ss", boot_state[2] & 0xffff, FLAT_KERNEL_STACK);
	expect_that("stack in a page behind the tables", boot_state[0] > start_info->pt_base);
	verdict("boot.registers");

	expect("events are off", shared->vcpu_info[0].upcall_mask, 1);
	expect_that("time of day", shared->wc_sec != 0 && !(shared->wc_version & 1) &&
		    shared->wc_nsec < 1000000000);
	verdict("boot.shared_info");
	PROBE("fninit", (), ()); /* the toolstack's TS is clear */
	expect("vector", last_trap.vector, NO_TRAP);
	verdict("boot.fpu");
}
