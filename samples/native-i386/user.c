/* User mode and back: by gate, by interrupt, by exception, by SYSENTER. */
#include "check.h"
#include "control.h"
#include "kernel.h"
#include "tests.h"
#include "traps.h"

#define PROGRAM(name) extern const u8 name[]
PROGRAM(user_code);
PROGRAM(user_code_end);
PROGRAM(user_segments);
PROGRAM(user_call);
PROGRAM(user_spin);
PROGRAM(user_popf);
PROGRAM(user_inspect);
PROGRAM(user_sysenter);
PROGRAM(user_breakpoint);
PROGRAM(user_step);
PROGRAM(user_step_end);
PROGRAM(user_divide);
PROGRAM(user_read);
PROGRAM(user_gate);
PROGRAM(user_cli);
PROGRAM(user_sti);
PROGRAM(user_hlt);
PROGRAM(user_in);
PROGRAM(user_out);
PROGRAM(user_cr0);
PROGRAM(user_cr3);
PROGRAM(user_clts);
PROGRAM(user_invlpg);
PROGRAM(user_rdmsr);
PROGRAM(user_lgdt);
PROGRAM(user_ltr);
PROGRAM(user_wbinvd);

static u8 second_stack[4096] __attribute__((aligned(16)));

static u32 address(const u8 *program)
{
	return USER_CODE + (u32)(program - user_code);
}

static void run(const u8 *program, u32 flags, u32 argument)
{
	trap_forget();
	user_result = 0xdead;
	user_enter(address(program), USER_STACK_TOP, flags, argument);
}

/* The five words that hardware pushes on a change of privilege, on the TSS's stack. */
static void expect_user_frame(u32 vector, u32 ip)
{
	expect("vector", last_trap.vector, vector);
	expect("eip", last_trap.ip, ip);
	expect("cs", last_trap.cs, SEL_USER_CODE);
	expect("ss", last_trap.ss, SEL_USER_DATA);
	expect("esp", last_trap.sp, USER_STACK_TOP);
	expect("frame", last_trap.frame, tss.esp0 - 20);
	expect("handler's cs", last_trap.inner_cs, SEL_KERNEL_CODE);
	expect("handler's ss", last_trap.inner_ss, SEL_KERNEL_DATA);
}

static void calls(void)
{
	run(user_segments, FLAG_IF | FLAG_ONE, 0);
	expect_user_frame(SYSTEM_CALL, address(user_call));
	expect("flags", last_trap.flags & (FLAG_IF | FLAG_IOPL), FLAG_IF);
	expect("cs and ss", user_result, SEL_USER_DATA << 16 | SEL_USER_CODE);
	verdict("user.gate_frame");

	run(user_call, FLAG_IF | FLAG_ONE, 0);
	expect("sum", user_result, 42);
	verdict("user.call_returns");

	/* What a context switch does: the next trap arrives on another stack. */
	tss.esp0 = (u32)(second_stack + sizeof second_stack);
	run(user_segments, FLAG_IF | FLAG_ONE, 0);
	expect_user_frame(SYSTEM_CALL, address(user_call));
	tss.esp0 = (u32)(trap_stack + sizeof trap_stack);
	verdict("user.kernel_stack_changes");

	trap_forget();
	user_enter_lret(address(user_segments), USER_STACK_TOP);
	expect_user_frame(SYSTEM_CALL, address(user_call));
	expect("IF", last_trap.flags & FLAG_IF, 0);
	verdict("user.entered_by_far_return");
}

static void preempted(void)
{
	volatile u32 *word = (volatile u32 *)USER_STACK;

	*word = 0;
	ticks = 0;
	tick_word = word;
	timer_once(1000);
	run(user_spin, FLAG_IF | FLAG_ONE, USER_STACK);
	tick_word = 0;
	expect("vector", last_trap.vector, SYSTEM_CALL);
	expect("ticks", ticks, 1);
	expect("interrupted cs", tick_trap.cs, SEL_USER_CODE);
	expect("interrupted ss", tick_trap.ss, SEL_USER_DATA);
	expect("frame", tick_trap.frame, tss.esp0 - 20);
	expect("IF in user mode", user_result & FLAG_IF, FLAG_IF);
	verdict("user.preempted");
}

static void silent(void)
{
	run(user_popf, FLAG_IF | FLAG_ONE, 0);
	expect("flags", user_result & (FLAG_IF | FLAG_IOPL), FLAG_IF);
	verdict("user.popf_keeps_if_iopl");

	run(user_inspect, FLAG_IF | FLAG_ONE, 0);
	expect("lar, verw", user_result, 0);
	verdict("user.kernel_segments_invisible");
}

