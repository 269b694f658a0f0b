/* Paging on and off and on again, in both i386 formats, and what faults say. */
#include "check.h"
#include "control.h"
#include "kernel.h"
#include "tests.h"
#include "traps.h"

#define PAGE 4096
#define PRESENT 1u
#define WRITABLE 2u
#define USER 4u
#define ACCESSED 0x20u
#define DIRTY 0x40u
#define LARGE 0x80u

typedef u32 table[1024] __attribute__((aligned(PAGE)));
typedef u64 wide_table[512] __attribute__((aligned(PAGE)));

static table directory, other_directory, kernel_table, user_table, alias_table;
static wide_table wide_directory, wide_alias_directory, wide_alias_table;
static u64 pointers[4] __attribute__((aligned(32)));
static u32 page_a[1024] __attribute__((aligned(PAGE)));
static u32 page_b[1024] __attribute__((aligned(PAGE)));

static volatile u32 *const alias = (volatile u32 *)ALIAS;

static void paging_on(void)
{
	cr0_write(cr0_read() | CR0_PG);
	asm volatile("jmp 1f; 1:"); /* as the manuals ask for after the change */
}

static void paging_off(void)
{
	cr0_write(cr0_read() & ~CR0_PG);
	asm volatile("jmp 1f; 1:");
	cr3_write(cr3_read()); /* and the translations go, too */
}

/* 0-4 MiB for the kernel, 4-8 MiB for user mode, and one page at ALIAS. */
static void build(void)
{
	for (u32 i = 0; i < 1024; i++) {
		kernel_table[i] = i * PAGE | WRITABLE | PRESENT;
		user_table[i] = (0x400000 + i * PAGE) | USER | WRITABLE | PRESENT;
		page_a[i] = 0xaaaaaaaa;
		page_b[i] = 0xbbbbbbbb;
	}
	directory[0] = (u32)kernel_table | WRITABLE | PRESENT;
	directory[1] = (u32)user_table | USER | WRITABLE | PRESENT;
	directory[ALIAS >> 22] = (u32)alias_table | WRITABLE | PRESENT;
	alias_table[0] = (u32)page_a | WRITABLE | PRESENT;
}

static void switching(void)
{
	cr3_write((u32)directory);
	expect("cr3", cr3_read(), (u32)directory);
	expect("PG before", cr0_read() & CR0_PG, 0);
	paging_on();
	expect("PG", cr0_read() & CR0_PG, CR0_PG);
	expect("alias", alias[0], 0xaaaaaaaa);
	alias[1] = 0x1234;
	expect("the page itself", page_a[1], 0x1234);
	verdict("paging.on");

	paging_off();
	expect("PG", cr0_read() & CR0_PG, 0);
	alias_table[0] = (u32)page_b | WRITABLE | PRESENT;
	verdict("paging.off");

	paging_on();
	expect("alias", alias[0], 0xbbbbbbbb);
	verdict("paging.on_again");
}

static void invalidation(void)
{
	expect("alias", alias[0], 0xbbbbbbbb);
	alias_table[0] = (u32)page_a | WRITABLE | PRESENT;
	page_invalidate(ALIAS);
	expect("after invlpg", alias[0], 0xaaaaaaaa);
	alias_table[0] = (u32)page_b | WRITABLE | PRESENT;
	cr3_write(cr3_read());
	expect("after cr3 reload", alias[0], 0xbbbbbbbb);
	verdict("paging.invlpg_and_reload");

	/* Another address space that differs in one directory entry. */
	for (u32 i = 0; i < 1024; i++)
		other_directory[i] = directory[i];
	other_directory[ALIAS >> 22] = 0;
	cr3_write((u32)other_directory);
	expect("cr3", cr3_read(), (u32)other_directory);
	PROBE("mov (%0), %%eax", (), ("r"(alias)), "eax");
	expect("vector", last_trap.vector, PAGE_FAULT);
	cr3_write((u32)directory);
	expect("alias", alias[0], 0xbbbbbbbb);
	verdict("paging.address_spaces");
}

extern u8 at_read[], at_write[];

