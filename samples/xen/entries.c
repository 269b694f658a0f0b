/* When Xen comes back to us, and how: breakpoints, upcalls, a return out of a batch; and what the store has. */
#include "check.h"
#include "kernel.h"

#define DR6_RESET 0xffff0ff0ul
#define DR7_RESET 0x400ul
#define DR7_GLOBAL_0 2ul
#define DR7_WRITE_4 (1ul << 16 | 3ul << 18)

extern u8 breakpoint_here[];

static volatile u32 watched;

static void arm(const volatile void *address, ulong control)
{
	HC2(set_debugreg, 0, address);
	HC2(set_debugreg, 6, DR6_RESET);
	HC2(set_debugreg, 7, DR7_RESET | control);
}

static void breakpoints(void)
{
	arm(&watched, DR7_GLOBAL_0 | DR7_WRITE_4);
	PROBE("movl $1, %0\n\tnop\n\tnop", ("=m"(watched)), ());
	HC2(set_debugreg, 7, DR7_RESET);
	expect("vector", last_trap.vector, DEBUG);
	expect("which", (ulong)HC1(get_debugreg, 6) & 15, 1);
	expect("written", watched, 1);
	verdict("breakpoint.write");
	arm(breakpoint_here, DR7_GLOBAL_0);
	PROBE(".globl breakpoint_here\nbreakpoint_here:\n\tnop\n\tnop", (), ());
	HC2(set_debugreg, 7, DR7_RESET);
	expect("vector", last_trap.vector, DEBUG);
	expect("where", last_trap.ip, (ulong)breakpoint_here);
	verdict("breakpoint.execute");
	PROBE("movl $2, %0\n\tnop\n\tnop", ("=m"(watched)), ());
	expect("vector", last_trap.vector, NO_TRAP);
	verdict("breakpoint.off");
}

static void upcalls(void)
{
	volatile struct vcpu_info *vcpu = &shared->vcpu_info[0];
	struct {
		u32 vcpu, port;
	} ipi = { 0, 0 };
	ulong early;

	events_disable();
	HC2(event_channel_op, EVTCHN_BIND_IPI, &ipi);
	shared->evtchn_mask[0] = ~(1ul << ipi.port);
	event_ports = 0;
	HC2(event_channel_op, EVTCHN_SEND, &ipi.port);
	vcpu->upcall_mask = 0;
	early = event_ports;
	HC2(xen_version, 0, 0);
	expect("at the store", early, 0);
	expect("on the return", event_ports, 1ul << ipi.port);
	verdict("upcall.on_the_return_from_xen");
	events_disable();
	HC2(event_channel_op, EVTCHN_CLOSE, &ipi.port);
}

/* HYPERVISOR_iret as the second of three calls: the rest is not made. */
static void returns_in_a_batch(void)
{
	struct multicall_entry calls[3] = {
		{ HYPERVISOR_xen_version, 1, { 7, 0 } },
		{ HYPERVISOR_iret, 1, { 0 } },
		{ HYPERVISOR_xen_version, 1, { 7, 0 } },
	};
	ulong accumulator, number = HYPERVISOR_multicall, list = (ulong)calls, count = 3;

#ifdef __x86_64__
	asm volatile("mov %%rsp, %%rbx\n\t"
		     "push %[ss]\n\tpush %%rbx\n\tpushf\n\tandl $~0x200, (%%rsp)\n\tpush %[cs]\n\t"
		     "lea 1f(%%rip), %%rdx\n\tpush %%rdx\n\t"
		     "push $0\n\tpush $0\n\tpush $0\n\tpush $0x1234\n\t"
		     "syscall\n\tud2\n1:"
		     : "=a"(accumulator), "+D"(list), "+S"(count)
		     : "0"(number), [ss] "i"(FLAT_KERNEL_STACK), [cs] "i"(FLAT_KERNEL_CODE & ~3)
		     : "rbx", "rcx", "rdx", "r8", "r10", "r11", "memory", "cc");
#else
	asm volatile("pushf\n\tandl $~0x200, (%%esp)\n\tpush %[cs]\n\tpush $1f\n\tpush $0x1234\n\t"
		     "int $0x82\n\tud2\n1:"
		     : "=a"(accumulator), "+b"(list), "+c"(count)
		     : "0"(number), [cs] "i"(FLAT_KERNEL_CODE)
		     : "edx", "esi", "edi", "memory", "cc");
#endif
	expect("accumulator", accumulator, 0x1234);
	expect("first", calls[0].result, 4096);
	expect("iret", calls[1].result, 0x1234);
	expect("third", calls[2].result, 1);
	verdict("multicall.iret_ends_it");
}

struct store_ring {
	char request[1024], response[1024];
	u32 request_consumed, request_produced, response_consumed, response_produced;
};

static void ring_copy(volatile struct store_ring *ring, const void *data, u32 length)
{
	for (u32 i = 0; i < length; i++)
		ring->request[ring->request_produced++ % 1024] = ((const char *)data)[i];
}

/* An empty `control/shutdown`, as the toolstack makes it; the first domain has no store when it starts. */
static void store(void)
{
	static const char path[] = "control/shutdown";
	u32 head[4] = { 2, 7, 0, sizeof path }, answer[4] = { 2, 7, 0, 0 };
	volatile struct store_ring *ring;
	u32 port = start_info->store_evtchn;

	if (!is_initial_domain()) {
		ring = frame_address(start_info->store_mfn);
		ring_copy(ring, head, sizeof head);
		ring_copy(ring, path, sizeof path);
		HC2(event_channel_op, EVTCHN_SEND, &port);
		for (u32 i = 0; i < 10000000 && ring->response_produced - ring->response_consumed < 16; i++)
			HC2(sched_op, SCHED_YIELD, 0);
		for (u32 i = 0; i < 16; i++)
			((char *)answer)[i] = ring->response[ring->response_consumed++ % 1024];
	}
	expect("kind", answer[0], 2);
	expect("request", answer[1], 7);
	expect("length", answer[3], 0);
	verdict("store.control_shutdown");
}

void test_entries(void)
{
	breakpoints();
	upcalls();
	returns_in_a_batch();
	store();
}
