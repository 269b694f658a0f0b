/* A guest written for Xen's own interface, for comparing whoever claims to be Xen. */
#include "check.h"
#include "kernel.h"

/* The page that a domain shares with whoever shows its console: bytes and four counters. */
struct console_ring {
	char in[1024], out[2048];
	u32 in_consumed, in_produced, out_consumed, out_produced;
};

static void ring_write(const char *text, u32 length)
{
	volatile struct console_ring *ring = frame_address(start_info->console.mfn);
	u32 port = start_info->console.evtchn;

	for (u32 i = 0; i < length; i++) {
		while (ring->out_produced - ring->out_consumed == sizeof ring->out)
			HC2(sched_op, SCHED_YIELD, 0);
		ring->out[ring->out_produced % sizeof ring->out] = text[i];
		asm volatile("" : : : "memory"); /* the byte before the count */
		ring->out_produced++;
	}
	HC2(event_channel_op, EVTCHN_SEND, &port);
}

/* The first domain writes to Xen's own console; others may not, and have a ring. */
void console_line(const char *text)
{
	static char buffer[162];
	u32 length = 0;

	while (*text && length < sizeof buffer - 1)
		buffer[length++] = *text++;
	buffer[length++] = '\n';
	if (is_initial_domain())
		HC3(console_io, 0, length, buffer);
	else
		ring_write(buffer, length);
}

int is_initial_domain(void)
{
	return (start_info->flags & SIF_INITDOMAIN) != 0;
}

_Noreturn void kernel_main(void);
void kernel_main(void)
{
	static u32 power_off;

	say(AT_WIDTH("xen-i386", "xen-x86_64"));
	traps_init();
	shared_info_map();
	test_boot();
	test_version();
	test_tables();
	test_traps();
	test_memory();
	test_mapping();
	test_user();
	test_events();
	test_time();
	test_virtual_cpu();
	test_others();
	test_entries();
	test_grants();
	test_queues();
	summary();
	for (;;)
		HC2(sched_op, SCHED_SHUTDOWN, &power_off);
}
