/* Descriptor tables: the guest's own stay as written, the CPU sees privilege 1 in place of 0. */
#include "kernel.h"

struct pointer {
	u16 limit;
	u32 base;
} __attribute__((packed));

static u32 window[8] = { 0x11111111, 0x22222222, 0x33333333, 0x44444444,
			 0x55555555, 0x66666666, 0x77777777, 0x88888888 };
static u64 ldt[4] __attribute__((aligned(4096)));
static u64 other_idt[256] __attribute__((aligned(4096)));
static u32 tss[26] __attribute__((aligned(4096)));

static u32 first_word(u16 selector)
{
	u32 word;

	asm volatile("mov %1, %%fs; mov %%fs:0, %0; mov %2, %%fs"
		     : "=&r"(word) : "r"(selector), "r"((u16)0) : "memory");
	return word;
}

/* A segment or system descriptor of `size` bytes. */
static u32 low(const volatile void *base, u32 size)
{
	return (u32)base << 16 | (size - 1);
}

static u32 high(const volatile void *base, u32 kind)
{
	return ((u32)base & 0xff000000) | 0x00400000 | kind << 8 | ((u32)base >> 16 & 0xff);
}

static void write_entry(enum vmi_call call, void *table, u32 index, u32 a, u32 b)
{
	vmi5(call, (u32)table, index, a, b, 0);
}

static void global(void)
{
	struct pointer p = { 0, 0 };
	const struct pointer wanted = { sizeof gdt - 1, (u32)gdt };

	vmi(VMI_GetGDT, (u32)&p, 0, 0);
	expect("limit", p.limit, wanted.limit);
	expect("base", p.base, wanted.base);
	write_entry(VMI_WriteGDTEntry, gdt, GDT_FREE_ENTRY, low(window, 16), high(window, 0x92));
	expect("first", first_word(SEL_FREE), 0x11111111);
	write_entry(VMI_WriteGDTEntry, gdt, GDT_FREE_ENTRY, low(window + 4, 16), high(window + 4, 0xf2));
	expect("changed", first_word(SEL_FREE), 0x55555555);
	vmi(VMI_SetGDT, (u32)&wanted, 0, 0);
	expect("after loading it again", first_word(SEL_FREE), 0x55555555);
	write_entry(VMI_WriteGDTEntry, gdt, GDT_FREE_ENTRY, 0, 0);
	expect("in memory", gdt[GDT_FREE_ENTRY], 0);
	PROBE("mov %0, %%fs", (), ("r"((u16)SEL_FREE)));
	expect("vector when empty", last_trap.vector, GENERAL_PROTECTION);
	expect("error when empty", last_trap.error, SEL_FREE);
	verdict("tables.gdt");

	PROBE("mov %0, %%fs", (), ("r"((u16)(GDT_ENTRIES * 8))));
	expect("vector beyond the limit", last_trap.vector, GENERAL_PROTECTION);
	write_entry(VMI_WriteGDTEntry, gdt, GDT_FREE_ENTRY, SEL_KERNEL_CODE << 16,
		    0x0000ec00); /* a call gate to privilege 0 */
	PROBE("lcall %0, $0", (), ("i"(SEL_FREE)));
	expect("vector of a call gate", last_trap.vector, GENERAL_PROTECTION);
	write_entry(VMI_WriteGDTEntry, gdt, GDT_FREE_ENTRY, 0, 0);
	verdict("tables.no_way_in");
}

