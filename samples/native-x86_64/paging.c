/* Four levels of page tables: other address spaces, invalidation, and what faults say. */
#include "check.h"
#include "control.h"
#include "kernel.h"
#include "tests.h"
#include "traps.h"

#define PAGE 4096
#define PRESENT 1ull
#define WRITABLE 2ull
#define USER 4ull
#define ACCESSED 0x20ull
#define DIRTY 0x40ull
#define LARGE 0x80ull
#define GLOBAL 0x100ull
#define NO_EXECUTE (1ull << 63)

typedef u64 table[512] __attribute__((aligned(PAGE)));

static table top, other_top, low_pointers, high_pointers, low_directory, high_directory;
static table user_table, alias_pointers, alias_directory, alias_table;
static u32 page_a[1024] __attribute__((aligned(PAGE)));
static u32 page_b[1024] __attribute__((aligned(PAGE)));

static volatile u32 *const alias = (volatile u32 *)ALIAS;

static u64 entry(const volatile void *page, u64 bits)
{
	return physical(page) | bits | PRESENT;
}

/* Low memory for boot code and user mode, the upper half, and one page at ALIAS. */
static void build(void)
{
	for (u32 i = 0; i < 512; i++) {
		low_directory[i] = (u64)i << 21 | LARGE | WRITABLE | PRESENT;
		high_directory[i] = (u64)i << 21 | LARGE | WRITABLE | PRESENT;
		user_table[i] = (USER_CODE + (u64)i * PAGE) | USER | WRITABLE | PRESENT;
	}
	for (u32 i = 0; i < 1024; i++) {
		page_a[i] = 0xaaaaaaaa;
		page_b[i] = 0xbbbbbbbb;
	}
	low_directory[USER_CODE >> 21] = entry(user_table, USER | WRITABLE);
	low_pointers[0] = entry(low_directory, USER | WRITABLE);
	high_pointers[510] = entry(high_directory, WRITABLE);
	alias_pointers[0] = entry(alias_directory, WRITABLE);
	alias_directory[0] = entry(alias_table, WRITABLE);
	alias_table[0] = entry(page_a, WRITABLE);
	top[0] = entry(low_pointers, USER | WRITABLE);
	top[ALIAS >> 39 & 511] = entry(alias_pointers, WRITABLE);
	top[511] = entry(high_pointers, WRITABLE);
	for (u32 i = 0; i < 512; i++)
		other_top[i] = top[i];
	other_top[ALIAS >> 39 & 511] = 0;
}

static void address_spaces(void)
{
	expect("PG", cr0_read() & CR0_PG, CR0_PG);
	cr3_write(physical(top));
	expect("cr3", cr3_read(), physical(top));
	expect("alias", alias[0], 0xaaaaaaaa);
	alias[1] = 0x1234;
	expect("the page itself", page_a[1], 0x1234);
	cr3_write(physical(other_top));
	expect("cr3", cr3_read(), physical(other_top));
	PROBE("mov (%0), %%eax", (), ("r"(alias)), "eax");
	expect("vector", last_trap.vector, PAGE_FAULT);
	cr3_write(physical(top));
	expect("alias", alias[0], 0xaaaaaaaa);
	verdict("paging.address_spaces");
}

static void invalidation(void)
{
	alias_table[0] = entry(page_b, WRITABLE);
	page_invalidate(ALIAS);
	expect("after invlpg", alias[0], 0xbbbbbbbb);
	alias_table[0] = entry(page_a, WRITABLE);
	cr3_write(cr3_read());
	expect("after cr3 reload", alias[0], 0xaaaaaaaa);
	verdict("paging.invlpg_and_reload");

	alias_table[3] = entry(page_a, GLOBAL | WRITABLE);
	cr4_write(cr4_read() | CR4_PGE);
	expect("word", alias[3 * 1024], 0xaaaaaaaa);
	alias_table[3] = entry(page_b, GLOBAL | WRITABLE);
	cr4_write(cr4_read() & ~CR4_PGE); /* drops global translations as well */
	expect("after the change of PGE", alias[3 * 1024], 0xbbbbbbbb);
	verdict("paging.global_pages");
}