static __attribute__((noinline)) void faults(void)
{
	u32 missing = ALIAS + 5 * PAGE + 8;

	PROBE("at_read: mov (%0), %%eax", (), ("r"(missing)), "eax");
	expect("vector", last_trap.vector, PAGE_FAULT);
	expect("error", last_trap.error, 0);
	expect("cr2", last_trap.cr2, missing);
	expect("eip", last_trap.ip, (u32)at_read);
	expect("cs", last_trap.cs, SEL_KERNEL_CODE);
	expect("frame", last_trap.frame, trap_resume.sp - 12);
	PROBE("at_write: movl $1, (%0)", (), ("r"(missing)));
	expect("error of a write", last_trap.error, 2);
	expect("eip of a write", last_trap.ip, (u32)at_write);
	verdict("paging.fault_not_present");

	alias_table[1] = (u32)page_a | PRESENT; /* read-only */
	page_invalidate(ALIAS + PAGE);
	cr0_write(cr0_read() & ~CR0_WP);
	PROBE("movl $0x77, (%0)", (), ("r"(ALIAS + PAGE)));
	expect("without WP", last_trap.vector, NO_TRAP);
	expect("written", page_a[0], 0x77);
	page_a[0] = 0xaaaaaaaa;
	cr0_write(cr0_read() | CR0_WP);
	PROBE("movl $0x77, (%0)", (), ("r"(ALIAS + PAGE)));
	expect("with WP", last_trap.vector, PAGE_FAULT);
	expect("error", last_trap.error, 3);
	expect("not written", page_a[0], 0xaaaaaaaa);
	cr0_write(cr0_read() & ~CR0_WP);
	verdict("paging.write_protect");
}

static void accessed_dirty(void)
{
	alias_table[2] = (u32)page_a | WRITABLE | PRESENT;
	page_invalidate(ALIAS + 2 * PAGE);
	expect("untouched", alias_table[2] & (ACCESSED | DIRTY), 0);
	expect("word", alias[2 * 1024], 0xaaaaaaaa);
	expect("after a read", alias_table[2] & (ACCESSED | DIRTY), ACCESSED);
	alias[2 * 1024] = 0xaaaaaaaa;
	expect("after a write", alias_table[2] & (ACCESSED | DIRTY), ACCESSED | DIRTY);
	verdict("paging.accessed_dirty");
}

static void large_pages(void)
{
	cr4_write(cr4_read() | CR4_PSE);
	directory[(ALIAS >> 22) + 1] = LARGE | WRITABLE | PRESENT; /* physical 0..4 MiB */
	cr3_write((u32)directory);
	expect("word", *(volatile u32 *)(ALIAS + 0x400000 + (u32)page_b), 0xbbbbbbbb);
	directory[(ALIAS >> 22) + 1] = 0;
	cr3_write((u32)directory);
	cr4_write(cr4_read() & ~CR4_PSE);
	verdict("paging.large_page");
}

/* The same again with 64-bit entries; changing the format needs paging off in between. */
static void physical_extension(void)
{
	if (!(cpuid(1, 0).edx & 1 << 6)) {
		skipped("paging.pae", "the processor has no PAE");
		return;
	}
	for (u32 i = 0; i < 4; i++)
		wide_directory[i] = i << 21 | LARGE | WRITABLE | PRESENT | (i >= 2 ? USER : 0);
	wide_alias_directory[0] = (u32)wide_alias_table | WRITABLE | PRESENT;
	wide_alias_table[0] = (u32)page_a | WRITABLE | PRESENT;
	pointers[0] = (u32)wide_directory | PRESENT;
	pointers[ALIAS >> 30] = (u32)wide_alias_directory | PRESENT;

	paging_off();
	cr4_write(cr4_read() | CR4_PAE);
	cr3_write((u32)pointers);
	paging_on();
	expect("PAE", cr4_read() & CR4_PAE, CR4_PAE);
	expect("cr3", cr3_read(), (u32)pointers);
	expect("alias", alias[0], 0xaaaaaaaa);
	wide_alias_table[0] = (u32)page_b | WRITABLE | PRESENT;
	page_invalidate(ALIAS);
	expect("after invlpg", alias[0], 0xbbbbbbbb);
	PROBE("movl $1, (%0)", (), ("r"(ALIAS + PAGE)));
	expect("vector", last_trap.vector, PAGE_FAULT);
	expect("error", last_trap.error, 2);
	expect("cr2", last_trap.cr2, ALIAS + PAGE);
	paging_off();
	cr4_write(cr4_read() & ~CR4_PAE);
	cr3_write((u32)directory);
	paging_on();
	expect("alias in the old format", alias[0], 0xbbbbbbbb);
	verdict("paging.pae");
}

static void global_pages(void)
{
	alias_table[3] = (u32)page_a | 0x100 | WRITABLE | PRESENT;
	cr4_write(cr4_read() | CR4_PGE);
	expect("word", alias[3 * 1024], 0xaaaaaaaa);
	alias_table[3] = (u32)page_b | 0x100 | WRITABLE | PRESENT;
	cr4_write(cr4_read() & ~CR4_PGE); /* drops global translations as well */
	expect("after the change of PGE", alias[3 * 1024], 0xbbbbbbbb);
	verdict("paging.global_pages");
}

void test_paging(void)
{
	build();
	switching();
	invalidation();
	faults();
	accessed_dirty();
	large_pages();
	physical_extension();
	global_pages();
}
