/*
 * Page tables: ordinary ones, in guest-physical terms. The host shadows them, so after a
 * change it has to be told, and it sets accessed and dirty bits as hardware would.
 */
#include "check.h"
#include "kernel.h"

#define PAGE 4096
#define PRESENT 1u
#define WRITABLE 2u
#define ACCESSED 0x20u
#define DIRTY 0x40u

typedef u32 table[1024] __attribute__((aligned(PAGE)));

static table other_directory, alias_table;
static table page_a, page_b;

static volatile u32 *const alias = (volatile u32 *)ALIAS;

static void set_pte(u32 address, u32 entry)
{
	alias_table[address >> 12 & 1023] = entry;
	hypercall(LHCALL_SET_PTE, physical(directory), address, entry, 0);
}

static void entries(void)
{
	for (u32 i = 0; i < 1024; i++) {
		page_a[i] = 0xaaaaaaaa;
		page_b[i] = 0xbbbbbbbb;
	}
	directory[ALIAS >> 22] = physical(alias_table) | WRITABLE | PRESENT;
	hypercall(LHCALL_SET_PGD, physical(directory), ALIAS >> 22, 0, 0);
	set_pte(ALIAS, physical(page_a) | WRITABLE | PRESENT);
	expect("alias", alias[0], 0xaaaaaaaa);
	alias[1] = 0x1234;
	expect("the page itself", page_a[1], 0x1234);
	set_pte(ALIAS, physical(page_b) | WRITABLE | PRESENT);
	expect("changed", alias[0], 0xbbbbbbbb);
	verdict("memory.set_pte_set_pgd");

	alias_table[0] = physical(page_a) | WRITABLE | PRESENT;
	hypercall(LHCALL_FLUSH_TLB, 1, 0, 0, 0);
	expect("after the flush", alias[0], 0xaaaaaaaa);
	verdict("memory.flush_tlb");
}

extern u8 at_read[];

static __attribute__((noinline)) void faults(void)
{
	u32 missing = ALIAS + 5 * PAGE + 8;

	PROBE("at_read: mov (%0), %%eax", (), ("r"(missing)), "eax");
	expect("vector", last_trap.vector, PAGE_FAULT);
	expect("error", last_trap.error, 0);
	expect("cr2 in the shared page", last_trap.cr2, missing);
	expect("eip", last_trap.ip, (u32)at_read);
	expect("frame", last_trap.frame, trap_resume.sp - 12);
	PROBE("movl $1, (%0)", (), ("r"(missing)));
	expect("error of a write", last_trap.error, 2);
	verdict("memory.fault_not_present");

	set_pte(ALIAS + PAGE, physical(page_a) | PRESENT);
	PROBE("movl $1, (%0)", (), ("r"(ALIAS + PAGE)));
	expect("vector", last_trap.vector, PAGE_FAULT);
	expect("error", last_trap.error, 3);
	expect("not written", page_a[0], 0xaaaaaaaa);
	verdict("memory.write_protect");

	set_pte(ALIAS + 2 * PAGE, physical(page_a) | WRITABLE | PRESENT);
	expect("untouched", alias_table[2] & (ACCESSED | DIRTY), 0);
	expect("word", alias[2 * 1024], 0xaaaaaaaa);
	expect("after a read", alias_table[2] & (ACCESSED | DIRTY), ACCESSED);
	alias[2 * 1024] = 0xaaaaaaaa;
	expect("after a write", alias_table[2] & (ACCESSED | DIRTY), ACCESSED | DIRTY);
	verdict("memory.accessed_dirty");
}

static void address_spaces(void)
{
	for (u32 i = 0; i < 1024; i++)
		other_directory[i] = directory[i];
	other_directory[ALIAS >> 22] = 0;
	hypercall(LHCALL_NEW_PGTABLE, physical(other_directory), 0, 0, 0);
	PROBE("mov (%0), %%eax", (), ("r"(ALIAS)), "eax");
	expect("vector", last_trap.vector, PAGE_FAULT);
	hypercall(LHCALL_NEW_PGTABLE, physical(directory), 0, 0, 0);
	expect("alias", alias[0], 0xaaaaaaaa);
	verdict("memory.new_pgtable");

	/* The low mapping was for the start only. */
	directory[0] = 0;
	hypercall(LHCALL_SET_PGD, physical(directory), 0, 0, 0);
	PROBE("mov (%0), %%eax", (), ("r"(0x100000)), "eax");
	expect("vector", last_trap.vector, PAGE_FAULT);
	expect("cr2", last_trap.cr2, 0x100000);
	verdict("memory.unmap");
}

void test_memory(void)
{
	entries();
	faults();
	address_spaces();
}
