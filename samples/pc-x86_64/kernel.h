/* What the chapters of the PC sample share: interrupts as they came, and registers in memory. */
#ifndef SAMPLES_PC_X86_64_KERNEL_H
#define SAMPLES_PC_X86_64_KERNEL_H

#include "types.h"

enum {
	NMI_VECTOR = 2,
	FIRST_VECTOR = 0x40, /* of those that the tests use */
	PIC_BASE = 0x20,
	SPURIOUS = 0xff,
};

/* Vectors in the order in which they came. */
extern volatile u32 came;
extern volatile u8 vectors[16];
/* Not zero: the handler does not end the next interrupts; each test ends them itself. */
extern volatile u32 keep_in_service;
/* Called by the handler before it ends the interrupt, if not null. */
extern void (*volatile on_interrupt)(u8 vector);

void interrupts_init(void);
void forget(void);              /* nothing has come so far */
void let_in(void);              /* interrupts on for a moment */
int await(u32 count);           /* interrupts on until that many came; false if they never do */

static inline u32 reg_read(u64 address)
{
	u32 value;

	asm volatile("movl (%1), %0" : "=r"(value) : "r"(address) : "memory");
	return value;
}

static inline void reg_write(u64 address, u32 value)
{
	asm volatile("movl %0, (%1)" : : "r"(value), "r"(address) : "memory");
}

/* Registers of the local APIC. */
enum {
	APIC_ID = 0x20, APIC_VERSION = 0x30, APIC_TPR = 0x80, APIC_PPR = 0xa0, APIC_EOI = 0xb0,
	APIC_LDR = 0xd0, APIC_DFR = 0xe0, APIC_SVR = 0xf0, APIC_ISR = 0x100, APIC_TMR = 0x180,
	APIC_IRR = 0x200, APIC_ICR = 0x300, APIC_ICR_HIGH = 0x310, APIC_LVT_TIMER = 0x320,
	APIC_LINT0 = 0x350, APIC_LINT1 = 0x360, APIC_LVT_ERROR = 0x370,
	APIC_INITIAL = 0x380, APIC_CURRENT = 0x390, APIC_DIVIDE = 0x3e0,
};
#define APIC_BASE 0xfee00000ull
#define MASKED (1u << 16)
#define PERIODIC (1u << 17)
#define TO_SELF 0x40000u
#define TO_ALL 0x80000u
#define TO_OTHERS 0xc0000u
#define ASSERT 0x4000u
#define LOGICAL 0x800u
#define DELIVER_NMI 0x400u
#define DELIVER_EXTINT 0x700u

static inline u32 apic_read(u32 reg)
{
	return reg_read(APIC_BASE + reg);
}

static inline void apic_write(u32 reg, u32 value)
{
	reg_write(APIC_BASE + reg, value);
}

static inline int in_set(u32 set, u8 vector) /* IRR, ISR or TMR */
{
	return apic_read(set + (vector >> 5) * 16) >> (vector & 31) & 1;
}

static inline void send(u32 low)
{
	apic_write(APIC_ICR, low);
	asm volatile("nop; jmp 1f; 1: nop");
}

static inline void send_to(u32 destination, u32 low)
{
	apic_write(APIC_ICR_HIGH, destination << 24);
	send(low);
}

/* The power management timer: 24 or 32 bits at 3.579545 MHz. */
u32 pm_ticks(void);
void pm_wait(u32 ticks);
#define PM_MS 3580

void pit_periodic(u16 count);
void pit_once(u16 count);
void pit_stop(void);

void test_tables(void);
void test_local_apic(void);
void test_timers(void);
void test_io_apic(void);
_Noreturn void acpi_power_off(void);

#endif
