/* User mode and back: by gate, by interrupt, by exception, by SYSCALL and SYSENTER. */
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
PROGRAM(user_syscall);
PROGRAM(user_syscall_end);
PROGRAM(user_to_compat);
PROGRAM(user_compat);
PROGRAM(user_compat_end);
PROGRAM(user_sysenter);
PROGRAM(user_sysenter32);
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
PROGRAM(user_cr8);
PROGRAM(user_clts);
PROGRAM(user_invlpg);
PROGRAM(user_rdmsr);
PROGRAM(user_swapgs);
PROGRAM(user_lgdt);
PROGRAM(user_ltr);
PROGRAM(user_wbinvd);
PROGRAM(user_sysret);

#define USER_FLAGS (FLAG_IF | FLAG_ONE)

static u8 second_stack[4096] __attribute__((aligned(16)));

static u64 address(const u8 *program)
{
	return USER_CODE + (u64)(program - user_code);
}

static void run(const u8 *program, u64 flags, u64 argument)
{
	trap_forget();
	user_result = 0xdead;
	user_enter(address(program), USER_STACK_TOP, flags, argument, SEL_USER_CODE);
}

/* The five words that hardware pushes, on the stack of the TSS. */
static void expect_user_frame(u64 vector, u64 ip)
{
	expect("vector", last_trap.vector, vector);
	expect("rip", last_trap.ip, ip);
	expect("cs", last_trap.cs, SEL_USER_CODE);
	expect("ss", last_trap.ss, SEL_USER_DATA);
	expect("rsp", last_trap.sp, USER_STACK_TOP);
	expect("frame", last_trap.frame, tss.rsp[0] - 40);
	expect("handler's cs", last_trap.inner_cs, SEL_KERNEL_CODE);
	expect("handler's ss", last_trap.inner_ss, 0); /* null after a change of privilege */
}

static void calls(void)
{
	run(user_segments, USER_FLAGS, 0);
	expect_user_frame(SYSTEM_CALL, address(user_call));
	expect("flags", last_trap.flags & (FLAG_IF | FLAG_IOPL), FLAG_IF);
	expect("cs and ss", user_result, SEL_USER_DATA << 16 | SEL_USER_CODE);
	verdict("user.gate_frame");

	run(user_call, USER_FLAGS, 0);
	expect("sum", user_result, 42);
	verdict("user.call_returns");

	/* What a context switch does: the next trap arrives on another stack. */
	tss.rsp[0] = (u64)(second_stack + sizeof second_stack);
	run(user_segments, USER_FLAGS, 0);
	expect_user_frame(SYSTEM_CALL, address(user_call));
	tss.rsp[0] = (u64)(trap_stack + sizeof trap_stack);
	verdict("user.kernel_stack_changes");

	trap_forget();
	user_enter_lret(address(user_segments), USER_STACK_TOP);
	expect_user_frame(SYSTEM_CALL, address(user_call));
	expect("IF", last_trap.flags & FLAG_IF, 0);
	verdict("user.entered_by_far_return");

	trap_forget();
	user_enter(address(user_compat), USER_STACK_TOP, USER_FLAGS, 0, SEL_USER_CODE32);
	expect("vector", last_trap.vector, SYSTEM_CALL);
	expect("rip", last_trap.ip, address(user_compat_end));
	expect("cs", last_trap.cs, SEL_USER_CODE32);
	expect("rsp", last_trap.sp, USER_STACK_TOP);
	expect("cs and ss", user_result, SEL_USER_DATA << 16 | SEL_USER_CODE32);
	verdict("user.thirty_two_bits");
}

static void preempted(void)
{
	volatile u32 *word = (volatile u32 *)USER_STACK;

	*word = 0;
	ticks = 0;
	tick_word = word;
	timer_once(1000);
	run(user_spin, USER_FLAGS, USER_STACK);
	tick_word = 0;
	expect("vector", last_trap.vector, SYSTEM_CALL);
	expect("ticks", ticks, 1);
	expect("interrupted cs", tick_trap.cs, SEL_USER_CODE);
	expect("interrupted ss", tick_trap.ss, SEL_USER_DATA);
	expect("frame", tick_trap.frame, tss.rsp[0] - 40);
	expect("IF in user mode", user_result & FLAG_IF, FLAG_IF);
	verdict("user.preempted");
}

static void silent(void)
{
	run(user_popf, USER_FLAGS, 0);
	expect("flags", user_result & (FLAG_IF | FLAG_IOPL), FLAG_IF);
	verdict("user.popf_keeps_if_iopl");

	run(user_inspect, USER_FLAGS, 0);
	expect("lar, verw", user_result, 0);
	verdict("user.kernel_segments_invisible");
}

