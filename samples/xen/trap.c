/* Trap delivery: the table goes to Xen by hypercall, the C half is like any kernel's. */
#include "check.h"
#include "frame.h"
#include "kernel.h"

volatile struct trap_record last_trap;
volatile struct trap_resume trap_resume;
volatile u32 trap_count, events;
volatile ulong event_ports;
ulong user_result;

extern u8 trap_entries[];

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
	for (ulong words = __atomic_exchange_n(&vcpu->pending_sel, 0, __ATOMIC_SEQ_CST); words;
	     words &= words - 1) {
		u32 word = (u32)__builtin_ctzl(words);
		ulong ports = shared->evtchn_pending[word] & ~shared->evtchn_mask[word];

		__atomic_fetch_and(&shared->evtchn_pending[word], ~ports, __ATOMIC_SEQ_CST);
		if (word == 0)
			event_ports |= ports;
	}
}

struct trap_frame *trap(struct trap_frame *f);
struct trap_frame *trap(struct trap_frame *f)
{
	if (f->vector == EVENT) {
		collect_events();
		return f;
	}
	last_trap.vector = f->vector;
	last_trap.error = f->error;
	last_trap.ip = f->ip;
	last_trap.cs = f->cs;
	last_trap.flags = f->flags;
	last_trap.frame = (ulong)&f->ip;
	last_trap.sp = f->sp;
	last_trap.ss = f->ss;
	last_trap.cr2 = shared ? shared->vcpu_info[0].cr2 : 0;
	last_trap.inner_flags = shared ? shared->vcpu_info[0].upcall_mask : 0;
	trap_count++;
	user_result = f->bx;
	if (trap_resume.ip)
		return trap_resume_at(f);
	if (f->vector == BREAKPOINT || f->vector == OVERFLOW)
		return f;
	say_value("FAIL unexpected trap, vector", f->vector);
	say_value("at", f->ip);
	HC2(sched_op, SCHED_SHUTDOWN, &(u32){ 3 });
	return f;
}

void traps_init(void)
{
	static struct trap_info table[0x20 + 2]; /* the last one stays empty: the end */
	u32 at = 0;

	for (u32 vector = 0; vector < 0x20; vector++)
		table[at++] = (struct trap_info){ (u8)vector, 0, FLAT_KERNEL_CODE,
						  (ulong)trap_entries + vector * 16 };
	table[BREAKPOINT].flags = 3;
	table[OVERFLOW].flags = 3 | EVENTS_OFF;
	table[at++] = (struct trap_info){ SYSTEM_CALL, 3 | EVENTS_OFF, FLAT_KERNEL_CODE,
					  (ulong)trap_entries + SYSTEM_CALL * 16 };
	returns("set_trap_table.good", HC1(set_trap_table, table), 0);
	returns("set_callbacks.good", callbacks_register(), 0);
}