static void exceptions(void)
{
	run(user_divide, FLAG_IF | FLAG_ONE, 1);
	expect_user_frame(DIVIDE, address(user_divide) + 2);
	verdict("user.divide");

	run(user_breakpoint, FLAG_IF | FLAG_ONE, 0);
	expect_user_frame(BREAKPOINT, address(user_breakpoint) + 1);
	verdict("user.breakpoint");

	run(user_step, FLAG_IF | FLAG_TF | FLAG_ONE, 0);
	expect_user_frame(DEBUG, address(user_step_end));
	expect("TF in the frame", last_trap.flags & FLAG_TF, FLAG_TF);
	expect("TF in the handler", last_trap.inner_flags & FLAG_TF, 0);
	verdict("user.single_step");

	run(user_read, FLAG_IF | FLAG_ONE, 0x123456);
	expect_user_frame(PAGE_FAULT, address(user_read));
	expect("error", last_trap.error, 5);
	expect("cr2", last_trap.cr2, 0x123456);
	run(user_read, FLAG_IF | FLAG_ONE, (u32)&ticks);
	expect("error in the kernel's data", last_trap.error, 5);
	run(user_read, FLAG_IF | FLAG_ONE, 0x90000000);
	expect_user_frame(PAGE_FAULT, address(user_read));
	expect("error", last_trap.error, 4);
	verdict("user.page_fault");

	run(user_gate, FLAG_IF | FLAG_ONE, 0);
	expect_user_frame(GENERAL_PROTECTION, address(user_gate));
	expect("error", last_trap.error, SOFT_INTERRUPT * 8 + 2);
	verdict("user.gate_refused");
}

static void privileged(void)
{
	static const struct {
		const u8 *program;
		const char *name;
	} refused[] = {
		{ user_cli, "user.cli_refused" },       { user_sti, "user.sti_refused" },
		{ user_hlt, "user.hlt_refused" },       { user_in, "user.in_refused" },
		{ user_out, "user.out_refused" },       { user_cr0, "user.cr0_refused" },
		{ user_cr3, "user.cr3_refused" },       { user_clts, "user.clts_refused" },
		{ user_invlpg, "user.invlpg_refused" }, { user_rdmsr, "user.rdmsr_refused" },
		{ user_lgdt, "user.lgdt_refused" },     { user_ltr, "user.ltr_refused" },
		{ user_wbinvd, "user.wbinvd_refused" },
	};

	for (u32 i = 0; i < ARRAY_LENGTH(refused); i++) {
		run(refused[i].program, FLAG_IF | FLAG_ONE, 0);
		expect_user_frame(GENERAL_PROTECTION, address(refused[i].program));
		expect("error", last_trap.error, 0);
		verdict(refused[i].name);
	}
}

static void fast_calls(void)
{
	static u8 fast_stack[1024] __attribute__((aligned(16)));

	if (!(cpuid(1, 0).edx & 1 << 11)) {
		run(user_sysenter, FLAG_IF | FLAG_ONE, 0);
		expect("vector", last_trap.vector, INVALID_OPCODE);
		verdict("user.sysenter");
		return;
	}
	msr_write(MSR_SYSENTER_CS, SEL_KERNEL_CODE);
	msr_write(MSR_SYSENTER_SP, (u32)(fast_stack + sizeof fast_stack));
	msr_write(MSR_SYSENTER_IP, (u32)sysenter_entry);
	run(user_sysenter, FLAG_IF | FLAG_ONE, 0);
	expect("vector", last_trap.vector, SYSTEM_CALL);
	expect("result", user_result, 0x52);
	expect("cs", sysenter_seen[0], SEL_KERNEL_CODE);
	expect("ss", sysenter_seen[1], SEL_KERNEL_DATA);
	expect("esp", sysenter_seen[2], (u32)(fast_stack + sizeof fast_stack));
	expect("IF", sysenter_seen[3] & FLAG_IF, 0);
	expect("user cs", last_trap.cs, SEL_USER_CODE);
	expect("user ss", last_trap.ss, SEL_USER_DATA);
	expect("user IF", last_trap.flags & FLAG_IF, FLAG_IF);
	msr_write(MSR_SYSENTER_CS, 0);
	verdict("user.sysenter");
}

void test_user(void)
{
	u8 *to = (u8 *)USER_CODE;

	for (const u8 *from = user_code; from < user_code_end; from++)
		*to++ = *from;
	calls();
	silent();
	preempted();
	exceptions();
	privileged();
	fast_calls();
	timer_stop();
}
