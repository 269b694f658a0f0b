/* Segment registers and bases, descriptor tables, far transfers, inspection of selectors. */
#include "check.h"
#include "control.h"
#include "kernel.h"
#include "tests.h"
#include "traps.h"

struct far_pointer {
	u32 offset;
	u16 selector;
} __attribute__((packed));

/* Descriptors hold 32-bit bases, so the windows are looked at through low addresses. */
static u32 window[8] = { 0x11111111, 0x22222222, 0x33333333, 0x44444444,
			 0x55555555, 0x66666666, 0x77777777, 0x88888888 };
static u64 gdt_copy[GDT_ENTRIES] __attribute__((aligned(8)));
static u64 ldt[2];

static void reading(void)
{
	ulong value;
	u16 half;

	asm volatile("mov %%cs, %0" : "=r"(value));
	expect("mov from cs", (u16)value, SEL_KERNEL_CODE);
	asm volatile("mov %%cs, %0" : "=m"(half));
	expect("mov from cs to memory", half, SEL_KERNEL_CODE);
	asm volatile("mov %%ss, %0" : "=r"(value));
	expect("mov from ss", (u16)value, SEL_KERNEL_DATA);
	asm volatile("mov %0, %%ss" : : "r"(value) : "memory");
	asm volatile("mov %%ds, %0" : "=r"(value));
	expect("mov from ds", (u16)value, SEL_KERNEL_DATA);
	verdict("segments.kernel_privilege_0");
}

static void loading(void)
{
	u16 ds, es, fs, gs;
	ulong pushed;

	/* A selector of privilege 3 may be loaded for data, and keeps its RPL. */
	asm volatile("mov %3, %%ds; mov %3, %%es; mov %3, %%fs\n\t"
		     "mov %%ds, %0; mov %%es, %1; mov %%fs, %2\n\t"
		     "mov %4, %%ds; mov %4, %%es"
		     : "=&r"(ds), "=&r"(es), "=&r"(fs)
		     : "r"((u16)SEL_USER_DATA), "r"((u16)SEL_KERNEL_DATA) : "memory");
	expect("ds", ds, SEL_USER_DATA);
	expect("es", es, SEL_USER_DATA);
	expect("fs", fs, SEL_USER_DATA);
	asm volatile("push %%fs; pop %0" : "=r"(pushed));
	expect("push fs", (u16)pushed, SEL_USER_DATA);
	asm volatile("push $0; pop %%fs; mov %%fs, %0" : "=r"(fs) : : "memory");
	expect("fs", fs, 0);
	/* GS: the selector goes, the kernel's base must be put back. */
	asm volatile("push %1; pop %%gs; push %%gs; pop %0" : "=r"(pushed)
		     : "i"(SEL_USER_DATA) : "memory");
	expect("gs", (u16)pushed, SEL_USER_DATA);
	asm volatile("mov %1, %%gs; mov %%gs, %0" : "=r"(gs) : "r"((u16)0) : "memory");
	expect("gs", gs, 0);
	msr_write(MSR_GS_BASE, (u64)&cpu);
	verdict("segments.selectors");
}

static void pointers(void)
{
	struct far_pointer far = { 0xabcdef01, SEL_USER_DATA };
	u32 offset;
	u16 selector;

	asm volatile("lfs %2, %0; mov %%fs, %1; mov %3, %%fs" : "=&r"(offset), "=&r"(selector)
		     : "m"(far), "r"((u16)0) : "memory");
	expect("lfs offset", offset, 0xabcdef01);
	expect("lfs selector", selector, SEL_USER_DATA);
	asm volatile("lgs %2, %0; mov %%gs, %1; mov %3, %%gs" : "=&r"(offset), "=&r"(selector)
		     : "m"(far), "r"((u16)0) : "memory");
	expect("lgs offset", offset, 0xabcdef01);
	expect("lgs selector", selector, SEL_USER_DATA);
	msr_write(MSR_GS_BASE, (u64)&cpu);
	far.selector = SEL_KERNEL_DATA;
	asm volatile("mov %%rsp, %%rcx; lss %2, %%esp; mov %%esp, %0; mov %%rcx, %%rsp; mov %%ss, %1"
		     : "=&r"(offset), "=&r"(selector) : "m"(far) : "rcx", "memory");
	expect("lss offset", offset, 0xabcdef01);
	expect("lss selector", selector, SEL_KERNEL_DATA);
	verdict("segments.far_pointers");

	/*
	 * With REX.W Intel reads a 64-bit offset, AMD ignores the prefix: here the selector is
	 * where either looks for it. (The assembler refuses the prefix, hence the bytes.)
	 */
	static const u16 wide[] = { 1, 2, SEL_USER_DATA, 4, SEL_USER_DATA };
	static const u16 wide_stack[] = { 1, 2, SEL_KERNEL_DATA, 4, SEL_KERNEL_DATA };

	asm volatile(".byte 0x48; lfs %1, %%ecx; mov %%fs, %0; mov %2, %%fs"
		     : "=&r"(selector) : "m"(wide), "r"((u16)0) : "rcx", "memory");
	expect("wide lfs", selector, SEL_USER_DATA);
	asm volatile(".byte 0x48; lgs %1, %%ecx; mov %%gs, %0; mov %2, %%gs"
		     : "=&r"(selector) : "m"(wide), "r"((u16)0) : "rcx", "memory");
	expect("wide lgs", selector, SEL_USER_DATA);
	msr_write(MSR_GS_BASE, (u64)&cpu);
	asm volatile("mov %%rsp, %%rcx; .byte 0x48; lss %1, %%esp; mov %%rcx, %%rsp; mov %%ss, %0"
		     : "=r"(selector) : "m"(wide_stack) : "rcx", "memory");
	expect("wide lss", selector, SEL_KERNEL_DATA);
	verdict("segments.wide_pointers");
}

