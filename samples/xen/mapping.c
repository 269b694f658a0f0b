/* Page tables are ours to write only through Xen, which checks what every page is used as. */
#include "check.h"
#include "kernel.h"

static u8 window[4096] __attribute__((aligned(4096)));
static u64 page_a[512] __attribute__((aligned(4096)));
static u64 page_b[512] __attribute__((aligned(4096)));
static table spare_table;

static u64 entry_address(const volatile void *mapped)
{
	u64 *entry = table_entry(mapped);

	return machine_frame(entry) << 12 | ((ulong)entry & 4095);
}

static long update(u64 ptr, u64 val)
{
	struct mmu_update request = { ptr, val };

	return HC4(mmu_update, &request, 1, 0, DOMID_SELF);
}

static u64 mapping_of(const volatile void *page, u64 flags)
{
	return machine_frame(page) << 12 | flags;
}

static void entries(void)
{
	volatile u64 *seen = (volatile u64 *)window;
	u32 done = 7;
	struct mmu_update two[2] = {
		{ entry_address(window), mapping_of(page_a, WRITABLE | PRESENT) },
		{ entry_address(window), ~0ull << 40 | PRESENT },
	};

	page_a[0] = 0xaaaa;
	page_b[0] = 0xbbbb;
	returns("mmu_update.good", update(entry_address(window),
					 mapping_of(page_a, WRITABLE | PRESENT)), 0);
	update_va_mapping(window, mapping_of(page_a, WRITABLE | PRESENT), UVMF_INVLPG);
	expect("word", *seen, 0xaaaa);
	verdict("mmu_update.maps");
	returns("update_va_mapping.good",
		update_va_mapping(window, mapping_of(page_b, WRITABLE | PRESENT), UVMF_INVLPG), 0);
	expect("word", *seen, 0xbbbb);
	verdict("update_va_mapping.maps");
	returns("update_va_mapping.flush",
		update_va_mapping(window, mapping_of(page_a, PRESENT), UVMF_TLB_FLUSH), 0);
	PROBE("movl $1, (%0)", (), ("r"(window)));
	expect("vector", last_trap.vector, PAGE_FAULT);
	expect("error", last_trap.error & 3, 3);
	expect("cr2", last_trap.cr2, (ulong)window);
	verdict("update_va_mapping.read_only");
	returns("update_va_mapping.none", update_va_mapping(window, 0, UVMF_INVLPG), 0);
	PROBE("mov (%0), %%eax", (), ("r"(window)), "eax");
	expect("vector", last_trap.vector, PAGE_FAULT);
	expect("error", last_trap.error & 3, 0);
	verdict("update_va_mapping.unmaps");

	returns("mmu_update.nothing", HC4(mmu_update, 0, 0, 0, DOMID_SELF), 0);
	returns("mmu_update.second_is_bad", HC4(mmu_update, two, 2, &done, DOMID_SELF), -XEN_EPERM);
	expect("done", done, 1);
	verdict("mmu_update.counts");
	returns("mmu_update.keep_accessed_dirty", update(2 | entry_address(window), 0), 0);
	returns("mmu_update.no_translation", update(3 | entry_address(window), 0), 0);
	returns("mmu_update.no_such_frame", update(1ull << 50, 0), -XEN_EINVAL);
	returns("mmu_update.bad_pointer", HC4(mmu_update, WILD, 1, 0, DOMID_SELF), -XEN_EFAULT);
	returns("mmu_update.no_such_domain", HC4(mmu_update, two, 1, 0, DOMID_NONE), -XEN_ESRCH);
	returns("mmu_update.own_number_table",
		update(machine_frame(page_a) << 12 | 1, ((ulong)page_a - KERNEL_BASE) >> 12), 0);
	returns("update_va_mapping.bad_frame",
		update_va_mapping(window, 1ull << 50 | PRESENT, UVMF_INVLPG), -XEN_EPERM);
}

static long extended(u32 command, ulong arg1, ulong arg2)
{
	struct mmuext_op op = { command, arg1, arg2 };

	return HC4(mmuext_op, &op, 1, 0, DOMID_SELF);
}

