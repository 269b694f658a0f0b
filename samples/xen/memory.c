/*
 * Machine memory: what a guest has are frames anywhere in the machine, what it likes to think
 * in is a row of its own; tables of page numbers lead from one to the other and back.
 */
#include "check.h"
#include "kernel.h"

volatile struct shared_info *shared;

static u8 shared_page[4096] __attribute__((aligned(4096)));

#define MACHINE_TO_PHYSICAL ((const volatile ulong *)HOLE_START)
#define TOP_SHIFT AT_WIDTH(30, 39) /* the highest level: 4 entries, or 512 */

static ulong frame_number(const volatile void *address)
{
	return ((ulong)address - KERNEL_BASE) >> 12;
}

u64 machine_frame(const volatile void *address)
{
	return ((const ulong *)start_info->mfn_list)[frame_number(address)];
}

void *frame_address(ulong frame)
{
	return (void *)(KERNEL_BASE + (MACHINE_TO_PHYSICAL[frame] << 12));
}

u64 *table_entry(const volatile void *address)
{
	u64 *entries = (u64 *)start_info->pt_base;

	for (u32 shift = TOP_SHIFT; shift > 12; shift -= 9)
		entries = frame_address((ulong)(entries[(ulong)address >> shift & 511] << 12 >> 24));
	return &entries[(ulong)address >> 12 & 511];
}

long map_page(const volatile void *page, u64 flags)
{
	return update_va_mapping(page, machine_frame(page) << 12 | flags, UVMF_INVLPG);
}

long map_read_only(const volatile void *page)
{
	return map_page(page, PRESENT);
}

long map_writable(const volatile void *page)
{
	return map_page(page, WRITABLE | PRESENT);
}

void shared_info_map(void)
{
	returns("update_va_mapping.shared_info",
		update_va_mapping(shared_page, (u64)start_info->shared_info | WRITABLE | PRESENT,
		    UVMF_INVLPG), 0);
	shared = (volatile struct shared_info *)shared_page;
}

void test_memory(void)
{
	struct {
		ulong v_start, v_end, max_mfn;
	} mapping;
	u16 self = DOMID_SELF;
	long pages;

	expect("frame's number", MACHINE_TO_PHYSICAL[machine_frame(start_info)],
	       frame_number(start_info));
	expect("entry leads to the frame", *table_entry(start_info) << 12 >> 24,
	       machine_frame(start_info));
	verdict("memory.frame_tables");

	expect_that("a frame number", HC2(memory_op, 2, 0) > 0);
	verdict("memory_op.maximum_ram_page");
	pages = HC2(memory_op, 3, &self);
	expect_that("what start_info says, at least", pages >= (long)start_info->nr_pages);
	verdict("memory_op.current_reservation");
	expect_that("no less than that", HC2(memory_op, 4, &self) >= pages);
	verdict("memory_op.maximum_reservation");
	returns("memory_op.machphys_mapping", HC2(memory_op, 12, &mapping), 0);
	expect("start", mapping.v_start, HOLE_START);
	expect_that("end", mapping.v_end > mapping.v_start && mapping.max_mfn > 0);
	verdict("memory_op.machphys_place");
	returns("memory_op.bad_pointer", HC2(memory_op, 3, WILD), -XEN_EFAULT);
	returns("memory_op.unknown", HC2(memory_op, 63, 0), -XEN_ENOSYS);
}
