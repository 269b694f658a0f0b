/* Exceptions of the kernel, and privileged instructions, which fault. */
#include "check.h"
#include "kernel.h"

extern u8 at_divide[], at_ud2[], after_int3[], at_hlt[];

static void expect_kernel_frame(u32 vector, const u8 *ip)
{
	expect("vector", last_trap.vector, vector);
	expect("eip", last_trap.ip, (u32)ip);
	expect("cs", last_trap.cs, SEL_KERNEL_CODE);
	expect("frame", last_trap.frame, trap_resume.sp - 12);
}

static __attribute__((noinline)) void exceptions(void)
{
	PROBE("xor %%edx, %%edx; xor %%ecx, %%ecx\n at_divide: div %%ecx", (), ("a"(1)), "ecx", "edx");
	expect_kernel_frame(DIVIDE, at_divide);
	verdict("trap.divide");

	PROBE("at_ud2: ud2", (), ());
	expect_kernel_frame(INVALID_OPCODE, at_ud2);
	verdict("trap.invalid_opcode");

	PROBE("int3\n after_int3:", (), ());
	expect_kernel_frame(BREAKPOINT, after_int3);
	verdict("trap.breakpoint");
}

static void gates(void)
{
	irq_enable();
	asm volatile("int $4" : : : "memory");
	expect("vector", last_trap.vector, TRAP_GATE);
	expect("irq_enabled inside a trap gate", last_trap.inner_flags, FLAG_IF);
	asm volatile("int $5" : : : "memory");
	expect("vector", last_trap.vector, INTERRUPT_GATE);
	expect("irq_enabled inside an interrupt gate", last_trap.inner_flags, 0);
	expect("IF in the frame", last_trap.flags & FLAG_IF, FLAG_IF);
	expect("irq_enabled afterwards", lguest_data.irq_enabled, FLAG_IF);
	irq_disable();
	asm volatile("int $5" : : : "memory");
	expect("IF in the frame when off", last_trap.flags & FLAG_IF, 0);
	expect("irq_enabled afterwards", lguest_data.irq_enabled, 0);
	verdict("trap.gates");
}

static __attribute__((noinline)) void privileged(void)
{
	u8 value;

	PROBE("at_hlt: hlt", (), ());
	expect_kernel_frame(GENERAL_PROTECTION, at_hlt);
	expect("error", last_trap.error, 0);
	verdict("trap.privileged");

	/* The host skips CLI and answers ports that have no device as an empty bus. */
	PROBE("cli; outb %%al, $0x80; inb %w1, %0", ("=a"(value)), ("Nd"(0x1230)));
	expect("vector", last_trap.vector, NO_TRAP);
	expect("input", value, 0xff);
	verdict("trap.emulated");

	hypercall(LHCALL_TS, 8, 0, 0, 0);
	PROBE("fnop", (), ());
	expect("vector with TS", last_trap.vector, NO_DEVICE);
	hypercall(LHCALL_TS, 0, 0, 0, 0);
	PROBE("fnop", (), ());
	expect("vector without TS", last_trap.vector, NO_TRAP);
	verdict("trap.task_switched");
}

void test_traps(void)
{
	exceptions();
	gates();
	privileged();
}
