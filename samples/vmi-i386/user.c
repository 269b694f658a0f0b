/* User mode at privilege 3: the kernel's stack, system calls, its faults, SYSENTER and SYSEXIT. */
#include "kernel.h"

extern const u8 user_code[], user_segments[], user_call[], user_read[], user_privileged[],
	user_spin[], user_sysenter[], user_port[], user_code_end[];

static u8 code_page[4096] __attribute__((aligned(4096)));
static u8 stack_page[4096] __attribute__((aligned(4096)));

static u32 address(const u8 *program)
{
	return USER_CODE + (u32)(program - user_code);
}

static void run(const u8 *program, u32 flags)
{
	trap_forget();
	user_result = 0xdead;
	user_enter(address(program), USER_STACK_TOP, flags);
}

static void expect_user_frame(u32 vector, u32 ip, u32 stack)
{
	expect("vector", last_trap.vector, vector);
	expect("eip", last_trap.ip, ip);
	expect("cs", last_trap.cs, SEL_USER_CODE);
	expect("ss", last_trap.ss, SEL_USER_DATA);
	expect("esp", last_trap.sp, USER_STACK_TOP);
	expect("frame", last_trap.frame, stack);
}

static void fast(void)
{
	vmi(VMI_WRMSR, 0, 0, 0x174);
	PROBE("call *%0", (), ("r"(vmi_entry[VMI_SYSEXIT])), "ecx", "edx", "eax");
	expect("vector with no SYSENTER_CS", last_trap.vector, GENERAL_PROTECTION);
	vmi(VMI_WRMSR, SEL_KERNEL_CODE, 0, 0x174);
	vmi(VMI_WRMSR, (u32)(trap_stack + 4096), 0, 0x175);
	vmi(VMI_WRMSR, (u32)sysenter_entry, 0, 0x176);
	irq_disable();
	trap_forget();
	user_result = 0xdead;
	user_sysexit(address(user_segments), USER_STACK_TOP);
	expect_user_frame(SYSTEM_CALL, address(user_call), (u32)(trap_stack + sizeof trap_stack) - 20);
	expect("cs and ss", user_result, SEL_USER_DATA << 16 | SEL_USER_CODE);
	expect("IF", last_trap.flags & FLAG_IF, FLAG_IF);
	verdict("user.sysexit");

	irq_disable();
	user_sysexit(address(user_sysenter), USER_STACK_TOP);
	expect("result", user_result, 0x51);
	expect("cs", sysenter_cs, SEL_KERNEL_CODE | KERNEL_RPL);
	expect("esp", sysenter_esp, (u32)(trap_stack + 4096));
	expect("IF", irq_save() & FLAG_IF, 0);
	verdict("user.sysenter");
}

static void interrupted(void)
{
	u64 at;

	tick_word = (volatile u32 *)(stack_page + sizeof stack_page - 64);
	ticks = 0;
	pic_mask(0xfe);
	irq_disable();
	at = vmi(VMI_GetCycleCounter, VMI_REAL, 0, 0) + 100000;
	vmi5(VMI_SetAlarm, VMI_REAL, (u32)at, (u32)(at >> 32), 0, 0);
	run(user_spin, FLAG_IF | FLAG_ONE);
	irq_disable();
	tick_word = 0;
	expect("ticks", ticks, 1);
	expect("interrupted cs", tick_trap.cs, SEL_USER_CODE);
	expect("interrupted esp", tick_trap.sp, USER_STACK_TOP);
	verdict("user.interrupted");
}

void test_user(void)
{
	const u32 top = (u32)(trap_stack + sizeof trap_stack);
	u8 *to = code_page;

	for (const u8 *from = user_code; from < user_code_end; from++)
		*to++ = *from;
	add_table(USER_CODE);
	set_leaf(USER_CODE, (u32)code_page | 7, 0);
	set_leaf(USER_STACK_TOP - 4096, (u32)stack_page | 7, 0);

	run(user_segments, FLAG_IF | FLAG_ONE);
	expect_user_frame(SYSTEM_CALL, address(user_call), top - 20);
	expect("cs and ss", user_result, SEL_USER_DATA << 16 | SEL_USER_CODE);
	verdict("user.stack_of_the_tss");

	vmi(VMI_UpdateKernelStack, SEL_KERNEL_DATA, top - 1024, 0);
	run(user_segments, FLAG_IF | FLAG_ONE);
	expect_user_frame(SYSTEM_CALL, address(user_call), top - 1024 - 20);
	vmi(VMI_SetLazyMode, 2, 0, 0);
	vmi(VMI_UpdateKernelStack, SEL_KERNEL_DATA, top, 0);
	vmi(VMI_SetLazyMode, 0, 0, 0);
	run(user_call, FLAG_IF | FLAG_ONE);
	expect("sum", user_result, 42);
	verdict("user.update_kernel_stack");

	run(user_read, FLAG_IF | FLAG_ONE);
	expect_user_frame(PAGE_FAULT, address(user_read), top - 20);
	expect("error", last_trap.error, 5);
	expect("cr2", last_trap.cr2, 0x100000);
	run(user_privileged, FLAG_IF | FLAG_ONE);
	expect_user_frame(GENERAL_PROTECTION, address(user_privileged), top - 20);
	verdict("user.faults");

	run(user_port, FLAG_IF | FLAG_ONE);
	expect("vector without IOPL", last_trap.vector, GENERAL_PROTECTION);
	vmi(VMI_SetIOPLMask, 3 << 12, 0, 0);
	run(user_port, FLAG_IF | FLAG_ONE);
	expect("vector with IOPL", last_trap.vector, SYSTEM_CALL);
	expect("an empty bus", user_result, 0xff);
	expect("IOPL in the frame", last_trap.flags & FLAG_IOPL, FLAG_IOPL);
	run(user_privileged, FLAG_IF | FLAG_ONE);
	expect("CLI all the same", last_trap.vector, GENERAL_PROTECTION);
	vmi(VMI_SetIOPLMask, 0, 0, 0);
	verdict("user.iopl");

	fast();
	interrupted();
}