static void local(void)
{
	expect("none at first", (u32)vmi0(VMI_GetLDT), 0);
	ldt[1] = (u64)high(window + 2, 0x92) << 32 | low(window + 2, 16);
	write_entry(VMI_WriteGDTEntry, gdt, SEL_LDT / 8, low(ldt, sizeof ldt), high(ldt, 0x82));
	vmi(VMI_SetLDT, SEL_LDT, 0, 0);
	expect("selector", (u32)vmi0(VMI_GetLDT), SEL_LDT);
	expect("its entry", first_word(0x0c), 0x33333333);
	write_entry(VMI_WriteLDTEntry, ldt, 2, low(window + 7, 4), high(window + 7, 0x92));
	expect("a new entry", first_word(0x14), 0x88888888);
	vmi(VMI_SetLDT, 0, 0, 0);
	PROBE("mov %0, %%fs", (), ("r"((u16)0x0c)));
	expect("vector without one", last_trap.vector, GENERAL_PROTECTION);
	PROBE("call *%0", (), ("r"(vmi_entry[VMI_SetLDT]), "a"(SEL_KERNEL_DATA)), "ecx", "edx");
	expect("vector for no LDT", last_trap.vector, GENERAL_PROTECTION);
	expect("error for no LDT", last_trap.error, SEL_KERNEL_DATA);
	verdict("tables.ldt");
}

static void interrupt(void)
{
	struct pointer p = { 0, 0 };
	const struct pointer other = { sizeof other_idt - 1, (u32)other_idt };
	const struct pointer usual = { sizeof idt - 1, (u32)idt };

	vmi(VMI_GetIDT, (u32)&p, 0, 0);
	expect("limit", p.limit, usual.limit);
	expect("base", p.base, usual.base);
	for (u32 i = 0; i < 256; i++)
		other_idt[i] = idt[i];
	vmi(VMI_SetIDT, (u32)&other, 0, 0);
	vmi(VMI_GetIDT, (u32)&p, 0, 0);
	expect("the other's base", p.base, other.base);
	gate(other_idt, 0x33, 0x8e);
	write_entry(VMI_WriteIDTEntry, other_idt, 0x34, (u32)other_idt[0x33],
		    (u32)(other_idt[0x33] >> 32));
	PROBE("int $0x34", (), ());
	expect("vector by a copied gate", last_trap.vector, 0x33);
	write_entry(VMI_WriteIDTEntry, other_idt, 0x34, 0, 0);
	PROBE("int $0x34", (), ());
	expect("vector without the gate", last_trap.vector, GENERAL_PROTECTION);
	expect("error without the gate", last_trap.error, 0x34 * 8 + 2);
	vmi(VMI_SetIDT, (u32)&usual, 0, 0);
	verdict("tables.idt");
}

static void task(void)
{
	tss[1] = (u32)(trap_stack + sizeof trap_stack);
	tss[2] = SEL_KERNEL_DATA;
	tss[25] = 0xffff0000;
	write_entry(VMI_WriteGDTEntry, gdt, SEL_TSS / 8, low(tss, 104), high(tss, 0x89));
	vmi(VMI_SetTR, SEL_TSS, 0, 0);
	expect("selector", (u32)vmi0(VMI_GetTR), SEL_TSS);
	PROBE("call *%0", (), ("r"(vmi_entry[VMI_SetTR]), "a"(SEL_KERNEL_DATA)), "ecx", "edx");
	expect("vector for no TSS", last_trap.vector, GENERAL_PROTECTION);
	expect("error for no TSS", last_trap.error, SEL_KERNEL_DATA);
	verdict("tables.tr");
}

static void pointers(void)
{
	static const u8 calls[] = { VMI_SetGDT, VMI_SetIDT, VMI_GetGDT, VMI_GetIDT };

	for (u32 i = 0; i < ARRAY_LENGTH(calls); i++) {
		PROBE("call *%0", (), ("r"(vmi_entry[calls[i]]), "a"(UNMAPPED)), "ecx", "edx");
		expect("vector", last_trap.vector, PAGE_FAULT);
		expect("address", last_trap.cr2, UNMAPPED);
		expect_that("at the ROM's instruction", last_trap.ip >= vrom->virtual_top);
	}
	PROBE("call *%0", (), ("r"(vmi_entry[VMI_GetGDT]), "a"(vrom->virtual_top)), "ecx", "edx");
	expect("vector for the hypervisor's memory", last_trap.vector, PAGE_FAULT);
	verdict("tables.bad_pointers");
}

void test_tables(void)
{
	global();
	local();
	interrupt();
	task();
	pointers();
}
