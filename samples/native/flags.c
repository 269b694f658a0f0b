/* The flags register: what PUSHF shows, what POPF changes, and what CLI and STI leave alone. */
#include "check.h"
#include "tests.h"
#include "traps.h"

static void interrupt_flag(void)
{
	ulong flags;

	irq_disable();
	expect("IF after cli", flags_read() & FLAG_IF, 0);
	irq_enable();
	expect("IF after sti", flags_read() & FLAG_IF, FLAG_IF);
	irq_disable();
	verdict("flags.if_visible");

	/* The pattern of every kernel: save, disable, work, restore; nested twice. */
	irq_enable();
	flags = flags_read();
	irq_disable();
	{
		ulong inner = flags_read();

		expect("inner IF", inner & FLAG_IF, 0);
		flags_write(inner);
		expect("IF after inner popf", flags_read() & FLAG_IF, 0);
	}
	flags_write(flags);
	expect("IF after outer popf", flags_read() & FLAG_IF, FLAG_IF);
	irq_disable();
	verdict("flags.popf_restores_if");
}

static void arithmetic_flags(void)
{
	u8 carry, zero, overflow;
	ulong flags;

	asm volatile("movb $0x80, %%al\n\t"
		     "addb $0x80, %%al\n\t" /* CF ZF OF set */
		     "cli\n\t"
		     "setc %0\n\t"
		     "sti\n\t"
		     "setz %1\n\t"
		     "cli\n\t"
		     "seto %2"
		     : "=&q"(carry), "=&q"(zero), "=&q"(overflow) : : "eax", "cc", "memory");
	expect("CF", carry, 1);
	expect("ZF", zero, 1);
	expect("OF", overflow, 1);
	verdict("flags.cli_sti_keep_arithmetic");

	asm volatile("std; pushf; cld; pop %0" : "=r"(flags) : : "memory", "cc");
	expect("DF after std", flags & FLAG_DF, FLAG_DF);
	expect("DF after cld", flags_read() & FLAG_DF, 0);
	flags_write(FLAG_DF | FLAG_CF | FLAG_ONE);
	asm volatile("pushf; cld; pop %0" : "=r"(flags) : : "memory", "cc");
	expect("DF CF after popf", flags & (FLAG_DF | FLAG_CF), FLAG_DF | FLAG_CF);
	verdict("flags.direction");
}

/* What POPF makes of a value, read back at once; leaves harmless flags behind. */
static ulong after_popf(ulong value)
{
	ulong seen;

	asm volatile("push %1\n\t"
		     "popf\n\t"
		     "pushf\n\t"
		     "pop %0\n\t"
		     "push $2\n\t"
		     "popf"
		     : "=&r"(seen) : "r"(value) : "memory", "cc");
	return seen;
}

static void reserved_bits(void)
{
	const ulong arithmetic = FLAG_CF | FLAG_PF | FLAG_AF | FLAG_ZF | FLAG_SF | FLAG_OF;

	expect("popf of 0", after_popf(0), FLAG_ONE);
	/* Bits 3, 5, 15, VIF, VIP, 22.. cannot be set, VM is ignored, RF reads as 0. */
	expect("popf of ones",
	       after_popf(0xffffffff & ~(ulong)(FLAG_TF | FLAG_NT | FLAG_IOPL | FLAG_IF)),
	       arithmetic | FLAG_DF | FLAG_ONE | FLAG_AC | FLAG_ID);
	verdict("flags.popf_reserved");

	expect("IOPL 3", after_popf(FLAG_IOPL) & FLAG_IOPL, FLAG_IOPL);
	expect("IOPL 0", after_popf(0) & FLAG_IOPL, 0);
	expect("NT", after_popf(FLAG_NT) & FLAG_NT, FLAG_NT);
	verdict("flags.popf_iopl_nt");

	expect("ID set", after_popf(FLAG_ID) & FLAG_ID, FLAG_ID);
	expect("ID clear", after_popf(0) & FLAG_ID, 0);
	verdict("flags.id_toggles");
}

static void sixteen_bits(void)
{
	u16 low;
	ulong flags;

	flags_write(FLAG_ID | FLAG_ONE);
	asm volatile("pushw $0x0ad7; popfw" : : : "memory", "cc"); /* OF IF SF ZF AF PF CF */
	asm volatile("pushf; pop %0" : "=r"(flags));
	expect("flags", flags & 0xffff, 0xad7);
	expect("ID kept", flags & FLAG_ID, FLAG_ID);
	asm volatile("cli; pushfw; popw %0" : "=r"(low) : : "memory");
	expect("IF in pushfw", low & FLAG_IF, 0);
	asm volatile("sti; pushfw; cli; popw %0" : "=r"(low) : : "memory");
	expect("IF in pushfw after sti", low & FLAG_IF, FLAG_IF);
	asm volatile("pushw $2; popfw" : : : "memory", "cc");
	flags_write(FLAG_ONE);
	verdict("flags.sixteen_bit_forms");
}

void test_flags(void)
{
	interrupt_flag();
	arithmetic_flags();
	reserved_bits();
	sixteen_bits();
}
