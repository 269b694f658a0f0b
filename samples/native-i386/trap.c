/* The interrupt descriptor table and the C half of trap delivery. */
#include "check.h"
#include "control.h"
#include "kernel.h"
#include "pc.h"
#include "tests.h"
#include "traps.h"

struct trap_frame {
	u32 es, ds;
	u32 edi, esi, ebp, unused, ebx, edx, ecx, eax;
	u32 vector, error;
	u32 eip, cs, eflags; /* the hardware's part starts here */
	u32 esp, ss;         /* only from user mode */
};

u64 idt[0x81];
struct table_pointer idt_pointer = { sizeof idt - 1, (u32)idt };
struct tss tss;
u8 trap_stack[8192] __attribute__((aligned(16)));
volatile struct trap_record last_trap;
volatile struct trap_resume trap_resume;
volatile u32 trap_count;
u32 user_result;

extern u8 trap_entries[];

void trap_forget(void)
{
	last_trap.vector = NO_TRAP;
	last_trap.error = 0;
}

static void record(const struct trap_frame *f)
{
	u16 cs, ss;

	asm volatile("mov %%cs, %0; mov %%ss, %1" : "=r"(cs), "=r"(ss));
	last_trap.vector = f->vector;
	last_trap.error = f->error;
	last_trap.ip = f->eip;
	last_trap.cs = f->cs;
	last_trap.flags = f->eflags;
	last_trap.frame = (u32)&f->eip;
	if (f->cs & 3) {
		last_trap.sp = f->esp;
		last_trap.ss = f->ss;
	}
	last_trap.cr2 = cr2_read();
	last_trap.inner_cs = cs;
	last_trap.inner_ss = ss;
	last_trap.inner_flags = flags_read();
	trap_count++;
}

/* The same frame, moved so that IRET continues at trap_resume with its stack pointer. */
static struct trap_frame *resume(const struct trap_frame *f)
{
	const u32 words = __builtin_offsetof(struct trap_frame, esp) / sizeof(u32);
	const u32 *from = (const u32 *)f;
	u32 *to = (u32 *)trap_resume.sp - words;
	struct trap_frame *moved = (struct trap_frame *)to;

	for (u32 i = words; i--;) /* upwards on the same stack: last word first */
		to[i] = from[i];
	moved->eip = trap_resume.ip;
	moved->cs = SEL_KERNEL_CODE;
	moved->eflags &= ~(u32)(FLAG_IF | FLAG_TF | FLAG_DF);
	moved->ds = moved->es = SEL_KERNEL_DATA;
	trap_resume.ip = 0;
	return moved;
}

struct trap_frame *trap(struct trap_frame *f);
struct trap_frame *trap(struct trap_frame *f)
{
	record(f);
	if (f->vector == IRQ_BASE) {
		timer_interrupt();
		return f;
	}
	if (f->vector == SYSTEM_CALL && f->eax == SYS_ADD) {
		f->eax = f->ebx + f->ecx;
		return f;
	}
	if (f->vector == SYSTEM_CALL)
		user_result = f->ebx;
	if (trap_resume.ip)
		return resume(f);
	if (f->vector == BREAKPOINT || f->vector == OVERFLOW ||
	    f->vector == SOFT_INTERRUPT || f->vector == SOFT_TRAP)
		return f;
	say_value("FAIL unexpected trap, vector", f->vector);
	say_value("at", f->eip);
	power_off();
}

u64 descriptor(u32 base, u32 limit, u8 access, u8 attributes)
{
	return (u64)(limit & 0xffff) | (u64)(base & 0xffffff) << 16 | (u64)access << 40 |
	       (u64)(limit >> 16 & 15) << 48 | (u64)(attributes & 15) << 52 |
	       (u64)(base >> 24) << 56;
}

static void gate(u32 vector, u8 kind)
{
	u32 target = (u32)trap_entries + vector * 16;

	idt[vector] = (u64)(target & 0xffff) | (u64)SEL_KERNEL_CODE << 16 | (u64)kind << 40 |
		      (u64)(target >> 16) << 48;
}

void traps_init(void)
{
	for (u32 vector = 0; vector < 0x30; vector++)
		gate(vector, 0x8e);    /* interrupt gates, privilege 0 */
	gate(BREAKPOINT, 0xee);
	gate(SOFT_INTERRUPT, 0x8e);
	gate(SOFT_TRAP, 0x8f);
	gate(NOT_PRESENT_GATE, 0x0e);
	gate(SYSTEM_CALL, 0xee);
	asm volatile("lidt %0" : : "m"(idt_pointer));

	tss.ss0 = SEL_KERNEL_DATA;
	tss.esp0 = (u32)(trap_stack + sizeof trap_stack);
	tss.io_map = sizeof tss; /* past the limit: no port is allowed to user mode */
	gdt[SEL_TSS / 8] = descriptor((u32)&tss, sizeof tss - 1, 0x89, 0);
	asm volatile("ltr %w0" : : "r"(SEL_TSS));
}
