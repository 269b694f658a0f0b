/* Control and debug registers, and the machine status word that is a window on CR0. */
#include "check.h"
#include "control.h"
#include "tests.h"
#include "traps.h"

static void task_switched(void)
{
	ulong cr0 = cr0_read();
	u16 status;

	asm volatile("fninit");
	cr0_write(cr0 | CR0_TS);
	expect("TS by mov", cr0_read() & CR0_TS, CR0_TS);
	PROBE("fnop", (), ());
	expect("vector with TS", last_trap.vector, NO_DEVICE);
	asm volatile("clts" : : : "memory");
	expect("TS after clts", cr0_read() & CR0_TS, 0);
	PROBE("fnop", (), ());
	expect("vector without TS", last_trap.vector, NO_TRAP);
	verdict("cr0.ts_clts");

	cr0_write(cr0 | CR0_EM);
	PROBE("fnop", (), ());
	expect("vector with EM", last_trap.vector, NO_DEVICE);
	cr0_write(cr0);
	verdict("cr0.em");

	asm volatile("smsw %0" : "=r"(status));
	expect("PE", status & CR0_PE, CR0_PE);
	expect("low half", status, cr0_read() & 0xffff);
	asm volatile("lmsw %0" : : "r"((u16)(status | CR0_TS)) : "memory");
	expect("TS by lmsw", cr0_read() & CR0_TS, CR0_TS);
	asm volatile("smsw %0" : "=m"(status));
	expect("TS in smsw to memory", status & CR0_TS, CR0_TS);
	status = 0; /* LMSW can clear MP, EM and TS but never PE */
	asm volatile("lmsw %0" : : "m"(status) : "memory");
	expect("PE after lmsw 0", cr0_read() & (CR0_PE | CR0_TS | CR0_EM | CR0_MP), CR0_PE);
	cr0_write(cr0);
	verdict("cr0.smsw_lmsw");
}

static void cr0_bits(void)
{
	static const ulong bits[] = { CR0_MP, CR0_NE, CR0_WP, CR0_AM };
	ulong cr0 = cr0_read(), seen;

	for (u32 i = 0; i < ARRAY_LENGTH(bits); i++) {
		cr0_write(cr0 ^ bits[i]);
		expect("flipped bits", cr0_read() ^ cr0, bits[i]);
		cr0_write(cr0);
	}
	/* The same through other registers: every register has its own encoding. */
	asm volatile("mov %%cr0, %%" WORD_REG("si") "; mov %%" WORD_REG("si") ", %%cr0\n\t"
		     "mov %%cr0, %%" WORD_REG("di") "; mov %%" WORD_REG("di") ", %0"
		     : "=r"(seen) : : WORD_REG("si"), WORD_REG("di"), "memory");
	expect("through si, di", seen, cr0);
	verdict("cr0.bits");
}

static void cr2_cr4(void)
{
	ulong cr4 = cr4_read(), seen;

	asm volatile("mov %1, %%cr2; mov %%cr2, %0" : "=r"(seen) : "r"(0x12345678ul));
	expect("cr2", seen, 0x12345678);
	asm volatile("mov %1, %%cr2; mov %%cr2, %0" : "=r"(seen) : "r"(0ul));
	expect("cr2", seen, 0);
	verdict("cr2.write_read");

	cr4_write(cr4 ^ CR4_TSD);
	expect("TSD flipped", cr4_read() ^ cr4, CR4_TSD);
	cr4_write(cr4 ^ CR4_DE);
	expect("DE flipped", cr4_read() ^ cr4, CR4_DE);
	cr4_write(cr4);
	expect("cr4 back", cr4_read(), cr4);
	verdict("cr4.bits");
}

static void debug_registers(void)
{
	ulong seen;

#define ROUND_TRIP(n, value)                                                         \
	asm volatile("mov %1, %%db" #n "; mov %%db" #n ", %0"                        \
		     : "=r"(seen) : "r"((ulong)(value)));                            \
	expect("db" #n, seen, value)

	ROUND_TRIP(0, 0x1000);
	ROUND_TRIP(1, 0x2001);
	ROUND_TRIP(2, 0x3002);
	ROUND_TRIP(3, 0x7ffff003);
	asm volatile("mov %%db0, %0" : "=r"(seen));
	expect("db0 again", seen, 0x1000);
	verdict("debug.addresses");

	ROUND_TRIP(6, 0xffff0ff0); /* no condition met, reserved bits as hardware has them */
	ROUND_TRIP(7, 0x400);      /* nothing enabled; bit 10 is always 1 */
	verdict("debug.status_control");
#undef ROUND_TRIP
}

void test_control(void)
{
	task_switched();
	cr0_bits();
	cr2_cr4();
	debug_registers();
#ifdef __x86_64__
	{
		ulong seen;

		asm volatile("mov %1, %%cr8; mov %%cr8, %0" : "=r"(seen) : "r"(5ul));
		expect("cr8", seen, 5);
		asm volatile("mov %1, %%cr8; mov %%cr8, %0" : "=r"(seen) : "r"(0ul));
		expect("cr8", seen, 0);
		verdict("cr8.task_priority");
	}
#endif
}
