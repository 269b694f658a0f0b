/* VCPUs, their run states, and batches of calls. */
#include "check.h"
#include "kernel.h"

static void vcpus(void)
{
	struct {
		s32 state;
		u64 entry_time, time[4]; /* ns: running, runnable, blocked, offline */
	} state;
	u64 period = 1;

	returns("vcpu_op.is_up", HC3(vcpu_op, 3, 0, 0), 1);
	returns("vcpu_op.no_such_vcpu", HC3(vcpu_op, 3, 900, 0), -XEN_ENOENT);
	returns("vcpu_op.get_runstate", HC3(vcpu_op, 4, 0, &state), 0);
	expect("running", (u64)state.state, 0);
	expect_that("has run", state.time[0] > 0);
	verdict("vcpu_op.runstate");
	returns("vcpu_op.get_runstate_bad_pointer", HC3(vcpu_op, 4, 0, WILD), -XEN_EFAULT);
	returns("vcpu_op.periodic_too_short", HC3(vcpu_op, 6, 0, &period), -XEN_EINVAL);
	returns("vcpu_op.stop_singleshot", HC3(vcpu_op, 9, 0, 0), 0);
	returns("vcpu_op.initialise_bad_pointer", HC3(vcpu_op, 0, 0, WILD), -XEN_EFAULT);
	returns("vcpu_op.unknown", HC3(vcpu_op, 77, 0, 0), -XEN_ENOSYS);
}

static void batches(void)
{
	static char text[16];
	struct multicall_entry calls[4] = {
		{ HYPERVISOR_xen_version, 1, { 7, 0 } },
		{ HYPERVISOR_xen_version, 1, { 1, (ulong)text } },
		{ 11, 1, { 0 } },
		{ HYPERVISOR_xen_version, 1, { 77, 0 } },
	};

	returns("multicall.good", HC2(multicall, calls, 4), 0);
	returns("multicall.first", (long)calls[0].result, 4096);
	returns("multicall.second", (long)calls[1].result, 0);
	returns("multicall.unused", (long)calls[2].result, -XEN_ENOSYS);
	returns("multicall.failed", (long)calls[3].result, -XEN_ENOSYS);
	calls[0] = (struct multicall_entry){ HYPERVISOR_multicall, 1, { (ulong)&calls[1], 1 } };
	returns("multicall.nested", HC2(multicall, calls, 1), 0);
	returns("multicall.nested_result", (long)calls[0].result, -XEN_EINVAL);
	returns("multicall.none", HC2(multicall, 0, 0), 0);
	returns("multicall.bad_pointer", HC2(multicall, WILD, 1), -XEN_EFAULT);
}

static void assists(void)
{
	returns("vm_assist.writable_page_tables", HC2(vm_assist, 0, 2), 0);
	returns("vm_assist.off", HC2(vm_assist, 1, 2), 0);
	returns("vm_assist.unknown_type", HC2(vm_assist, 0, 63), -XEN_EINVAL);
	returns("vm_assist.unknown", HC2(vm_assist, 9, 2), -XEN_ENOSYS);
}

void test_virtual_cpu(void)
{
	vcpus();
	batches();
	assists();
}
