/* Exceptions, software interrupts and IRET within the kernel: the frames as hardware pushes them. */
#include "check.h"
#include "kernel.h"
#include "tests.h"
#include "traps.h"

extern u8 at_divide[], at_ud2[], after_int3[], after_cd3[], after_int[], at_bound[], after_into[];

/* A frame of three words right below the stack pointer, from the kernel's own segments. */
static void expect_kernel_frame(u32 vector, const u8 *ip)
{
	expect("vector", last_trap.vector, vector);
	expect("eip", last_trap.ip, (u32)ip);
	expect("cs", last_trap.cs, SEL_KERNEL_CODE);
	expect("frame", last_trap.frame, trap_resume.sp - 12);
	expect("handler's cs", last_trap.inner_cs, SEL_KERNEL_CODE);
	expect("handler's ss", last_trap.inner_ss, SEL_KERNEL_DATA);
}

static __attribute__((noinline)) void faults(void)
{
	static const u32 bounds[2] = { 5, 10 };

	flags_write(FLAG_CF | FLAG_AC | FLAG_ONE);
	PROBE("xor %%edx, %%edx; xor %%ecx, %%ecx; stc\n"
	      "at_divide: div %%ecx", (), ("a"(1)), "ecx", "edx");
	expect_kernel_frame(DIVIDE, at_divide);
	expect("flags", last_trap.flags & ~(u32)FLAG_RF & 0xfff01, FLAG_AC | FLAG_CF);
	flags_write(FLAG_ONE);
	verdict("trap.divide_frame");

	PROBE("at_ud2: ud2", (), ());
	expect_kernel_frame(INVALID_OPCODE, at_ud2);
	verdict("trap.invalid_opcode");

	PROBE("at_bound: bound %0, %1", (), ("r"(11), "m"(bounds)));
	expect_kernel_frame(BOUND, at_bound);
	verdict("trap.bound");
}

static __attribute__((noinline)) void software(void)
{
	ulong flags;

	PROBE("int3\n after_int3:", (), ());
	expect_kernel_frame(BREAKPOINT, after_int3);
	PROBE(".byte 0xcd, 3\n after_cd3:", (), ());
	expect("vector of int 3", last_trap.vector, BREAKPOINT);
	verdict("trap.breakpoint");

	PROBE("movb $0x7f, %%al; addb $1, %%al; into\n after_into:", (), (), "eax");
	expect_kernel_frame(OVERFLOW, after_into);
	PROBE("xor %%eax, %%eax; into", (), (), "eax");
	expect("vector without OF", last_trap.vector, NO_TRAP);
	verdict("trap.overflow");

	irq_enable();
	trap_forget();
	asm volatile("int $0x30\n after_int: pushf; cli; pop %0" : "=r"(flags) : : "memory");
	expect("vector", last_trap.vector, SOFT_INTERRUPT);
	expect("cs", last_trap.cs, SEL_KERNEL_CODE);
	expect("IF in the frame", last_trap.flags & FLAG_IF, FLAG_IF);
	expect("IF in the handler", last_trap.inner_flags & FLAG_IF, 0);
	expect("IF afterwards", flags & FLAG_IF, FLAG_IF);
	verdict("trap.interrupt_gate");

	irq_enable();
	asm volatile("int $0x31" : : : "memory");
	flags = flags_read();
	irq_disable();
	expect("vector", last_trap.vector, SOFT_TRAP);
	expect("IF in the handler", last_trap.inner_flags & FLAG_IF, FLAG_IF);
	expect("IF afterwards", flags & FLAG_IF, FLAG_IF);
	asm volatile("int $0x31" : : : "memory");
	expect("IF in the handler, off", last_trap.inner_flags & FLAG_IF, 0);
	verdict("trap.trap_gate");
}

static void bad_gates(void)
{
	PROBE("int $0x32", (), ());
	expect("vector", last_trap.vector, SEGMENT_NOT_PRESENT);
	expect("error", last_trap.error, NOT_PRESENT_GATE * 8 + 2);
	verdict("trap.gate_not_present");

	PROBE("int $0x90", (), ()); /* past the limit of the table */
	expect("vector", last_trap.vector, GENERAL_PROTECTION);
	expect("error", last_trap.error, 0x90 * 8 + 2);
	verdict("trap.beyond_table");
}

/* IRET with a frame of our own making. */
static ulong after_iret(ulong flags, u32 selector)
{
	ulong seen;

	asm volatile("push %1; push %2; push $1f; iret\n"
		     "1: pushf; pop %0"
		     : "=r"(seen) : "r"(flags), "r"(selector) : "memory", "cc");
	return seen;
}

static void interrupt_returns(void)
{
	u16 cs;
	ulong flags;

	irq_disable();
	flags = after_iret(FLAG_IF | FLAG_CF | FLAG_ONE, SEL_KERNEL_CODE);
	expect("IF CF set", flags & (FLAG_IF | FLAG_CF), FLAG_IF | FLAG_CF);
	flags = after_iret(FLAG_ONE | FLAG_ID, SEL_KERNEL_CODE);
	expect("IF CF clear", flags & (FLAG_IF | FLAG_CF), 0);
	expect("ID", flags & FLAG_ID, FLAG_ID);
	verdict("iret.same_level");

	after_iret(FLAG_ONE, SEL_OTHER_CODE);
	asm volatile("mov %%cs, %0" : "=r"(cs));
	expect("cs", cs, SEL_OTHER_CODE);
	after_iret(FLAG_ONE, SEL_KERNEL_CODE);
	asm volatile("mov %%cs, %0" : "=r"(cs));
	expect("cs", cs, SEL_KERNEL_CODE);
	verdict("iret.changes_cs");

	PROBE("push $2; push %0; push $1f; iret; 1:", (), ("r"(SEL_BEYOND)));
	expect("vector", last_trap.vector, GENERAL_PROTECTION);
	expect("error", last_trap.error, SEL_BEYOND);
	verdict("iret.bad_selector");
}

void test_traps(void)
{
	faults();
	software();
	bad_gates();
	interrupt_returns();
}
