/* The interrupt descriptor table and the C half of trap delivery. */
#include "check.h"
#include "control.h"
#include "kernel.h"
#include "pc.h"
#include "tests.h"
#include "traps.h"

struct trap_frame {
	u64 r15, r14, r13, r12, r11, r10, r9, r8, rdi, rsi, rbp, rbx, rdx, rcx, rax;
	u64 vector, error;
	u64 rip, cs, rflags, rsp, ss; /* the hardware's part, always all five */
};

struct gate idt[0x81];
struct table_pointer idt_pointer = { sizeof idt - 1, (u64)idt };
struct tss tss;
struct cpu cpu;
u8 trap_stack[8192] __attribute__((aligned(16)));
u8 ist_stack[4096] __attribute__((aligned(16)));
static u8 syscall_stack[4096] __attribute__((aligned(16)));
volatile struct trap_record last_trap;
volatile struct trap_resume trap_resume;
volatile u32 trap_count;
u64 user_result;

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
	last_trap.ip = f->rip;
	last_trap.cs = f->cs;
	last_trap.flags = f->rflags;
	last_trap.frame = (u64)&f->rip;
	last_trap.sp = f->rsp;
	last_trap.ss = f->ss;
	last_trap.cr2 = cr2_read();
	last_trap.inner_cs = cs;
	last_trap.inner_ss = ss;
	last_trap.inner_flags = flags_read();
	trap_count++;
}

void trap(struct trap_frame *f);
void trap(struct trap_frame *f)
{
	record(f);
	if (f->vector == IRQ_BASE) {
		timer_interrupt();
		return;
	}
	if (f->vector == SYSTEM_CALL && f->rax == SYS_ADD) {
		f->rax = f->rbx + f->rcx;
		return;
	}
	if (f->vector == SYSTEM_CALL)
		user_result = f->rbx;
	if (trap_resume.ip) { /* go on there, in the kernel, with its stack pointer */
		f->rip = trap_resume.ip;
		f->rsp = trap_resume.sp;
		f->cs = SEL_KERNEL_CODE;
		f->ss = SEL_KERNEL_DATA;
		f->rflags &= ~(u64)(FLAG_IF | FLAG_TF | FLAG_DF);
		trap_resume.ip = 0;
		return;
	}
	if (f->vector == BREAKPOINT || f->vector == SOFT_INTERRUPT ||
	    f->vector == SOFT_TRAP || f->vector == IST_INTERRUPT)
		return;
	say_value("FAIL unexpected trap, vector", f->vector);
	say_value("at", f->rip);
	power_off();
}

u64 descriptor(u32 base, u32 limit, u8 access, u8 attributes)
{
	return (u64)(limit & 0xffff) | (u64)(base & 0xffffff) << 16 | (u64)access << 40 |
	       (u64)(limit >> 16 & 15) << 48 | (u64)(attributes & 15) << 52 |
	       (u64)(base >> 24) << 56;
}

void system_descriptor(u32 selector, u64 base, u32 limit, u8 access)
{
	gdt[selector / 8] = descriptor((u32)base, limit, access, 0);
	gdt[selector / 8 + 1] = base >> 32;
}

static void gate(u32 vector, u8 kind, u8 stack)
{
	u64 target = (u64)trap_entries + vector * 16;

	idt[vector].low = (target & 0xffff) | (u64)SEL_KERNEL_CODE << 16 | (u64)stack << 32 |
			  (u64)kind << 40 | (target >> 16 & 0xffff) << 48;
	idt[vector].high = target >> 32;
}

void traps_init(void)
{
	for (u32 vector = 0; vector < 0x30; vector++)
		gate(vector, 0x8e, 0); /* interrupt gates, privilege 0 */
	gate(BREAKPOINT, 0xee, 0);
	gate(SOFT_INTERRUPT, 0x8e, 0);
	gate(SOFT_TRAP, 0x8f, 0);
	gate(NOT_PRESENT_GATE, 0x0e, 0);
	gate(IST_INTERRUPT, 0x8e, 1);
	gate(SYSTEM_CALL, 0xee, 0);
	asm volatile("lidt %0" : : "m"(idt_pointer));

	tss.rsp[0] = (u64)(trap_stack + sizeof trap_stack);
	tss.ist[0] = (u64)(ist_stack + sizeof ist_stack);
	tss.io_map = sizeof tss; /* past the limit: no port is allowed to user mode */
	system_descriptor(SEL_TSS, (u64)&tss, sizeof tss - 1, 0x89);
	asm volatile("ltr %w0" : : "r"(SEL_TSS));

	cpu.kernel_sp = (u64)(syscall_stack + sizeof syscall_stack);
	msr_write(MSR_GS_BASE, (u64)&cpu);
	msr_write(MSR_KERNEL_GS_BASE, 0);
}
