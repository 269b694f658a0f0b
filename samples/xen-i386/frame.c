/* Trap delivery at 32 bits: within the kernel the frame has three words and no stack pointer. */
#include "frame.h"

#include "check.h"
#include "kernel.h"

extern u8 event_entry[], failsafe_entry[];

long callbacks_register(void)
{
	return HC4(set_callbacks, FLAT_KERNEL_CODE, event_entry, FLAT_KERNEL_CODE, failsafe_entry);
}

/* The same frame, moved so that the return continues at trap_resume with its stack. */
struct trap_frame *trap_resume_at(struct trap_frame *f)
{
	const u32 words = __builtin_offsetof(struct trap_frame, sp) / sizeof(u32);
	const u32 *from = (const u32 *)f;
	u32 *to = (u32 *)trap_resume.sp - words;
	struct trap_frame *moved = (struct trap_frame *)to;

	for (u32 i = words; i--;) /* upwards on the same stack: last word first */
		to[i] = from[i];
	moved->ip = trap_resume.ip;
	moved->cs = FLAT_KERNEL_CODE;
	moved->flags &= ~(u32)(FLAG_IF | FLAG_TF | FLAG_DF);
	moved->ds = moved->es = FLAT_KERNEL_STACK;
	trap_resume.ip = 0;
	return moved;
}

/* Privilege 1 shows: nothing is hidden at 32 bits. */
void expect_kernel_frame(ulong vector, const u8 *ip)
{
	expect("vector", last_trap.vector, vector);
	expect("eip", last_trap.ip, (u32)ip);
	expect("cs", last_trap.cs & 0xffff, FLAT_KERNEL_CODE);
	expect("frame", last_trap.frame, trap_resume.sp - 12);
}
