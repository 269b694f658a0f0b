/* A guest written for KVM's own interface, for checking whoever claims to offer it. */
#include "check.h"
#include "kvm.h"
#include "pc.h"

static struct {
	u64 low, high;
} idt[32];

extern u8 trap_entries[];

void traps_init(void)
{
	struct {
		u16 limit;
		u64 base;
	} __attribute__((packed)) pointer = { sizeof idt - 1, (u64)idt };

	for (u32 vector = 0; vector < ARRAY_LENGTH(idt); vector++) {
		u64 target = (u64)trap_entries + vector * 32;

		idt[vector].low = (target & 0xffff) | 0x08ull << 16 | 0x8eull << 40 |
				  (target >> 16 & 0xffff) << 48;
		idt[vector].high = target >> 32;
	}
	asm volatile("lidt %0" : : "m"(pointer));
}

_Noreturn void kernel_main(void);
void kernel_main(void)
{
	say("kvm-x86_64");
	traps_init();
	test_detection();
	if (kvm_base()) {
		test_hypercalls();
		test_clocks();
		test_registers();
	}
	summary();
	power_off();
}
