/* Trap delivery at 64 bits: every frame has five words and an aligned stack. */
#include "frame.h"

#include "check.h"
#include "kernel.h"

extern u8 event_entry[], failsafe_entry[], syscall_entry[];

long callbacks_register(void)
{
	return HC3(set_callbacks, event_entry, failsafe_entry, syscall_entry);
}

struct trap_frame *trap_resume_at(struct trap_frame *f)
{
	f->ip = trap_resume.ip;
	f->sp = trap_resume.sp;
	f->cs = FLAT_KERNEL_CODE & ~3ull;
	f->ss = FLAT_KERNEL_STACK;
	f->flags &= ~(u64)(FLAG_IF | FLAG_TF | FLAG_DF);
	trap_resume.ip = 0;
	return f;
}

/* Privilege 0 is what the kernel is told, although it runs at 3. */
void expect_kernel_frame(ulong vector, const u8 *ip)
{
	expect("vector", last_trap.vector, vector);
	expect("rip", last_trap.ip, (u64)ip);
	expect("cs", last_trap.cs & 0xffff, FLAT_KERNEL_CODE & ~3);
	expect("rsp", last_trap.sp, trap_resume.sp);
	expect("frame", last_trap.frame, (trap_resume.sp & ~15ul) - 40);
}
