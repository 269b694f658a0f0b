/* User mode at privilege 3: system calls go straight through, its faults come to us. */
#include "check.h"
#include "kernel.h"

extern const u8 user_code[], user_segments[], user_call[], user_read[], user_privileged[],
	user_spin[], user_code_end[];

static u32 user_table[1024] __attribute__((aligned(4096)));
static u8 code_page[4096] __attribute__((aligned(4096)));
static u8 stack_page[4096] __attribute__((aligned(4096)));

static u32 address(const u8 *program)
{
	return USER_CODE + (u32)(program - user_code);
}

static void run(const u8 *program, u32 irq_enabled)
{
	trap_forget();
	user_result = 0xdead;
	user_enter(address(program), USER_STACK_TOP, irq_enabled);
}

static void expect_user_frame(u32 vector, u32 ip)
{
	expect("vector", last_trap.vector, vector);
	expect("eip", last_trap.ip, ip);
	expect("cs", last_trap.cs, SEL_USER_CODE);
	expect("ss", last_trap.ss, SEL_USER_DATA);
	expect("esp", last_trap.sp, USER_STACK_TOP);
	expect("frame", last_trap.frame, (u32)(trap_stack + sizeof trap_stack) - 20);
}

void test_user(void)
{
	u8 *to = code_page;

	for (const u8 *from = user_code; from < user_code_end; from++)
		*to++ = *from;
	user_table[USER_CODE >> 12 & 1023] = physical(code_page) | 7;
	user_table[(USER_STACK_TOP - 4096) >> 12 & 1023] = physical(stack_page) | 7;
	directory[USER_CODE >> 22] = physical(user_table) | 7;
	hypercall(LHCALL_SET_PGD, physical(directory), USER_CODE >> 22, 0, 0);

	run(user_segments, 0);
	expect_user_frame(SYSTEM_CALL, address(user_call));
	expect("cs and ss", user_result, SEL_USER_DATA << 16 | SEL_USER_CODE);
	verdict("user.system_call");

	run(user_call, 0);
	expect("sum", user_result, 42);
	verdict("user.call_returns");

	run(user_read, 0);
	expect_user_frame(PAGE_FAULT, address(user_read));
	expect("error", last_trap.error, 5);
	expect("cr2", last_trap.cr2, KERNEL_BASE + 0x100000);
	verdict("user.page_fault");

	run(user_privileged, 0);
	expect_user_frame(GENERAL_PROTECTION, address(user_privileged));
	expect("error", last_trap.error, 0);
	verdict("user.privileged");

	tick_word = (volatile u32 *)(stack_page + sizeof stack_page - 64);
	ticks = 0;
	lguest_data.blocked_interrupts = 0;
	hypercall(LHCALL_SET_CLOCKEVENT, 1000000, 0, 0, 0);
	run(user_spin, FLAG_IF);
	irq_disable();
	tick_word = 0;
	expect("ticks", ticks, 1);
	expect("interrupted cs", tick_trap.cs, SEL_USER_CODE);
	expect("interrupted esp", tick_trap.sp, USER_STACK_TOP);
	expect("frame", tick_trap.frame, (u32)(trap_stack + sizeof trap_stack) - 20);
	verdict("user.interrupted");
}
