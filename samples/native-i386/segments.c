/* Segment registers, descriptor tables, far transfers and the instructions that inspect selectors. */
#include "check.h"
#include "kernel.h"
#include "tests.h"
#include "traps.h"

struct far_pointer {
	u32 offset;
	u16 selector;
} __attribute__((packed));

static u32 window[8] = { 0x11111111, 0x22222222, 0x33333333, 0x44444444,
			 0x55555555, 0x66666666, 0x77777777, 0x88888888 };
static u64 gdt_copy[GDT_ENTRIES] __attribute__((aligned(8)));
static u64 ldt[2];

static void reading(void)
{
	u32 value;
	u16 half;

	asm volatile("mov %%cs, %0" : "=r"(value));
	expect("mov from cs", (u16)value, SEL_KERNEL_CODE);
	asm volatile("mov %%cs, %0" : "=m"(half));
	expect("mov from cs to memory", half, SEL_KERNEL_CODE);
	asm volatile("push %%cs; pop %0" : "=r"(value));
	expect("push cs", (u16)value, SEL_KERNEL_CODE);
	asm volatile("mov %%ss, %0" : "=r"(value));
	expect("mov from ss", (u16)value, SEL_KERNEL_DATA);
	asm volatile("push %%ss; pop %0" : "=r"(value));
	expect("push ss", (u16)value, SEL_KERNEL_DATA);
	asm volatile("push %%ss; pop %%ss; mov %%ss, %0" : "=r"(value) : : "memory");
	expect("pop ss", (u16)value, SEL_KERNEL_DATA);
	asm volatile("mov %%ss, %0; mov %0, %%ss" : "+r"(value) : : "memory");
	asm volatile("mov %%ds, %0" : "=r"(value));
	expect("mov from ds", (u16)value, SEL_KERNEL_DATA);
	verdict("segments.kernel_privilege_0");
}

static void loading(void)
{
	u16 ds, es, fs, gs;
	u32 fs_pushed;

	/* A selector of privilege 3 may be loaded for data, and keeps its RPL. */
	asm volatile("mov %4, %%ds; mov %4, %%es; mov %4, %%fs; mov %4, %%gs\n\t"
		     "mov %%ds, %0; mov %%es, %1; mov %%fs, %2; mov %%gs, %3\n\t"
		     "push %%ss; pop %%ds; push %%ds; pop %%es"
		     : "=&r"(ds), "=&r"(es), "=&r"(fs), "=&r"(gs) : "r"((u16)SEL_USER_DATA) : "memory");
	expect("ds", ds, SEL_USER_DATA);
	expect("es", es, SEL_USER_DATA);
	expect("fs", fs, SEL_USER_DATA);
	expect("gs", gs, SEL_USER_DATA);
	asm volatile("mov %%ds, %0; mov %%es, %1" : "=r"(ds), "=r"(es));
	expect("ds after pop", ds, SEL_KERNEL_DATA);
	expect("es after pop", es, SEL_KERNEL_DATA);
	verdict("segments.user_selector_kept");

	asm volatile("push $0; pop %%fs; push $0; pop %%gs\n\t"
		     "push %%fs; pop %0; mov %%gs, %1" : "=&r"(fs_pushed), "=r"(gs) : : "memory");
	expect("fs", (u16)fs_pushed, 0);
	expect("gs", gs, 0);
	verdict("segments.null_selector");
}

