/*
 * Exceptions and interrupts, as the tests see them.
 *
 * Each trap leaves a record of the frame exactly as it was found on the stack.
 * PROBE() runs instructions that may fault; after a fault execution goes on behind
 * them with the stack pointer as before, wherever the fault really happened. (In a
 * rewritten image that can be inside the code that replaced the instruction: what is
 * promised then is the vector and the error code, not the address.)
 */
#ifndef SAMPLES_TRAPS_H
#define SAMPLES_TRAPS_H

#include "types.h"

enum vector {
	DIVIDE = 0, DEBUG = 1, BREAKPOINT = 3, OVERFLOW = 4, BOUND = 5, INVALID_OPCODE = 6,
	NO_DEVICE = 7, SEGMENT_NOT_PRESENT = 11, STACK_FAULT = 12, GENERAL_PROTECTION = 13,
	PAGE_FAULT = 14,
	IRQ_BASE = 0x20,        /* IRQ 0 of the interrupt controller */
	SOFT_INTERRUPT = 0x30,  /* an interrupt gate of privilege 0 */
	SOFT_TRAP = 0x31,       /* a trap gate of privilege 0: leaves IF alone */
	NOT_PRESENT_GATE = 0x32,
	SYSTEM_CALL = 0x80,     /* a gate that user mode may use */
	NO_TRAP = 0x1000,
};

enum flag {
	FLAG_CF = 1 << 0, FLAG_ONE = 1 << 1, FLAG_PF = 1 << 2, FLAG_AF = 1 << 4,
	FLAG_ZF = 1 << 6, FLAG_SF = 1 << 7, FLAG_TF = 1 << 8, FLAG_IF = 1 << 9,
	FLAG_DF = 1 << 10, FLAG_OF = 1 << 11, FLAG_IOPL = 3 << 12, FLAG_NT = 1 << 14,
	FLAG_RF = 1 << 16, FLAG_VM = 1 << 17, FLAG_AC = 1 << 18, FLAG_ID = 1 << 21,
};

struct trap_record {
	ulong vector, error;
	ulong ip, cs, flags;
	ulong sp, ss;        /* i386: meaningful only if the frame came from user mode */
	ulong frame;         /* address of the saved instruction pointer */
	ulong cr2;
	ulong inner_cs, inner_ss, inner_flags; /* what the handler itself ran with */
};

extern volatile struct trap_record last_trap;
extern volatile u32 trap_count;

struct trap_resume {
	ulong ip, sp;
};
extern volatile struct trap_resume trap_resume;

void trap_forget(void);
void traps_init(void);

#ifdef __x86_64__
#define WORD_MOVE "movq"
#define STACK_POINTER "%%rsp"
#define NEXT_WORD "8"
#else
#define WORD_MOVE "movl"
#define STACK_POINTER "%%esp"
#define NEXT_WORD "4"
#endif

/* PROBE("instructions", (outputs), (inputs), clobbers...) */
#define PROBE_STRIP(...) __VA_ARGS__
#define PROBE(code, outputs, inputs, ...)                                     \
	do {                                                                  \
		trap_forget();                                                \
		asm volatile(WORD_MOVE " $.Lresume%=, trap_resume\n\t"        \
			     WORD_MOVE " " STACK_POINTER                      \
			     ", trap_resume+" NEXT_WORD "\n\t" code "\n"      \
			     ".Lresume%=:\n\t"                                \
			     WORD_MOVE " $0, trap_resume"                     \
			     : PROBE_STRIP outputs                            \
			     : PROBE_STRIP inputs                             \
			     : "memory", "cc", ##__VA_ARGS__);                \
	} while (0)

#endif
