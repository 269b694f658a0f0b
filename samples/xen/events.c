/* Event channels: interrupts as bits in shared memory. */
#include "check.h"
#include "kernel.h"

void events_enable(void)
{
	volatile struct vcpu_info *vcpu = &shared->vcpu_info[0];

	vcpu->upcall_mask = 0;
	asm volatile("" : : : "memory");
	if (vcpu->upcall_pending)
		HC2(xen_version, 0, 0); /* any call: Xen looks on its way back */
}

void events_disable(void)
{
	shared->vcpu_info[0].upcall_mask = 1;
}

static long operation(u32 command, void *argument)
{
	return HC2(event_channel_op, command, argument);
}

void test_events(void)
{
	struct {
		u32 vcpu, port;
	} ipi = { 0, 0 };
	struct {
		u32 virq, vcpu, port;
	} timer = { VIRQ_TIMER, 0, 0 }, odd = { 99, 0, 0 };
	struct {
		u16 domain, remote;
		u32 port;
	} unbound = { DOMID_SELF, DOMID_SELF, 0 };
	struct {
		u16 domain;
		u32 port, status, vcpu, u[2];
	} status = { DOMID_SELF, 0, 0, 0, { 0, 0 } };
	u32 port;

	for (u32 i = 0; i < EVENT_WORDS; i++)
		shared->evtchn_mask[i] = ~0ul; /* the console's, too: we do not listen */
	returns("bind_ipi.good", operation(EVTCHN_BIND_IPI, &ipi), 0);
	port = ipi.port;
	shared->evtchn_mask[0] = ~(1ul << port);
	event_ports = 0;
	events_disable();
	returns("send.good", operation(EVTCHN_SEND, &port), 0);
	expect("pending", shared->vcpu_info[0].upcall_pending, 1);
	expect("upcalls while off", event_ports, 0);
	events_enable();
	events_disable();
	expect("port seen", event_ports, 1ul << port);
	expect("pending afterwards", shared->vcpu_info[0].upcall_pending, 0);
	verdict("send.delivered_when_enabled");

	event_ports = 0;
	shared->evtchn_mask[0] = ~0ul;
	events_enable();
	returns("send.masked", operation(EVTCHN_SEND, &port), 0);
	expect("upcalls while masked", event_ports, 0);
	returns("unmask.good", operation(EVTCHN_UNMASK, &port), 0);
	events_disable();
	expect("port seen", event_ports, 1ul << port);
	verdict("unmask.delivers");

	status.port = port;
	returns("status.good", operation(EVTCHN_STATUS, &status), 0);
	expect("an IPI", status.status, 5);
	verdict("status.kind");
	returns("bind_virq.good", operation(EVTCHN_BIND_VIRQ, &timer), 0);
	shared->evtchn_mask[0] = ~(1ul << timer.port);
	returns("bind_virq.twice", operation(EVTCHN_BIND_VIRQ, &timer), -XEN_EEXIST);
	returns("bind_virq.unknown", operation(EVTCHN_BIND_VIRQ, &odd), -XEN_EINVAL);
	returns("alloc_unbound.good", operation(EVTCHN_ALLOC_UNBOUND, &unbound), 0);
	returns("close.good", operation(EVTCHN_CLOSE, &unbound.port), 0);
	returns("close.twice", operation(EVTCHN_CLOSE, &unbound.port), -XEN_EINVAL);
	unbound.domain = 0x7fff;
	returns("alloc_unbound.no_such_domain", operation(EVTCHN_ALLOC_UNBOUND, &unbound), -XEN_ESRCH);
	unbound.port = 4000;
	returns("send.unused_port", operation(EVTCHN_SEND, &unbound.port), -XEN_EINVAL);
	unbound.port = 5000;
	returns("send.no_such_port", operation(EVTCHN_SEND, &unbound.port), -XEN_EINVAL);
	ipi.vcpu = 9;
	returns("bind_ipi.no_such_vcpu", operation(EVTCHN_BIND_IPI, &ipi), -XEN_ENOENT);
	returns("event_channel_op.unknown", operation(77, &port), -XEN_ENOSYS);
	returns("event_channel_op.bad_pointer", operation(EVTCHN_SEND, WILD), -XEN_EFAULT);
	returns("close.ipi", operation(EVTCHN_CLOSE, &port), 0);
}