static void bases(void)
{
	u32 word, aux;
	u64 value;

	gdt[SEL_WINDOW / 8] = descriptor((u32)physical(window), 15, 0x92, 4);
	asm volatile("mov %1, %%fs; mov %%fs:0, %0" : "=r"(word) : "r"((u16)SEL_WINDOW));
	expect("through the descriptor", word, 0x11111111);
	expect("FS base", msr_read(MSR_FS_BASE), physical(window));
	msr_write(MSR_FS_BASE, (u64)(window + 2));
	asm volatile("mov %%fs:4, %0" : "=r"(word));
	expect("through the register", word, 0x44444444);
	expect("FS base", msr_read(MSR_FS_BASE), (u64)(window + 2));
	asm volatile("mov %%fs, %0" : "=r"(aux));
	expect("the selector stays", (u16)aux, SEL_WINDOW);
	asm volatile("mov %0, %%fs" : : "r"((u16)0));
	msr_write(MSR_FS_BASE, 0);
	verdict("segments.fs_base");

	msr_write(MSR_KERNEL_GS_BASE, (u64)window);
	asm volatile("swapgs; mov %%gs:0, %0" : "=r"(word) : : "memory");
	expect("after swapgs", word, 0x11111111);
	expect("GS base", msr_read(MSR_GS_BASE), (u64)window);
	expect("the other GS base", msr_read(MSR_KERNEL_GS_BASE), (u64)&cpu);
	asm volatile("swapgs" : : : "memory");
	expect("GS base back", msr_read(MSR_GS_BASE), (u64)&cpu);
	msr_write(MSR_KERNEL_GS_BASE, 0);
	verdict("segments.swapgs");

	{
		int there = cpuid(0, 0).eax >= 7 && cpuid(7, 0).ebx & 1;
		u64 wanted = there ? NO_TRAP : INVALID_OPCODE;

		if (there)
			cr4_write(cr4_read() | CR4_FSGSBASE);
		PROBE("wrfsbase %0", (), ("r"(window)));
		expect("wrfsbase", last_trap.vector, wanted);
		value = (u64)window;
		PROBE("rdfsbase %0", ("+r"(value)), ());
		expect("rdfsbase", last_trap.vector, wanted);
		expect("FS base", value, (u64)window);
		value = (u64)&cpu;
		PROBE("rdgsbase %0", ("+r"(value)), ());
		expect("rdgsbase", last_trap.vector, wanted);
		expect("GS base", value, (u64)&cpu);
		PROBE("wrgsbase %0", (), ("r"(value)));
		expect("wrgsbase", last_trap.vector, wanted);
		if (there)
			cr4_write(cr4_read() & ~CR4_FSGSBASE);
		msr_write(MSR_FS_BASE, 0);
	}
	verdict("segments.base_instructions");
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

static void tables(void)
{
	struct table_pointer seen, copy = { sizeof gdt_copy - 1, (u64)gdt_copy };
	u32 word;

	asm volatile("sgdt %0" : "=m"(seen));
	expect("gdt limit", seen.limit, gdt_pointer.limit);
	expect("gdt base", seen.base, (u64)gdt);
	asm volatile("sidt %0" : "=m"(seen));
	expect("idt limit", seen.limit, idt_pointer.limit);
	expect("idt base", seen.base, (u64)idt);
	verdict("tables.sgdt_sidt");

	for (u32 i = 0; i < GDT_ENTRIES; i++)
		gdt_copy[i] = gdt[i];
	gdt_copy[SEL_WINDOW / 8] = descriptor((u32)physical(window + 2), 15, 0x92, 4);
	asm volatile("lgdt %1; sgdt %0" : "=m"(seen) : "m"(copy) : "memory");
	expect("base", seen.base, copy.base);
	asm volatile("mov %1, %%fs; mov %%fs:0, %0" : "=r"(word) : "r"((u16)SEL_WINDOW));
	expect("word through the new table", word, 0x33333333);
	asm volatile("lgdt %0; mov %1, %%fs" : : "m"(gdt_pointer), "r"((u16)0) : "memory");
	asm volatile("sgdt %0" : "=m"(seen));
	expect("base again", seen.base, (u64)gdt);
	verdict("tables.lgdt");
}

static void interrupt_table(void)
{
	static struct gate idt_copy[0x81];
	struct table_pointer seen, copy = { sizeof idt_copy - 1, (u64)idt_copy };

	for (u32 i = 0; i < ARRAY_LENGTH(idt_copy); i++)
		idt_copy[i] = idt[i];
	idt_copy[SOFT_INTERRUPT] = idt[SOFT_TRAP];
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

static void system_segments(void)
{
	u16 seen;
	u32 wide;

	asm volatile("str %0" : "=r"(wide));
	expect("tr", wide & 0xffff, SEL_TSS);
	asm volatile("str %0" : "=m"(seen));
	expect("tr in memory", seen, SEL_TSS);
	expect("busy type", gdt[SEL_TSS / 8] >> 40 & 15, 0xb);
	verdict("tables.task_register");

	ldt[1] = descriptor((u32)physical(window + 4), 15, 0x92, 4);
	system_descriptor(SEL_LDT, (u64)ldt, sizeof ldt - 1, 0x82);
	asm volatile("lldt %w1; sldt %0" : "=r"(wide) : "r"(SEL_LDT) : "memory");
	expect("ldtr", (u16)wide, SEL_LDT);
	asm volatile("mov %1, %%fs; mov %%fs:0, %0" : "=r"(wide) : "r"((u16)SEL_IN_LDT));
	expect("word through the local table", wide, 0x55555555);
	asm volatile("mov %0, %%fs" : : "r"((u16)0));
	asm volatile("lldt %w1; sldt %0" : "=m"(seen) : "r"(0) : "memory");
	expect("ldtr", seen, 0);
	PROBE("mov %0, %%fs", (), ("r"((u16)SEL_IN_LDT)));
	expect("vector without a table", last_trap.vector, GENERAL_PROTECTION);
	expect("error without a table", last_trap.error, SEL_IN_LDT);
	verdict("tables.local_table");
}

extern u32 compatibility_seen[3];

static void far_transfers(void)
{
	u16 first, second;
	u64 before, after;

	asm volatile("mov %%rsp, %2\n\t"
		     "push %4; push $1f; lretq\n"
		     "1: mov %%cs, %0\n\t"
		     "push $0; push $0\n\t" /* two words for the return to drop */
		     "push %5; push $2f; lretq $16\n"
		     "2: mov %%cs, %1; mov %%rsp, %3"
		     : "=&r"(first), "=&r"(second), "=&r"(before), "=&r"(after)
		     : "i"(SEL_OTHER_CODE), "i"(SEL_KERNEL_CODE) : "memory");
	expect("cs after the first return", first, SEL_OTHER_CODE);
	expect("cs after the second return", second, SEL_KERNEL_CODE);
	expect("stack pointer", after, before);
	verdict("far.return");

	/* Far pointers with a 64-bit offset are Intel's; elsewhere the prefix does not count. */
	if (cpuid(0, 0).ecx == 0x6c65746e) { /* Genuine"ntel" */
		static struct {
			u64 offset;
			u16 selector;
		} __attribute__((packed)) target;

		asm volatile("movq $1f, %2; movw %3, 8+%2; rex.w ljmp *%2\n"
			     "1: mov %%cs, %0\n\t"
			     "movq $2f, %2; movw %4, 8+%2; rex.w lcall *%2\n\t"
			     "jmp 3f\n"
			     "2: mov %%cs, %1; lretq\n"
			     "3: push %4; push $4f; lretq\n"
			     "4:"
			     : "=&r"(first), "=&r"(second), "+m"(target)
			     : "i"(SEL_OTHER_CODE), "i"(SEL_KERNEL_CODE) : "memory");
		expect("cs after the jump", first, SEL_OTHER_CODE);
		expect("cs inside the call", second, SEL_KERNEL_CODE);
	}
	verdict("far.wide_transfers");

	PROBE("push %0; push $1f; lretq; 1:", (), ("i"(SEL_BEYOND)));
	expect("vector", last_trap.vector, GENERAL_PROTECTION);
	expect("error", last_trap.error, SEL_BEYOND);
	verdict("far.bad_selector");
}

/* Out of long mode and back: a far jump or return to 32 bits, paging off, paging on, a far jump to 64. */
static void round_trip(void)
{
	volatile u32 *seen = compatibility_seen;

	for (ulong by_return = 0; by_return < 2; by_return++) {
		expect("LMA", msr_read(MSR_EFER) & EFER_LMA, EFER_LMA);
		seen[0] = seen[1] = seen[2] = 0xffffffff;
		long_mode_round_trip(by_return);
		expect("32-bit cs", seen[0], SEL_KERNEL_CODE32);
		expect("LME LMA without paging", seen[1] & (EFER_LME | EFER_LMA), EFER_LME);
		expect("IF", seen[2] & FLAG_IF, 0);
		expect("LMA again", msr_read(MSR_EFER) & EFER_LMA, EFER_LMA);
	}
	verdict("far.long_mode_round_trip");
}

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
	expect("kernel code rights", value & ~accessed & ~0xf0000u, 0xa09a00);
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
}

void test_segments(void)
{
	reading();
	loading();
	pointers();
	bases();
	bad_selectors();
	tables();
	interrupt_table();
	system_segments();
	far_transfers();
	round_trip();
	inspection();
}
