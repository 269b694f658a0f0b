/* Event channels as queues (FIFO): words and a control block in pages of our own. There is no way back. */
#include "check.h"
#include "kernel.h"

enum { INIT_CONTROL = 11, EXPAND_ARRAY = 12, SET_PRIORITY = 13 };

#define WORD_PENDING (1u << 31)
#define WORD_MASKED (1u << 30)
#define WORD_LINKED (1u << 29)
#define WORD_LINK ((1u << 17) - 1)

static volatile struct {
	u32 ready, pad, head[16];
} control __attribute__((aligned(4096)));
static volatile u32 words[1024] __attribute__((aligned(4096)));

static long operation(u32 command, void *argument)
{
	return HC2(event_channel_op, command, argument);
}

static long init_control(u64 frame, u32 offset, u32 vcpu, u8 *link_bits)
{
	struct {
		u64 frame;
		u32 offset, vcpu;
		u8 link_bits, pad[7];
	} op = { frame, offset, vcpu, 0, { 0 } };
	long result = operation(INIT_CONTROL, &op);

	*link_bits = op.link_bits;
	return result;
}

static long expand_array(u64 frame)
{
	return operation(EXPAND_ARRAY, &frame);
}

static long set_priority(u32 port, u32 priority)
{
	u32 op[2] = { port, priority };

	return operation(SET_PRIORITY, op);
}

static u32 bind_ipi(void)
{
	u32 op[2] = { 0, 0 };

	operation(EVTCHN_BIND_IPI, op);
	return op[1];
}

/* The first event of a queue, taken off it; what was in its word is left in `word`. */
static u32 take(u32 priority, u32 *word)
{
	u32 port = control.head[priority];

	*word = words[port];
	words[port] = *word & ~(WORD_LINKED | WORD_LINK | WORD_PENDING);
	control.head[priority] = *word & WORD_LINK;
	return port;
}

void test_queues(void)
{
	volatile struct vcpu_info *vcpu = &shared->vcpu_info[0];
	u64 frame = machine_frame(&control);
	u32 first, second, urgent, early, word;
	u8 link_bits;

	events_disable();
	early = bind_ipi();
	returns("expand_array.two_level", expand_array(machine_frame(words)), -XEN_EOPNOTSUPP);
	returns("set_priority.two_level", set_priority(early, 1), -XEN_ENOSYS);
	returns("init_control.unaligned", init_control(frame, 4, 0, &link_bits), -XEN_EINVAL);
	returns("init_control.over_the_end", init_control(frame, 4096 - 64, 0, &link_bits), -XEN_EINVAL);
	returns("init_control.no_such_vcpu", init_control(frame, 0, 9, &link_bits), -XEN_ENOENT);
	returns("init_control.no_such_frame", init_control(1ull << 40, 0, 0, &link_bits), -XEN_EINVAL);
	returns("init_control.page_table", init_control(machine_frame((void *)start_info->pt_base), 0, 0,
							&link_bits), -XEN_EINVAL);
	operation(EVTCHN_SEND, &early);
	returns("init_control.good", init_control(frame, 0, 0, &link_bits), 0);
	expect("link bits", link_bits, 17);
	verdict("init_control.link_bits");
	returns("init_control.twice", init_control(frame, 0, 0, &link_bits), -XEN_EINVAL);
	returns("expand_array.page_table", expand_array(machine_frame((void *)start_info->pt_base)),
		-XEN_EINVAL);
	vcpu->upcall_pending = 0;
	returns("expand_array.good", expand_array(machine_frame((void *)words)), 0);
	expect("word", words[early] & ~WORD_LINK, WORD_PENDING | WORD_LINKED);
	expect("upcall", vcpu->upcall_pending, 1);
	verdict("expand_array.tells_what_was_pending");

	while (control.head[7]) /* the console's port is among them */
		take(7, &word);
	for (u32 i = 0; i < 1024; i++)
		words[i] = WORD_MASKED;
	control.ready = 0;
	vcpu->upcall_pending = 0;
	first = bind_ipi();
	second = bind_ipi();
	urgent = bind_ipi();
	returns("set_priority.good", set_priority(urgent, 3), 0);
	returns("set_priority.too_low", set_priority(urgent, 16), -XEN_EINVAL);
	returns("set_priority.no_such_port", set_priority(60000, 3), -XEN_EINVAL);
	operation(EVTCHN_SEND, &first);
	expect("word", words[first], WORD_PENDING | WORD_MASKED);
	expect("upcall", vcpu->upcall_pending, 0);
	verdict("queues.masked_is_not_linked");
	operation(EVTCHN_UNMASK, &first);
	expect("word", words[first], WORD_PENDING | WORD_LINKED);
	expect("upcall", vcpu->upcall_pending, 1);
	verdict("queues.unmask_links");
	words[second] = words[urgent] = 0;
	operation(EVTCHN_SEND, &second);
	operation(EVTCHN_SEND, &urgent);
	expect("ready", control.ready, 1 << 7 | 1 << 3);
	expect("head", control.head[7], first);
	expect("link", words[first] & WORD_LINK, second);
	expect("urgent head", control.head[3], urgent);
	verdict("queues.by_priority");
	operation(EVTCHN_CLOSE, &second);
	expect("word", words[second], WORD_LINKED);
	expect_that("another port", bind_ipi() != second);
	verdict("queues.closed_while_linked");
	expect("taken", take(7, &word), first);
	expect("then", take(7, &word), second);
	expect("word", word, WORD_LINKED);
	verdict("queues.taken_in_order");
	operation(EVTCHN_SEND, &first);
	expect("head", control.head[7], first);
	verdict("queues.emptied_starts_again");
}
