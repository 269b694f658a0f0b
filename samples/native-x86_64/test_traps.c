/* Exceptions, software interrupts and IRETQ within the kernel: the frames as hardware pushes them. */
#include "check.h"
#include "kernel.h"
#include "tests.h"
#include "traps.h"

extern u8 at_divide[], at_ud2[], after_int3[], at_wild[], at_unaligned[];

/* Five words below the stack pointer, which is aligned to 16 first. */
static void expect_kernel_frame(u64 vector, const u8 *ip)
{
	expect("vector", last_trap.vector, vector);
	expect("rip", last_trap.ip, (u64)ip);
	expect("cs", last_trap.cs, SEL_KERNEL_CODE);
	expect("ss", last_trap.ss, SEL_KERNEL_DATA);
	expect("rsp", last_trap.sp, trap_resume.sp);
	expect("frame", last_trap.frame, (trap_resume.sp & ~15ul) - 40);
	expect("handler's cs", last_trap.inner_cs, SEL_KERNEL_CODE);
}

static __attribute__((noinline)) void faults(void)
{
	flags_write(FLAG_CF | FLAG_AC | FLAG_ONE);
	PROBE("xor %%edx, %%edx; xor %%ecx, %%ecx; stc\n"
	      "at_divide: div %%ecx", (), ("a"(1)), "ecx", "edx");
	expect_kernel_frame(DIVIDE, at_divide);
	expect("flags", last_trap.flags & ~(u64)FLAG_RF & 0xfff01, FLAG_AC | FLAG_CF);
	flags_write(FLAG_ONE);
	verdict("trap.divide_frame");

	PROBE("at_ud2: ud2", (), ());
	expect_kernel_frame(INVALID_OPCODE, at_ud2);
	verdict("trap.invalid_opcode");

	/* The frame is aligned whatever the stack pointer was. */
	PROBE("push $0; mov %%rsp, %0; at_unaligned: ud2", ("=&r"(trap_resume.sp)), ());
	expect_kernel_frame(INVALID_OPCODE, at_unaligned);
	verdict("trap.frame_alignment");

	PROBE("at_wild: mov (%0), %%eax", (), ("r"(0x8000000000000000)), "eax");
	expect_kernel_frame(GENERAL_PROTECTION, at_wild);
	expect("error", last_trap.error, 0);
	verdict("trap.not_canonical");
}

static __attribute__((noinline)) void software(void)
{
	ulong flags;

	PROBE("int3\n after_int3:", (), ());
	expect_kernel_frame(BREAKPOINT, after_int3);
	PROBE(".byte 0xcd, 3", (), ());
	expect("vector of int 3", last_trap.vector, BREAKPOINT);
	verdict("trap.breakpoint");

	irq_enable();
	trap_forget();
	asm volatile("int $0x30\n pushf; cli; pop %0" : "=r"(flags) : : "memory");
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

	asm volatile("int $0x33" : : : "memory");
	expect("vector", last_trap.vector, IST_INTERRUPT);
	expect("frame", last_trap.frame, (u64)(ist_stack + sizeof ist_stack) - 40);
	expect("ss", last_trap.ss, SEL_KERNEL_DATA);
	verdict("trap.interrupt_stack_table");
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

/* IRETQ with a frame of our own making; it always takes the stack from there, too. */
static ulong after_iret(ulong flags, ulong selector, ulong *stack)
{
	ulong seen, wanted, got;

	asm volatile("mov %%rsp, %1\n\t"
		     "lea -64(%1), %2\n\t"
		     "push %5; push %2; push %3; push %4; push $1f; iretq\n"
		     "1: mov %%rsp, %2\n\t"
		     "pushf; pop %0\n\t"
		     "mov %1, %%rsp"
		     : "=&r"(seen), "=&r"(wanted), "=&r"(got)
		     : "r"(flags), "r"(selector), "i"(SEL_KERNEL_DATA) : "memory", "cc");
	*stack = wanted - got;
	return seen;
}

static void interrupt_returns(void)
{
	u16 cs;
	ulong flags, stack;

	irq_disable();
	flags = after_iret(FLAG_IF | FLAG_CF | FLAG_ONE, SEL_KERNEL_CODE, &stack);
	expect("IF CF set", flags & (FLAG_IF | FLAG_CF), FLAG_IF | FLAG_CF);
	expect("rsp", stack, 64);
	flags = after_iret(FLAG_ONE | FLAG_ID, SEL_KERNEL_CODE, &stack);
	expect("IF CF clear", flags & (FLAG_IF | FLAG_CF), 0);
	expect("ID", flags & FLAG_ID, FLAG_ID);
	verdict("iret.same_level");

	after_iret(FLAG_ONE, SEL_OTHER_CODE, &stack);
	asm volatile("mov %%cs, %0" : "=r"(cs));
	expect("cs", cs, SEL_OTHER_CODE);
	after_iret(FLAG_ONE, SEL_KERNEL_CODE, &stack);
	asm volatile("mov %%cs, %0" : "=r"(cs));
	expect("cs", cs, SEL_KERNEL_CODE);
	verdict("iret.changes_cs");

	PROBE("mov %%rsp, %%rax; push $0x10; push %%rax; push $2; push %0; push $1f; iretq; 1:",
	      (), ("i"(SEL_BEYOND)), "rax");
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
