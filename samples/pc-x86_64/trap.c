/* The interrupt descriptor table, and what came through it. */
#include "check.h"
#include "kernel.h"
#include "pc.h"

struct gate {
	u64 low, high;
};

static struct gate idt[256];
extern u8 trap_entries[];
volatile u32 came;
volatile u8 vectors[16];
volatile u32 keep_in_service;
void (*volatile on_interrupt)(u8 vector);

void interrupt(u64 vector, u64 ip);
void interrupt(u64 vector, u64 ip)
{
	if (vector < 32 && vector != NMI_VECTOR) {
		say_value("FAIL unexpected trap, vector", vector);
		say_value("at", ip);
		out8(PORT_DEBUG_EXIT, 1);
	}
	if (came < ARRAY_LENGTH(vectors))
		vectors[came] = (u8)vector;
	came++;
	if (on_interrupt)
		on_interrupt((u8)vector);
	if (vector >= PIC_BASE && vector < PIC_BASE + 16)
		out8(PORT_PIC1, 0x20);
	else if (vector >= FIRST_VECTOR && vector != SPURIOUS && !keep_in_service)
		apic_write(APIC_EOI, 0);
}

static void pic_init(void)
{
	static const u8 words[][2] = {
		{ PORT_PIC1, 0x11 }, { PORT_PIC1_MASK, PIC_BASE },
		{ PORT_PIC1_MASK, 4 }, { PORT_PIC1_MASK, 1 },
		{ PORT_PIC2, 0x11 }, { PORT_PIC2_MASK, PIC_BASE + 8 },
		{ PORT_PIC2_MASK, 2 }, { PORT_PIC2_MASK, 1 },
		{ PORT_PIC2_MASK, 0xff }, { PORT_PIC1_MASK, 0xff },
	};

	for (u32 i = 0; i < ARRAY_LENGTH(words); i++)
		out8(words[i][0], words[i][1]);
}

void interrupts_init(void)
{
	struct {
		u16 limit;
		u64 base;
	} __attribute__((packed)) pointer = { sizeof idt - 1, (u64)idt };

	for (u32 vector = 0; vector < 256; vector++) {
		u64 target = (u64)trap_entries + vector * 16;

		idt[vector].low = (target & 0xffff) | 8ull << 16 | 0x8eull << 40 |
				  (target >> 16 & 0xffff) << 48;
		idt[vector].high = target >> 32;
	}
	asm volatile("lidt %0" : : "m"(pointer));
	pic_init();
}

void forget(void)
{
	came = 0;
	for (u32 i = 0; i < ARRAY_LENGTH(vectors); i++)
		vectors[i] = 0;
}

void let_in(void)
{
	asm volatile("sti; nop; jmp 1f; 1: nop; jmp 2f; 2: nop; cli" : : : "memory");
}

int await(u32 count)
{
	u32 start = pm_ticks();

	while (came < count && ((pm_ticks() - start) & 0xffffff) < 2000 * PM_MS) {
		let_in();
		asm volatile("pause");
	}
	return came >= count;
}
