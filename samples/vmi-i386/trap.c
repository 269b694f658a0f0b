/* Trap delivery: hardware's frames, apart from the privilege in CS and SS. */
#include "kernel.h"
#include "pc.h"

struct trap_frame {
	u32 es, ds;
	u32 edi, esi, ebp, unused, ebx, edx, ecx, eax;
	u32 vector, error;
	u32 eip, cs, eflags;
	u32 esp, ss; /* only from user mode */
};

volatile struct trap_record last_trap;
volatile struct trap_resume trap_resume;
volatile u32 trap_count, ticks, tick_vector;
volatile struct trap_record tick_trap;
volatile u32 *tick_word;
u32 user_result, sysenter_cs, sysenter_esp;
u8 trap_stack[8192] __attribute__((aligned(4096)));
u64 idt[256] __attribute__((aligned(4096)));

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
	last_trap.cr2 = vmi_entry[VMI_GetCR2] ? (u32)vmi0(VMI_GetCR2) : 0;
	last_trap.inner_flags = vmi_entry[VMI_GetInterruptMask] ? irq_save() & FLAG_IF : 0;
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
	moved->cs = SEL_KERNEL_CODE | (vrom && vmi_entry[0] ? KERNEL_RPL : 0);
	moved->eflags &= ~(u32)(FLAG_IF | FLAG_TF | FLAG_DF);
	moved->ds = moved->es = SEL_KERNEL_DATA;
	trap_resume.ip = 0;
	return moved;
}

static void interrupt(const struct trap_frame *f)
{
	ticks++;
	tick_vector = f->vector;
	tick_trap = last_trap;
	if (tick_word)
		*tick_word = 1;
	if (f->vector < IRQ_BASE + 16)
		vmi(VMI_OUTB, 0x20, PORT_PIC1, 0); /* end of interrupt */
}

struct trap_frame *trap(struct trap_frame *f);
struct trap_frame *trap(struct trap_frame *f)
{
	record(f);
	if ((f->vector >= IRQ_BASE && f->vector < IRQ_BASE + 16) || f->vector == LVTT_VECTOR) {
		interrupt(f);
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
	if (f->vector == SOFT_TRAP || f->vector == SOFT_INTERRUPT)
		return f;
	say_value("FAIL unexpected trap, vector", f->vector);
	say_value("error", f->error);
	say_value("at", f->eip);
	vmi0(VMI_Shutdown);
	return f;
}

void gate(u64 *table, u32 vector, u32 kind)
{
	u32 target = (u32)trap_entries + vector * 16;

	table[vector] = (u64)((target & 0xffff0000) | kind << 8) << 32 |
		SEL_KERNEL_CODE << 16 | (target & 0xffff);
}

void traps_init(void)
{
	struct {
		u16 limit;
		u32 base;
	} __attribute__((packed)) pointer = { sizeof idt - 1, (u32)idt };

	for (u32 vector = 0; vector <= 0x80; vector++)
		gate(idt, vector, 0x8e);
	gate(idt, SOFT_TRAP, 0x8f);
	gate(idt, SYSTEM_CALL, 0xef);
	asm volatile("lidt %0" : : "m"(pointer));
}

void pic_mask(u8 mask)
{
	vmi(VMI_OUTB, mask, PORT_PIC1_MASK, 0);
}

void pic_init(void)
{
	vmi(VMI_OUTB, 0x30, PORT_PIT_MODE, 0); /* the 8254 shares the line: stop it */
	vmi(VMI_OUTB, 0x11, PORT_PIC1, 0);
	vmi(VMI_OUTB, IRQ_BASE, PORT_PIC1_MASK, 0);
	vmi(VMI_OUTB, 4, PORT_PIC1_MASK, 0);
	vmi(VMI_OUTB, 1, PORT_PIC1_MASK, 0);
	pic_mask(0xff);
}
