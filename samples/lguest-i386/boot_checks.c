/* The state in which the host starts a guest, and what it says in the shared page. */
#include "check.h"
#include "kernel.h"

extern u32 boot_state[5];

/* Linux's boot parameters ("zero page"), at guest-physical 0 */
static const volatile u8 *const parameters = (const volatile u8 *)KERNEL_BASE;

static u32 parameter(u32 offset, u32 bytes)
{
	u32 value = 0;

	while (bytes--)
		value = value << 8 | parameters[offset + bytes];
	return value;
}

void test_boot(void)
{
	expect("cs", boot_state[0] & 0xffff, SEL_KERNEL_CODE);
	expect("ss", boot_state[1] & 0xffff, SEL_KERNEL_DATA);
	expect("ds", boot_state[2] & 0xffff, SEL_KERNEL_DATA);
	expect("esi", boot_state[3], 0);
	expect("IF", boot_state[4] & FLAG_IF, FLAG_IF); /* the real one is always set */
	verdict("boot.registers");

	expect("hardware_subarch", parameter(0x23c, 4), 1); /* lguest */
	expect_that("protocol 2.07", parameter(0x206, 2) >= 0x207);
	expect("KEEP_SEGMENTS", parameter(0x211, 1) & 0x40, 0x40);
	expect("e820 entries", parameter(0x1e8, 1), 1);
	expect("e820 start", parameter(0x2d0, 4), 0);
	expect_that("e820 size", parameter(0x2d8, 4) >= 0x800000);
	expect("e820 type", parameter(0x2e0, 4), 1);
	verdict("boot.parameters");

	expect_that("reserve_mem", lguest_data.reserve_mem != 0 &&
		    !(lguest_data.reserve_mem & 0xfff) && lguest_data.reserve_mem < 0x10000000);
	expect_that("time", lguest_data.time_seconds != 0 &&
		    lguest_data.time_nanoseconds < 1000000000);
	expect("irq_enabled untouched", lguest_data.irq_enabled, 0);
	expect("ring untouched", lguest_data.hcall_status[0], 0xff);
	verdict("boot.lguest_init");
}
