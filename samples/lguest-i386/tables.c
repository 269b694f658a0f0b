/* Descriptors go to the host one by one; it gives privilege 0 of the guest's as privilege 1. */
#include "check.h"
#include "kernel.h"

static u32 window[8] = { 0x11111111, 0x22222222, 0x33333333, 0x44444444,
			 0x55555555, 0x66666666, 0x77777777, 0x88888888 };

static u32 first_word(u16 selector)
{
	u32 word;

	asm volatile("mov %1, %%fs; mov %%fs:0, %0; mov %2, %%fs"
		     : "=&r"(word) : "r"(selector), "r"((u16)0) : "memory");
	return word;
}

void test_tables(void)
{
	static u32 tls[6];
	u16 cs, ss;

	gdt_entry(12, 0x0000ffff, 0x00cf9a00); /* the kernel's own, as Linux loads them */
	gdt_entry(13, 0x0000ffff, 0x00cf9200);
	gdt_entry(14, 0x0000ffff, 0x00cffa00);
	gdt_entry(15, 0x0000ffff, 0x00cff200);
	asm volatile("ljmp %2, $1f; 1: mov %3, %%ss; mov %3, %%ds; mov %3, %%es\n\t"
		     "mov %%cs, %0; mov %%ss, %1"
		     : "=&r"(cs), "=&r"(ss) : "i"(SEL_KERNEL_CODE), "r"(SEL_KERNEL_DATA) : "memory");
	expect("cs", cs, SEL_KERNEL_CODE); /* the RPL shows: lguest does not hide it */
	expect("ss", ss, SEL_KERNEL_DATA);
	verdict("tables.kernel_segments");

	gdt_entry(GDT_FREE_ENTRY, window_low((u32)window), window_high((u32)window, 0));
	expect("first", first_word(SEL_FREE), 0x11111111);
	gdt_entry(GDT_FREE_ENTRY, window_low((u32)(window + 4)), window_high((u32)(window + 4), 0));
	expect("changed", first_word(SEL_FREE), 0x55555555);
	gdt_entry(GDT_FREE_ENTRY, 0, 0);
	PROBE("mov %0, %%fs", (), ("r"((u16)SEL_FREE)));
	expect("vector when empty", last_trap.vector, GENERAL_PROTECTION);
	expect("error when empty", last_trap.error, SEL_FREE & ~3);
	verdict("tables.load_gdt_entry");

	for (u32 i = 0; i < 3; i++) {
		tls[i * 2] = window_low((u32)(window + i));
		tls[i * 2 + 1] = window_high((u32)(window + i), 3);
	}
	hypercall(LHCALL_LOAD_TLS, physical(tls), 0, 0, 0);
	expect("first", first_word(SEL_TLS), 0x11111111);
	expect("third", first_word(SEL_TLS + 16), 0x33333333);
	verdict("tables.load_tls");
}