static void exceptions(void)
{
	run(user_divide, USER_FLAGS, 1);
	expect_user_frame(DIVIDE, address(user_divide) + 2);
	verdict("user.divide");

	run(user_breakpoint, USER_FLAGS, 0);
	expect_user_frame(BREAKPOINT, address(user_breakpoint) + 1);
	verdict("user.breakpoint");

	run(user_step, USER_FLAGS | FLAG_TF, 0);
	expect_user_frame(DEBUG, address(user_step_end));
	expect("TF in the frame", last_trap.flags & FLAG_TF, FLAG_TF);
	expect("TF in the handler", last_trap.inner_flags & FLAG_TF, 0);
	verdict("user.single_step");

	run(user_read, USER_FLAGS, 0x123456);
	expect_user_frame(PAGE_FAULT, address(user_read));
	expect("error", last_trap.error, 5);
	expect("cr2", last_trap.cr2, 0x123456);
	run(user_read, USER_FLAGS, (u64)&ticks);
	expect("error in the kernel's data", last_trap.error, 5);
	run(user_read, USER_FLAGS, 0x90000000);
	expect_user_frame(PAGE_FAULT, address(user_read));
	expect("error", last_trap.error, 4);
	verdict("user.page_fault");

	run(user_gate, USER_FLAGS, 0);
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
		{ user_cr3, "user.cr3_refused" },       { user_cr8, "user.cr8_refused" },
		{ user_clts, "user.clts_refused" },     { user_invlpg, "user.invlpg_refused" },
		{ user_rdmsr, "user.rdmsr_refused" },   { user_swapgs, "user.swapgs_refused" },
		{ user_lgdt, "user.lgdt_refused" },     { user_ltr, "user.ltr_refused" },
		{ user_wbinvd, "user.wbinvd_refused" }, { user_sysret, "user.sysret_refused" },
	};

	for (u32 i = 0; i < ARRAY_LENGTH(refused); i++) {
		run(refused[i].program, USER_FLAGS, 0);
		expect_user_frame(GENERAL_PROTECTION, address(refused[i].program));
		expect("error", last_trap.error, 0);
		verdict(refused[i].name);
	}
}

static void fast_calls(void)
{
	run(user_syscall, USER_FLAGS, 0);
	expect("vector while disabled", last_trap.vector, INVALID_OPCODE);
	msr_write(MSR_EFER, msr_read(MSR_EFER) | EFER_SCE);
	msr_write(MSR_STAR, (u64)SEL_USER_CODE32 << 48 | (u64)SEL_KERNEL_CODE << 32);
	msr_write(MSR_LSTAR, (u64)syscall_entry);
	msr_write(MSR_SYSCALL_MASK, FLAG_IF | FLAG_TF | FLAG_DF);
	expect("LSTAR", msr_read(MSR_LSTAR), (u64)syscall_entry);
	run(user_syscall, USER_FLAGS, 0);
	expect("vector", last_trap.vector, SYSTEM_CALL);
	expect("sum", user_result, 42);
	expect("rcx", syscall_seen[0], address(user_syscall_end));
	expect("r11", syscall_seen[1] & (FLAG_IF | FLAG_CF), FLAG_IF | FLAG_CF);
	expect("cs", syscall_seen[2], SEL_KERNEL_CODE);
	expect("ss", syscall_seen[3], SEL_KERNEL_DATA);
	expect("IF", syscall_seen[4] & FLAG_IF, 0);
	expect("user cs", last_trap.cs, SEL_USER_CODE);
	expect("user ss", last_trap.ss, SEL_USER_DATA);
	expect("user rsp", last_trap.sp, USER_STACK_TOP);
	expect("user flags", last_trap.flags & (FLAG_IF | FLAG_CF), FLAG_IF | FLAG_CF);
	verdict("user.syscall_sysret");

	run(user_to_compat, USER_FLAGS, 0);
	expect("vector", last_trap.vector, SYSTEM_CALL);
	expect("cs", last_trap.cs, SEL_USER_CODE32);
	expect("result", user_result, SEL_USER_CODE32 << 16 | 1);
	verdict("user.sysret_to_32_bits");
}

/* In long mode SYSENTER exists on some processors only: else it is invalid. */
static void sysenter(void)
{
	static u8 fast_stack[1024] __attribute__((aligned(16)));

	msr_write(MSR_SYSENTER_CS, SEL_KERNEL_CODE);
	msr_write(MSR_SYSENTER_SP, (u64)(fast_stack + sizeof fast_stack));
	msr_write(MSR_SYSENTER_IP, (u64)sysenter_entry);
	run(user_sysenter, USER_FLAGS, 0);
	if (last_trap.vector != INVALID_OPCODE) {
		expect("vector", last_trap.vector, SYSTEM_CALL);
		expect("result", user_result, 0x52);
		expect("cs", syscall_seen[2], SEL_KERNEL_CODE);
		expect("ss", syscall_seen[3], SEL_KERNEL_DATA);
		expect("IF", syscall_seen[4] & FLAG_IF, 0);
		expect("rsp", syscall_seen[5], (u64)(fast_stack + sizeof fast_stack));
		expect("user cs", last_trap.cs, SEL_USER_CODE);
		expect("user ss", last_trap.ss, SEL_USER_DATA2);
		expect("user IF", last_trap.flags & FLAG_IF, FLAG_IF);
		trap_forget();
		user_enter(address(user_sysenter32), USER_STACK_TOP, USER_FLAGS, 0, SEL_USER_CODE32);
		expect("result of 32 bits", user_result, SYSENTER_FROM_32 + 1);
		expect("32-bit user cs", last_trap.cs, SEL_USER_CODE32);
		expect("32-bit user ss", last_trap.ss, SEL_USER_DATA);
	}
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
	fast_calls();
	privileged(); /* with SYSCALL enabled: else SYSRET is not even valid */
	sysenter();
	timer_stop();
}
