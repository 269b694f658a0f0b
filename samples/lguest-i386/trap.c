/* Trap delivery at privilege 1: the frames are hardware's, apart from the privilege and IF. */
#include "check.h"
#include "kernel.h"

struct trap_frame {
	u32 es, ds;
	u32 edi, esi, ebp, unused, ebx, edx, ecx, eax;
	u32 vector, error;
	u32 eip, cs, eflags;
	u32 esp, ss; /* only from user mode */
};

volatile struct trap_record last_trap;
volatile struct trap_resume trap_resume;
volatile u32 trap_count, ticks, tick_enabled;
volatile struct trap_record tick_trap;
volatile u32 *tick_word;
u32 user_result;
u8 trap_stack[8192] __attribute__((aligned(4096)));

extern u8 trap_entries[];

void trap_forget(void)
{
	last_trap.vector = NO_TRAP;
	last_trap.error = 0;
}

static void record(const struct trap_frame *f)
{
	last_trap.vector = f->vector;
	last_trap.error = f->error;
	last_trap.ip = f->eip;
	last_trap.cs = f->cs;
	last_trap.flags = f->eflags;
	last_trap.frame = (u32)&f->eip;
	if ((f->cs & 3) == 3) {
		last_trap.sp = f->esp;
		last_trap.ss = f->ss;
	}
	last_trap.cr2 = lguest_data.cr2;
	last_trap.inner_flags = lguest_data.irq_enabled;
	trap_count++;
}

/* The same frame, moved so that the return continues at trap_resume with its stack. */
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
		ticks++;
		tick_enabled = lguest_data.irq_enabled;
		tick_trap = last_trap;
		if (tick_word)
			*tick_word = 1;
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
	if (f->vector == TRAP_GATE || f->vector == INTERRUPT_GATE)
		return f;
	say_value("FAIL unexpected trap, vector", f->vector);
	say_value("at", f->eip);
	hypercall(LHCALL_SHUTDOWN, physical("unexpected trap"), LGUEST_SHUTDOWN_POWEROFF, 0, 0);
	return f;
}

static void gate(u32 vector, u32 kind)
{
	u32 target = (u32)trap_entries + vector * 16;

	hypercall(LHCALL_LOAD_IDT_ENTRY, vector, (target & 0xffff) | (SEL_KERNEL_CODE & ~3) << 16,
		  (target & 0xffff0000) | kind << 8, 0);
}

void traps_init(void)
{
	for (u32 vector = 0; vector < IRQ_BASE; vector++)
		gate(vector, 0x8f); /* exceptions by trap gates: the host lets them through */
	gate(PAGE_FAULT, 0x8e);
	gate(IRQ_BASE, 0x8e);
	gate(TRAP_GATE, 0xef);
	gate(INTERRUPT_GATE, 0xee);
	gate(SYSTEM_CALL, 0xef);
	hypercall(LHCALL_SET_STACK, SEL_KERNEL_DATA, (u32)(trap_stack + sizeof trap_stack), 2, 0);
}