extern u8 at_read[], at_write[];

static __attribute__((noinline)) void faults(void)
{
	u64 missing = ALIAS + 5 * PAGE + 8;

	PROBE("at_read: mov (%0), %%eax", (), ("r"(missing)), "eax");
	expect("vector", last_trap.vector, PAGE_FAULT);
	expect("error", last_trap.error, 0);
	expect("cr2", last_trap.cr2, missing);
	expect("rip", last_trap.ip, (u64)at_read);
	expect("cs", last_trap.cs, SEL_KERNEL_CODE);
	expect("rsp", last_trap.sp, trap_resume.sp);
	expect("frame", last_trap.frame, (trap_resume.sp & ~15ul) - 40);
	PROBE("at_write: movl $1, (%0)", (), ("r"(missing)));
	expect("error of a write", last_trap.error, 2);
	expect("rip of a write", last_trap.ip, (u64)at_write);
	verdict("paging.fault_not_present");

	alias_table[1] = entry(page_a, 0); /* read-only */
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

static void no_execute(void)
{
	u64 efer = msr_read(MSR_EFER);
	u8 *code = (u8 *)page_b;

	if (!(cpuid(0x80000001, 0).edx & 1 << 20)) {
		skipped("paging.no_execute", "the processor has no NX");
		return;
	}
	code[0] = 0xc3; /* ret */
	alias_table[4] = entry(page_b, WRITABLE);
	page_invalidate(ALIAS + 4 * PAGE);
	PROBE("call *%0", (), ("r"(ALIAS + 4 * PAGE)));
	expect("executable", last_trap.vector, NO_TRAP);
	msr_write(MSR_EFER, efer | EFER_NXE);
	expect("NXE", msr_read(MSR_EFER) & EFER_NXE, EFER_NXE);
	alias_table[4] = entry(page_b, NO_EXECUTE | WRITABLE);
	page_invalidate(ALIAS + 4 * PAGE);
	PROBE("call *%0", (), ("r"(ALIAS + 4 * PAGE)));
	expect("vector", last_trap.vector, PAGE_FAULT);
	expect("error", last_trap.error, 0x11);
	expect("cr2", last_trap.cr2, ALIAS + 4 * PAGE);
	expect("rip", last_trap.ip, ALIAS + 4 * PAGE);
	alias_table[4] = 0;
	page_invalidate(ALIAS + 4 * PAGE);
	msr_write(MSR_EFER, efer);
	page_b[0] = 0xbbbbbbbb;
	verdict("paging.no_execute");
}

static void accessed_dirty(void)
{
	alias_table[2] = entry(page_a, WRITABLE);
	page_invalidate(ALIAS + 2 * PAGE);
	expect("untouched", alias_table[2] & (ACCESSED | DIRTY), 0);
	expect("word", alias[2 * 1024], 0xaaaaaaaa);
	expect("after a read", alias_table[2] & (ACCESSED | DIRTY), ACCESSED);
	alias[2 * 1024] = 0xaaaaaaaa;
	expect("after a write", alias_table[2] & (ACCESSED | DIRTY), ACCESSED | DIRTY);
	verdict("paging.accessed_dirty");

	alias_directory[1] = LARGE | WRITABLE | PRESENT; /* physical 0..2 MiB */
	cr3_write(cr3_read());
	expect("word", *(volatile u32 *)(ALIAS + 0x200000 + physical(page_b)), 0xbbbbbbbb);
	alias_directory[1] = 0;
	cr3_write(cr3_read());
	verdict("paging.large_page");
}

void test_paging(void)
{
	build();
	address_spaces();
	invalidation();
	faults();
	no_execute();
	accessed_dirty();
}