static void types(void)
{
	struct mmuext_op invalidate = { INVLPG_LOCAL, (ulong)window, 0 };
	u64 *entry = table_entry(window);
	ulong word = 0;

	/* By request, stores to level-1 entries are emulated, with the checks; others fault. */
	HC2(vm_assist, 0, 2);
	PROBE("mov %1, (%0)", (), ("r"(entry), "r"((ulong)mapping_of(page_b, PRESENT))));
	expect("vector", last_trap.vector, NO_TRAP);
	HC4(mmuext_op, &invalidate, 1, 0, DOMID_SELF);
	PROBE("mov (%1), %0", ("+r"(word)), ("r"(window)));
	expect("vector of the read", last_trap.vector, NO_TRAP);
	expect("word", word, 0xbbbb);
	verdict("types.level_1_stores_are_emulated");
	PROBE("mov %1, (%0)", (), ("r"(start_info->pt_base + 8), "r"(0ul)));
	expect("vector", last_trap.vector, PAGE_FAULT);
	expect("error", last_trap.error & 3, 3);
	verdict("types.higher_stores_fault");
	HC2(vm_assist, 1, 2);

	returns("types.pin_a_writable_page", extended(PIN_L1_TABLE, machine_frame(spare_table), 0),
		-XEN_EINVAL);
	returns("types.read_only", map_read_only(spare_table), 0);
	returns("types.pin", extended(PIN_L1_TABLE, machine_frame(spare_table), 0), 0);
	returns("types.pin_twice", extended(PIN_L1_TABLE, machine_frame(spare_table), 0), -XEN_EINVAL);
	returns("types.make_writable", map_writable(spare_table), -XEN_EBUSY);
	returns("types.update_pinned", update(machine_frame(spare_table) << 12,
					     mapping_of(page_a, PRESENT)), 0);
	/* Xen adds bits of its own: user, and marks among those that software may use. */
	expect("entry", spare_table[0] & ~(USER | ACCESSED | DIRTY | 0x7ff0000000000e00),
	       mapping_of(page_a, PRESENT));
	verdict("types.entry_written");
	returns("types.self_map_writable", update(machine_frame(spare_table) << 12,
						 mapping_of(spare_table, WRITABLE | PRESENT)),
		-XEN_EBUSY);
	returns("types.unpin", extended(UNPIN_TABLE, machine_frame(spare_table), 0), 0);
	returns("types.unpin_twice", extended(UNPIN_TABLE, machine_frame(spare_table), 0), -XEN_EINVAL);
	returns("types.writable_again", map_writable(spare_table), 0);
	spare_table[0] = 0;
	verdict("types.written");
}

static void flushes(void)
{
	returns("mmuext.tlb_flush_local", extended(TLB_FLUSH_LOCAL, 0, 0), 0);
	returns("mmuext.invlpg_local", extended(INVLPG_LOCAL, (ulong)window, 0), 0);
	returns("mmuext.tlb_flush_all", extended(TLB_FLUSH_ALL, 0, 0), 0);
	returns("mmuext.invlpg_all", extended(INVLPG_ALL, (ulong)window, 0), 0);
	returns("mmuext.new_baseptr", extended(NEW_BASEPTR,
		machine_frame((void *)start_info->pt_base), 0), 0);
	returns("mmuext.bad_baseptr", extended(NEW_BASEPTR, machine_frame(page_a), 0), -XEN_EINVAL);
	page_a[7] = 7;
	returns("mmuext.clear_page", extended(CLEAR_PAGE, machine_frame(page_a), 0), 0);
	expect("word", page_a[7], 0);
	verdict("mmuext.cleared");
	page_b[7] = 9;
	returns("mmuext.copy_page", extended(COPY_PAGE, machine_frame(page_a), machine_frame(page_b)), 0);
	expect("word", page_a[7], 9);
	verdict("mmuext.copied");
	returns("mmuext.unknown", extended(99, 0, 0), -XEN_ENOSYS);
	returns("mmuext.bad_pointer", HC4(mmuext_op, WILD, 1, 0, DOMID_SELF), -XEN_EFAULT);
	returns("mmuext.no_such_domain", HC4(mmuext_op, 0, 0, 0, DOMID_NONE), -XEN_ESRCH);
}

void test_mapping(void)
{
	entries();
	types();
	flushes();
}
