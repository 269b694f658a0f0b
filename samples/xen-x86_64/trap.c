/* Trap delivery: the table goes to Xen by hypercall, the C half is like any kernel's. */
#include "check.h"
#include "kernel.h"

struct trap_frame {
	u64 r15, r14, r13, r12, r11, r10, r9, r8, rdi, rsi, rbp, rbx, rdx, rcx, rax;
	u64 vector, error;
	u64 rip, cs, rflags, rsp, ss;
};

volatile struct trap_record last_trap;
volatile struct trap_resume trap_resume;
volatile u32 trap_count, events;
volatile u64 event_ports;
u64 user_result;

extern u8 trap_entries[], event_entry[], failsafe_entry[], syscall_entry[];

void trap_forget(void)
{
	last_trap.vector = NO_TRAP;
	last_trap.error = 0;
}

/* The two-level bitmap: a word of the selector says which words of ports to look at. */
static void collect_events(void)
{
	volatile struct vcpu_info *vcpu = &shared->vcpu_info[0];

	events++;
	vcpu->upcall_pending = 0;
	while (vcpu->pending_sel) {
		u32 word = (u32)__builtin_ctzll(__atomic_exchange_n(&vcpu->pending_sel, 0,
								     __ATOMIC_SEQ_CST));
		u64 ports = __atomic_exchange_n(&shared->evtchn_pending[word], 0, __ATOMIC_SEQ_CST);

		if (word == 0)
			event_ports |= ports;
	}
}

void trap(struct trap_frame *f);
void trap(struct trap_frame *f)
{
	if (f->vector == EVENT) {
		collect_events();
		return;
	}
	last_trap.vector = f->vector;
	last_trap.error = f->error;
	last_trap.ip = f->rip;
	last_trap.cs = f->cs;
	last_trap.flags = f->rflags;
	last_trap.frame = (u64)&f->rip;
	last_trap.sp = f->rsp;
	last_trap.ss = f->ss;
	last_trap.cr2 = shared ? shared->vcpu_info[0].cr2 : 0;
	last_trap.inner_flags = shared ? shared->vcpu_info[0].upcall_mask : 0;
	trap_count++;
	user_result = f->rbx;
	if (trap_resume.ip) {
		f->rip = trap_resume.ip;
		f->rsp = trap_resume.sp;
		f->cs = FLAT_KERNEL_CODE & ~3ull;
		f->ss = FLAT_KERNEL_STACK;
		f->rflags &= ~(u64)(FLAG_IF | FLAG_TF | FLAG_DF);
		trap_resume.ip = 0;
		return;
	}
	if (f->vector == BREAKPOINT || f->vector == OVERFLOW)
		return;
	say_value("FAIL unexpected trap, vector", f->vector);
	say_value("at", f->rip);
	HC2(sched_op, SCHED_SHUTDOWN, &(u32){ 3 });
}

void traps_init(void)
{
	static struct trap_info table[0x20 + 2]; /* the last one stays empty: the end */
	u32 at = 0;

	for (u32 vector = 0; vector < 0x20; vector++)
		table[at++] = (struct trap_info){ (u8)vector, 0, FLAT_KERNEL_CODE,
						  (u64)trap_entries + vector * 16 };
	table[BREAKPOINT].flags = 3;
	table[OVERFLOW].flags = 3 | EVENTS_OFF;
	table[at++] = (struct trap_info){ SYSTEM_CALL, 3 | EVENTS_OFF, FLAT_KERNEL_CODE,
					  (u64)trap_entries + SYSTEM_CALL * 16 };
	returns("set_trap_table.good", HC1(set_trap_table, table), 0);
	returns("set_callbacks.good", HC3(set_callbacks, event_entry, failsafe_entry, syscall_entry), 0);
}
