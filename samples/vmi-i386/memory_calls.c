/* Entries of page tables, pages that hold them, translations and their end. */
#include "kernel.h"

static u32 frame_a[1024] __attribute__((aligned(4096))) = { 0xaaaaaaaa };
static u32 frame_b[1024] __attribute__((aligned(4096))) = { 0xbbbbbbbb };

static u32 peek(u32 linear)
{
	return *(volatile u32 *)linear;
}

static u32 entry(u32 linear)
{
	return *(volatile u32 *)leaf(linear);
}

static void expect_fault(u32 linear, u32 error)
{
	expect("vector", last_trap.vector, PAGE_FAULT);
	expect("error", last_trap.error, error);
	expect("cr2", last_trap.cr2, linear);
}

static void entries(void)
{
	add_table(ALIAS);
	set_leaf(ALIAS, (u32)frame_a | 3, VMI_PAGE_CURRENT_AS | ALIAS);
	expect("in memory", entry(ALIAS) & ~0x60u, (u32)frame_a | 3);
	expect("mapped", peek(ALIAS), 0xaaaaaaaa);
	set_leaf(ALIAS, (u32)frame_b | 3, VMI_PAGE_CURRENT_AS | ALIAS);
	vmi(VMI_InvalPage, ALIAS, 0, 0);
	expect("mapped elsewhere", peek(ALIAS), 0xbbbbbbbb);
	verdict("memory.set_entry");

	*(volatile u32 *)leaf(ALIAS) = (u32)frame_a | 3;
	vmi(entry_size == 8 ? VMI_UpdatePxELong : VMI_UpdatePxE, (u32)leaf(ALIAS), VMI_PAGE_PT, 0);
	vmi(VMI_FlushTLB, 1, 0, 0);
	expect("mapped by the guest", peek(ALIAS), 0xaaaaaaaa);
	verdict("memory.update_entry");

	set_leaf(ALIAS, 0, VMI_PAGE_CURRENT_AS | ALIAS);
	vmi(VMI_InvalPage, ALIAS, 0, 0);
	PROBE("mov %0, %%eax", (), ("m"(*(u32 *)ALIAS)), "eax");
	expect_fault(ALIAS, 0);
	set_leaf(ALIAS, (u32)frame_a | 1, VMI_PAGE_CURRENT_AS | ALIAS);
	PROBE("movl $1, %0", (), ("m"(*(u32 *)ALIAS)));
	expect_fault(ALIAS, 3);
	verdict("memory.faults");

	set_leaf(ALIAS, (u32)frame_a | 3, VMI_PAGE_CURRENT_AS | ALIAS);
	vmi(VMI_FlushTLB, 3, 0, 0);
	peek(ALIAS);
	expect("accessed", entry(ALIAS) & 0x60, 0x20);
	*(volatile u32 *)(ALIAS + 4) = 1;
	expect("dirty", entry(ALIAS) & 0x60, 0x60);
	verdict("memory.accessed_dirty");
}

static void deferred(void)
{
	set_leaf(ALIAS, (u32)frame_a | 3, VMI_PAGE_CURRENT_AS | ALIAS);
	vmi(VMI_InvalPage, ALIAS, 0, 0);
	set_leaf(ALIAS, (u32)frame_b | 3, VMI_PAGE_CURRENT_AS | VMI_PAGE_DEFER | ALIAS);
	expect("still the old one", peek(ALIAS), 0xaaaaaaaa);
	vmi(VMI_FlushTLB, 1, 0, 0);
	expect("the new one", peek(ALIAS), 0xbbbbbbbb);
	verdict("memory.deferred");

	vmi(VMI_SetLazyMode, 1, 0, 0);
	set_leaf(ALIAS, (u32)frame_a | 3, VMI_PAGE_CURRENT_AS | ALIAS);
	expect("waits", peek(ALIAS), 0xbbbbbbbb);
	vmi(VMI_SetLazyMode, 0, 0, 0);
	expect("done", peek(ALIAS), 0xaaaaaaaa);
	vmi(VMI_SetLazyMode, 1, 0, 0);
	for (u32 i = 0; i < 200; i++) /* more than any queue holds */
		set_leaf(ALIAS, (u32)(i & 1 ? frame_a : frame_b) | 3, VMI_PAGE_CURRENT_AS | ALIAS);
	vmi(VMI_SetLazyMode, 99, 0, 0); /* no such mode: none */
	expect("the last one", peek(ALIAS), 0xaaaaaaaa);
	verdict("memory.lazy_mode");

	vmi(VMI_SetLazyMode, 2, 0, 0);
	vmi5(VMI_WriteGDTEntry, (u32)gdt, GDT_FREE_ENTRY, 0x0000ffff, 0x00cf9200, 0);
	expect("waits", gdt[GDT_FREE_ENTRY], 0);
	vmi(VMI_SetLazyMode, 0, 0, 0);
	expect("done", gdt[GDT_FREE_ENTRY], 0x00cf92000000ffffull);
	vmi5(VMI_WriteGDTEntry, (u32)gdt, GDT_FREE_ENTRY, 0, 0, 0);
	verdict("memory.lazy_cpu_mode");
}