static void pointers(void)
{
	struct far_pointer far = { 0xabcdef01, SEL_USER_DATA };
	u32 offset, stack;
	u16 selector, ss;

#define LOAD_POINTER(name, back)                                                     \
	asm volatile("l" #name " %2, %0; mov %%" #name ", %1; " back                 \
		     : "=&r"(offset), "=&r"(selector) : "m"(far) : "memory");        \
	expect("l" #name " offset", offset, 0xabcdef01);                             \
	expect("l" #name " selector", selector, SEL_USER_DATA)

	LOAD_POINTER(ds, "push %%ss; pop %%ds");
	LOAD_POINTER(es, "push %%ds; pop %%es");
	LOAD_POINTER(fs, "push $0; pop %%fs");
	LOAD_POINTER(gs, "push $0; pop %%gs");
	asm volatile("mov %%esp, %0" : "=r"(stack));
	far.offset = stack - 64;
	far.selector = SEL_KERNEL_DATA;
	asm volatile("mov %%esp, %%ecx; lss %2, %%esp; mov %%esp, %0; mov %%ss, %1; mov %%ecx, %%esp"
		     : "=&r"(offset), "=&r"(ss) : "m"(far) : "ecx", "memory");
	expect("lss offset", offset, far.offset);
	expect("lss selector", ss, SEL_KERNEL_DATA);
	verdict("segments.far_pointers");
#undef LOAD_POINTER
}

static void based(void)
{
	u32 first, last;

	gdt[SEL_WINDOW / 8] = descriptor((u32)window, 15, 0x92, 4);
	asm volatile("mov %2, %%fs; mov %%fs:0, %0; mov %%fs:12, %1"
		     : "=&r"(first), "=r"(last) : "r"((u16)SEL_WINDOW));
	expect("first word", first, 0x11111111);
	expect("last word", last, 0x44444444);
	/* The table is memory: a new descriptor counts from the next load on. */
	gdt[SEL_WINDOW / 8] = descriptor((u32)(window + 4), 15, 0x92, 4);
	asm volatile("mov %%fs:0, %0" : "=r"(first));
	expect("before the reload", first, 0x11111111);
	asm volatile("push %1; pop %%fs; mov %%fs:0, %0" : "=r"(first) : "r"(SEL_WINDOW) : "memory");
	expect("after the reload", first, 0x55555555);
	asm volatile("mov %0, %%fs" : : "r"((u16)0));
	verdict("segments.base");
}

static void bad_selectors(void)
{
	PROBE("mov %0, %%fs", (), ("r"((u16)SEL_ABSENT)));
	expect("vector", last_trap.vector, SEGMENT_NOT_PRESENT);
	expect("error", last_trap.error, SEL_ABSENT);
	PROBE("mov %0, %%ss", (), ("r"((u16)SEL_ABSENT)));
	expect("vector for ss", last_trap.vector, STACK_FAULT);
	expect("error for ss", last_trap.error, SEL_ABSENT);
	verdict("segments.not_present");

	PROBE("mov %0, %%es", (), ("r"((u16)SEL_BEYOND)));
	expect("vector", last_trap.vector, GENERAL_PROTECTION);
	expect("error", last_trap.error, SEL_BEYOND);
	PROBE("mov %0, %%ss", (), ("r"((u16)SEL_USER_DATA))); /* RPL is not CPL */
	expect("vector for ss", last_trap.vector, GENERAL_PROTECTION);
	expect("error for ss", last_trap.error, SEL_USER_DATA & ~3u);
	PROBE("mov %0, %%ds", (), ("r"((u16)SEL_EXECUTE_ONLY)));
	expect("vector for ds", last_trap.vector, GENERAL_PROTECTION);
	expect("error for ds", last_trap.error, SEL_EXECUTE_ONLY);
	verdict("segments.refused");
}

static void reload_code_segment(void)
{
	asm volatile("push %0; push $1f; lret; 1:\n\t"
		     "mov %1, %%ds; mov %1, %%es; mov %1, %%ss"
		     : : "i"(SEL_KERNEL_CODE), "r"((u16)SEL_KERNEL_DATA) : "memory");
}

static void tables(void)
{
	struct table_pointer seen, copy = { sizeof gdt_copy - 1, (u32)gdt_copy };

	asm volatile("sgdt %0" : "=m"(seen));
	expect("gdt limit", seen.limit, gdt_pointer.limit);
	expect("gdt base", seen.base, (u32)gdt);
	asm volatile("sidt %0" : "=m"(seen));
	expect("idt limit", seen.limit, idt_pointer.limit);
	expect("idt base", seen.base, (u32)idt);
	verdict("tables.sgdt_sidt");

	for (u32 i = 0; i < GDT_ENTRIES; i++)
		gdt_copy[i] = gdt[i];
	gdt_copy[SEL_WINDOW / 8] = descriptor((u32)(window + 2), 15, 0x92, 4);
	asm volatile("lgdt %0" : : "m"(copy) : "memory");
	reload_code_segment();
	asm volatile("sgdt %0" : "=m"(seen));
	expect("limit", seen.limit, copy.limit);
	expect("base", seen.base, copy.base);
	{
		u32 first;

		asm volatile("mov %1, %%gs; mov %%gs:0, %0" : "=r"(first) : "r"((u16)SEL_WINDOW));
		expect("word through the new table", first, 0x33333333);
		asm volatile("mov %0, %%gs" : : "r"((u16)0));
	}
	asm volatile("lgdt %0" : : "m"(gdt_pointer) : "memory");
	reload_code_segment();
	asm volatile("sgdt %0" : "=m"(seen));
	expect("base again", seen.base, (u32)gdt);
	verdict("tables.lgdt");
}

static void interrupt_table(void)
{
	static u64 idt_copy[0x81];
	struct table_pointer seen, copy = { sizeof idt_copy - 1, (u32)idt_copy };

	for (u32 i = 0; i < ARRAY_LENGTH(idt_copy); i++)
		idt_copy[i] = idt[i];
	idt_copy[SOFT_INTERRUPT] = idt[SOFT_TRAP];
	idt_copy[SOFT_TRAP] = idt[SOFT_INTERRUPT];
	asm volatile("lidt %1; sidt %0" : "=m"(seen) : "m"(copy) : "memory");
	expect("base", seen.base, copy.base);
	asm volatile("int $0x30" : : : "memory");
	expect("swapped vector", last_trap.vector, SOFT_TRAP);
	/* The table is memory as well: a changed gate counts at once. */
	idt_copy[SOFT_INTERRUPT] = idt[SOFT_INTERRUPT];
	asm volatile("int $0x30" : : : "memory");
	expect("vector changed in place", last_trap.vector, SOFT_INTERRUPT);
	asm volatile("lidt %0" : : "m"(idt_pointer) : "memory");
	asm volatile("int $0x31" : : : "memory");
	expect("own vector", last_trap.vector, SOFT_TRAP);
	verdict("tables.lidt");
}

/* With 16-bit operand size the base has 24 bits; the rest is taken as 0. */
static void short_forms(void)
{
	struct table_pointer seen, gdt_wide = gdt_pointer, idt_wide = idt_pointer;

	gdt_wide.base |= 0xff000000;
	idt_wide.base |= 0xff000000;
	asm volatile("data16 lgdt %1; sgdt %0" : "=m"(seen) : "m"(gdt_wide) : "memory");
	expect("gdt base", seen.base, (u32)gdt);
	expect("gdt limit", seen.limit, gdt_pointer.limit);
	asm volatile("data16 lidt %1; sidt %0" : "=m"(seen) : "m"(idt_wide) : "memory");
	expect("idt base", seen.base, (u32)idt);
	verdict("tables.short_forms");
}

static void system_segments(void)
{
	u16 seen;
	u32 wide;

	asm volatile("str %0" : "=r"(seen));
	expect("tr", seen, SEL_TSS);
	asm volatile("str %0" : "=m"(seen));
	expect("tr in memory", seen, SEL_TSS);
	expect("busy type", gdt[SEL_TSS / 8] >> 40 & 15, 0xb);
	verdict("tables.task_register");

	ldt[1] = descriptor((u32)window, 15, 0x92, 4);
	gdt[SEL_LDT / 8] = descriptor((u32)ldt, sizeof ldt - 1, 0x82, 0);
	asm volatile("lldt %w1; sldt %0" : "=r"(wide) : "r"(SEL_LDT) : "memory");
	expect("ldtr", (u16)wide, SEL_LDT);
	asm volatile("lldt %w1; sldt %0" : "=m"(seen) : "r"(0) : "memory");
	expect("ldtr", seen, 0);
	verdict("tables.local_table_register");
}

static void far_transfers(void)
{
	static struct far_pointer target;
	u16 first, second, third;
	u32 before, after;

	asm volatile("ljmp %3, $1f\n"
		     "1: mov %%cs, %0\n\t"
		     "movl $2f, %2; movw %4, 4+%2; ljmp *%2\n"
		     "2: mov %%cs, %1"
		     : "=&r"(first), "=&r"(second), "+m"(target)
		     : "i"(SEL_OTHER_CODE), "i"(SEL_KERNEL_CODE) : "memory");
	expect("cs after the direct jump", first, SEL_OTHER_CODE);
	expect("cs after the indirect jump", second, SEL_KERNEL_CODE);
	verdict("far.jump");

	asm volatile("mov %%esp, %3\n\t"
		     "lcall %6, $1f\n\t"
		     "jmp 2f\n"
		     "1: mov %%cs, %0; lret\n"
		     "2: mov %%cs, %1\n\t"
		     "push $0; push $0\n\t"           /* two arguments for LRET to drop */
		     "movl $3f, %5; movw %6, 4+%5; lcall *%5\n\t"
		     "jmp 4f\n"
		     "3: mov %%cs, %2; lret $8\n"
		     "4: mov %%esp, %4"
		     : "=&r"(first), "=&r"(second), "=&r"(third), "=&r"(before), "=&r"(after),
		       "+m"(target)
		     : "i"(SEL_OTHER_CODE) : "memory");
	expect("cs inside", first, SEL_OTHER_CODE);
	expect("cs after", second, SEL_KERNEL_CODE);
	expect("cs inside the indirect call", third, SEL_OTHER_CODE);
	expect("stack pointer", after, before);
	verdict("far.call_return");

	PROBE("ljmp %0, $1f; 1:", (), ("i"(SEL_BEYOND)));
	expect("vector", last_trap.vector, GENERAL_PROTECTION);
	expect("error", last_trap.error, SEL_BEYOND);
	verdict("far.bad_selector");
}

/* One of the inspecting instructions: its ZF, and the value it left. */
#define INSPECT(instruction, value, zero, selector)                     \
	asm volatile(instruction " %2, %0; setz %1"                     \
		     : "=&r"(value), "=q"(zero) : "r"(selector), "0"(0) : "cc")
#define VERIFY(instruction, zero, selector) \
	asm volatile(instruction " %w1; setz %0" : "=q"(zero) : "r"(selector) : "cc")

static void inspection(void)
{
	const u32 accessed = 0x100;
	u32 value;
	u8 zero;

	INSPECT("lar", value, zero, SEL_KERNEL_CODE);
	expect("ZF", zero, 1);
	expect("kernel code rights", value & ~accessed & ~0xf0000u, 0xc09a00);
	INSPECT("lar", value, zero, SEL_USER_DATA);
	expect("user data rights", value & ~accessed & ~0xf0000u, 0xc0f200);
	INSPECT("lar", value, zero, 0);
	expect("ZF for null", zero, 0);
	INSPECT("lar", value, zero, SEL_BEYOND);
	expect("ZF beyond the table", zero, 0);
	verdict("inspect.lar");

	INSPECT("lsl", value, zero, SEL_KERNEL_DATA);
	expect("ZF", zero, 1);
	expect("flat limit", value, 0xffffffff);
	INSPECT("lsl", value, zero, SEL_WINDOW);
	expect("window limit", value, 15);
	INSPECT("lsl", value, zero, SEL_BEYOND);
	expect("ZF beyond the table", zero, 0);
	verdict("inspect.lsl");

	VERIFY("verr", zero, SEL_KERNEL_CODE);
	expect("code is readable", zero, 1);
	VERIFY("verr", zero, SEL_EXECUTE_ONLY);
	expect("execute-only is readable", zero, 0);
	VERIFY("verw", zero, SEL_KERNEL_DATA);
	expect("data is writable", zero, 1);
	VERIFY("verw", zero, SEL_READ_ONLY);
	expect("read-only is writable", zero, 0);
	VERIFY("verw", zero, SEL_KERNEL_CODE);
	expect("code is writable", zero, 0);
	verdict("inspect.verr_verw");

	value = SEL_USER_DATA & ~3u;
	asm volatile("arpl %w2, %w0; setz %1" : "+r"(value), "=q"(zero) : "r"(SEL_USER_CODE) : "cc");
	expect("ZF when raised", zero, 1);
	expect("raised", value, SEL_USER_DATA);
	asm volatile("arpl %w2, %w0; setz %1" : "+r"(value), "=q"(zero) : "r"(SEL_KERNEL_CODE) : "cc");
	expect("ZF when kept", zero, 0);
	expect("kept", value, SEL_USER_DATA);
	verdict("inspect.arpl");
}

void test_segments(void)
{
	reading();
	loading();
	pointers();
	based();
	bad_selectors();
	tables();
	interrupt_table();
	short_forms();
	system_segments();
	far_transfers();
	inspection();
}
