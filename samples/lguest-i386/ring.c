/* The ring of calls that may wait: done in order, before the next direct call. */
#include "check.h"
#include "kernel.h"

static u32 window[4] = { 0x11111111, 0x22222222, 0x33333333, 0x44444444 };
static u32 next;

/* As Linux does it: a full ring makes the call directly. */
static void later(u32 number, u32 a1, u32 a2, u32 a3, u32 a4)
{
	if (lguest_data.hcall_status[next] != 0xff) {
		hypercall(number, a1, a2, a3, a4);
		return;
	}
	lguest_data.hcalls[next].eax = number;
	lguest_data.hcalls[next].ebx = a1;
	lguest_data.hcalls[next].ecx = a2;
	lguest_data.hcalls[next].edx = a3;
	lguest_data.hcalls[next].esi = a4;
	asm volatile("" : : : "memory");
	lguest_data.hcall_status[next] = 0;
	next = (next + 1) % RING_ENTRIES;
}

static void window_later(u32 *at)
{
	later(LHCALL_LOAD_GDT_ENTRY, GDT_FREE_ENTRY, window_low((u32)at), window_high((u32)at, 0), 0);
}

static u32 first_word(void)
{
	u32 word;

	asm volatile("mov %1, %%fs; mov %%fs:0, %0; mov %2, %%fs"
		     : "=&r"(word) : "r"((u16)SEL_FREE), "r"((u16)0) : "memory");
	return word;
}

static u32 waiting(void)
{
	u32 count = 0;

	for (u32 i = 0; i < RING_ENTRIES; i++)
		count += lguest_data.hcall_status[i] != 0xff;
	return count;
}

void test_ring(void)
{
	window_later(window + 2);
	window_later(window + 1);
	expect("waiting", waiting(), 2);
	hypercall(LHCALL_FLUSH_ASYNC, 0, 0, 0, 0);
	expect("waiting after the flush", waiting(), 0);
	expect("the later one counts", first_word(), 0x22222222);
	verdict("ring.in_order");

	window_later(window + 3);
	gdt_entry(GDT_FREE_ENTRY, window_low((u32)window), window_high((u32)window, 0));
	expect("waiting", waiting(), 0);
	expect("the direct call counts", first_word(), 0x11111111);
	verdict("ring.before_direct_call");

	for (u32 i = 0; i < RING_ENTRIES; i++) /* fills it, over its end */
		window_later(window + i % 4);
	expect("waiting", waiting(), RING_ENTRIES);
	window_later(window + 1); /* no room: directly, and everything before it */
	expect("waiting when full", waiting(), 0);
	expect("the last one counts", first_word(), 0x22222222);
	verdict("ring.full");
}
