/* The interrupt flag, delivery when it is set, IRET, and sleeping. The source is VMI's own alarm. */
#include "kernel.h"

#define MICROSECOND 2400 /* cycles, about */

static void alarm_in(u32 cycles)
{
	u64 at = vmi(VMI_GetCycleCounter, VMI_REAL, 0, 0) + cycles;

	vmi5(VMI_SetAlarm, VMI_REAL, (u32)at, (u32)(at >> 32), 0, 0);
}

static void let_pass(u32 cycles)
{
	u64 until = vmi(VMI_GetCycleCounter, VMI_REAL, 0, 0) + cycles;

	while (vmi(VMI_GetCycleCounter, VMI_REAL, 0, 0) < until)
		;
}

static void mask(void)
{
	irq_disable();
	expect("off", irq_save() & FLAG_IF, 0);
	irq_enable();
	expect("on", irq_save() & FLAG_IF, FLAG_IF);
	irq_restore(0);
	expect("restored to off", irq_save() & FLAG_IF, 0);
	irq_restore(FLAG_IF);
	expect("restored to on", irq_save() & FLAG_IF, FLAG_IF);
	irq_restore(~(u32)FLAG_IF);
	expect("other bits do not count", irq_save() & FLAG_IF, 0);
	verdict("irq.mask");
}

static void pending(void)
{
	pic_init();
	pic_mask(0xfe);
	ticks = 0;
	irq_disable();
	alarm_in(10 * MICROSECOND);
	let_pass(30 * MICROSECOND);
	expect("ticks while off", ticks, 0);
	irq_enable();
	expect("ticks at once", ticks, 1);
	expect("vector", tick_vector, IRQ_BASE);
	expect("IF in the frame", tick_trap.flags & FLAG_IF, FLAG_IF);
	expect("IF in the handler", tick_trap.inner_flags, 0);
	expect("cs in the frame", tick_trap.cs, SEL_KERNEL_CODE | KERNEL_RPL);
	expect_that("not inside the ROM", tick_trap.ip < vrom->virtual_top);
	irq_disable();
	verdict("irq.pending_on_enable");

	alarm_in(10 * MICROSECOND);
	let_pass(30 * MICROSECOND);
	irq_restore(FLAG_IF);
	expect("ticks", ticks, 2);
	irq_disable();
	verdict("irq.pending_on_restore");

	alarm_in(10 * MICROSECOND);
	let_pass(30 * MICROSECOND);
	trap_forget();
	asm volatile("pushf; orl $0x200, (%%esp); push %%cs; push $1f; jmp kernel_iret; 1:" : : : "memory", "cc");
	expect("ticks", ticks, 3);
	expect("IF after IRET", irq_save() & FLAG_IF, FLAG_IF);
	asm volatile("pushf; andl $~0x200, (%%esp); push %%cs; push $1f; jmp kernel_iret; 1:" : : : "memory", "cc");
	expect("IF after IRET to off", irq_save() & FLAG_IF, 0);
	verdict("irq.iret");

	alarm_in(30 * MICROSECOND);
	irq_enable();
	for (u32 i = 0; i < 100000000 && ticks == 3; i++)
		asm volatile("");
	irq_disable();
	expect("ticks", ticks, 4);
	verdict("irq.while_running");
}

static void gates(void)
{
	irq_enable();
	asm volatile("int $0x31" : : : "memory");
	expect("vector", last_trap.vector, SOFT_TRAP);
	expect("IF inside a trap gate", last_trap.inner_flags, FLAG_IF);
	asm volatile("int $0x30" : : : "memory");
	expect("vector", last_trap.vector, SOFT_INTERRUPT);
	expect("IF inside an interrupt gate", last_trap.inner_flags, 0);
	expect("IF in the frame", last_trap.flags & FLAG_IF, FLAG_IF);
	expect("IF afterwards", irq_save() & FLAG_IF, FLAG_IF);
	irq_disable();
	asm volatile("int $0x30" : : : "memory");
	expect("IF in the frame when off", last_trap.flags & FLAG_IF, 0);
	expect("IF afterwards", irq_save() & FLAG_IF, 0);
	verdict("irq.gates");
}

static void halt(void)
{
	ticks = 0;
	for (u32 i = 1; i <= 3; i++) {
		irq_disable();
		alarm_in(1000 * MICROSECOND);
		vmi0(VMI_Halt);
		expect("ticks after waking", ticks, i);
		expect("IF after waking", irq_save() & FLAG_IF, FLAG_IF);
	}
	irq_disable();
	expect_that("not inside the ROM", tick_trap.ip < vrom->virtual_top);
	verdict("irq.halt");
}

static __attribute__((noinline)) void exceptions(void)
{
	extern u8 vmi_at_div[], vmi_at_hlt[];

	PROBE("xor %%edx, %%edx; xor %%ecx, %%ecx\n vmi_at_div: div %%ecx", (), ("a"(1)), "ecx", "edx");
	expect("vector", last_trap.vector, DIVIDE);
	expect("eip", last_trap.ip, (u32)vmi_at_div);
	expect("cs", last_trap.cs, SEL_KERNEL_CODE | KERNEL_RPL);
	PROBE("vmi_at_hlt: hlt", (), ());
	expect("vector of HLT", last_trap.vector, GENERAL_PROTECTION);
	expect("eip of HLT", last_trap.ip, (u32)vmi_at_hlt);
	PROBE(".byte 0x0f, 0x01, 0xc1", (), ());
	expect("vector of VMCALL outside the ROM", last_trap.vector, INVALID_OPCODE);
	PROBE("lcall *%0", (), ("m"(*(const u8 *)idt)));
	expect_that("a far call into nothing", last_trap.vector == GENERAL_PROTECTION);
	verdict("irq.exceptions");
}

void test_interrupts(void)
{
	mask();
	pending();
	gates();
	halt();
	exceptions();
}