static void pages(void)
{
	u32 copy = root_of_copy();

	vmi(VMI_SetCR3, copy, 0, 0);
	expect("cr3", (u32)vmi0(VMI_GetCR3), copy);
	expect("the same mappings", peek(ALIAS), 0xaaaaaaaa);
	vmi(VMI_SetCR3, root, 0, 0);
	vmi(VMI_ReleasePage, copy >> 12, VMI_PAGE_PD, 0);
	vmi(VMI_ReleasePage, 0x12345, VMI_PAGE_PT, 0); /* was never one */
	verdict("memory.new_root");

	expect("machine", (u32)vmi(VMI_PhysicalToMachine, 0x1234, 0, 0), 0x1234);
	expect("physical", (u32)vmi(VMI_MachineToPhysical, 0x1234, 0, 0), 0x1234);
	verdict("memory.machine_frames");

	/* Entries may be named by an announced mapping that no page table holds. */
	vmi5(VMI_SetLinearMapping, 0, 0x80000000, 1024, 0, 0);
	vmi5(entry_size == 8 ? VMI_SetPxELong : VMI_SetPxE, (u32)frame_b | 3,
	     entry_size == 8 ? 0 : 0x80000000 + (u32)leaf(ALIAS),
	     entry_size == 8 ? 0x80000000 + (u32)leaf(ALIAS) : (VMI_PAGE_PT | VMI_PAGE_CURRENT_AS | ALIAS),
	     VMI_PAGE_PT | VMI_PAGE_CURRENT_AS | ALIAS, 0);
	expect("through the mapping", peek(ALIAS), 0xbbbbbbbb);
	vmi5(VMI_SetLinearMapping, 0, 0, 0, 0, 0);
	verdict("memory.linear_mapping");
}

static void wrong(void)
{
	PROBE("push $1; call *%0", (), ("r"(vmi_entry[VMI_SetPxE]), "a"(3), "d"(UNMAPPED), "c"(VMI_PAGE_PT)));
	expect_fault(UNMAPPED, 2);
	expect_that("at the ROM's instruction", last_trap.ip >= vrom->virtual_top);
	PROBE("call *%0", (), ("r"(vmi_entry[VMI_SetPxE]), "a"(3), "d"(vrom->virtual_top), "c"(VMI_PAGE_PT)));
	expect("vector for the hypervisor's memory", last_trap.vector, PAGE_FAULT);
	vmi(VMI_FlushTLB, 0xffffffff, 0, 0);
	vmi(VMI_InvalPage, vrom->virtual_top, 0, 0);
	verdict("memory.bad_pointers");

	PROBE("movl $1, %0", (), ("m"(*(u32 *)(vrom->virtual_top + 0x1000))));
	expect("vector for a store to the ROM", last_trap.vector, PAGE_FAULT);
	set_leaf(ALIAS, 0xfffff003, VMI_PAGE_CURRENT_AS | ALIAS); /* no memory there */
	expect("an empty bus", peek(ALIAS), 0xffffffff);
	*(volatile u32 *)ALIAS = 0;
	set_leaf(ALIAS, (u32)frame_a | 3, VMI_PAGE_CURRENT_AS | ALIAS);
	expect("memory again", peek(ALIAS), 0xaaaaaaaa);
	verdict("memory.limits");
}

void test_memory(void)
{
	entries();
	deferred();
	pages();
	wrong();
}
