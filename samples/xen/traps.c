/* Exceptions of the kernel, gates, and what is registered for them. */
#include "check.h"
#include "kernel.h"

extern u8 at_divide[], at_ud2[], after_int3[], at_read[];

static __attribute__((noinline)) void exceptions(void)
{
	PROBE("xor %%edx, %%edx; xor %%ecx, %%ecx\n at_divide: div %%ecx", (), ("a"(1)), "ecx", "edx");
	expect_kernel_frame(DIVIDE, at_divide);
	verdict("trap.divide");
	PROBE("at_ud2: ud2", (), ());
	expect_kernel_frame(INVALID_OPCODE, at_ud2);
	verdict("trap.invalid_opcode");
	PROBE("int3\n after_int3:", (), ());
	expect_kernel_frame(BREAKPOINT, after_int3);
	verdict("trap.breakpoint");
	PROBE("at_read: mov (%0), %%eax", (), ("r"(WILD)), "eax");
	expect_kernel_frame(PAGE_FAULT, at_read);
	expect("error", last_trap.error & 3, 0);
	expect("cr2", last_trap.cr2, (ulong)WILD);
	verdict("trap.page_fault");
#ifdef __x86_64__
	PROBE("mov (%0), %%eax", (), ("r"(0x8000000000000000)), "eax");
	expect("vector", last_trap.vector, GENERAL_PROTECTION);
	expect("error", last_trap.error, 0);
	verdict("trap.not_canonical");
#endif
}

static void gates(void)
{
	volatile struct vcpu_info *vcpu = &shared->vcpu_info[0];

	vcpu->upcall_mask = 0;
	asm volatile("int3" : : : "memory");
	expect("vector", last_trap.vector, BREAKPOINT);
	expect("mask inside", last_trap.inner_flags, 0);
	expect("IF in the frame", last_trap.flags & FLAG_IF, FLAG_IF);
	asm volatile("int $4" : : : "memory");
	expect("vector", last_trap.vector, OVERFLOW);
	expect("mask inside the masking one", last_trap.inner_flags, 1);
	expect("mask afterwards", vcpu->upcall_mask, 0);
	vcpu->upcall_mask = 1;
	asm volatile("int3" : : : "memory");
	expect("IF in the frame while off", last_trap.flags & FLAG_IF, 0);
	expect("mask afterwards", vcpu->upcall_mask, 1);
	verdict("trap.gates_and_mask");
}

static void floating_point(void)
{
	returns("fpu_taskswitch.set", HC1(fpu_taskswitch, 1), 0);
	PROBE("fnop", (), ());
	expect("vector", last_trap.vector, NO_DEVICE);
	verdict("fpu_taskswitch.traps");
	returns("fpu_taskswitch.clear", HC1(fpu_taskswitch, 0), 0);
	PROBE("fnop", (), ());
	expect("vector", last_trap.vector, NO_TRAP);
	verdict("fpu_taskswitch.works");
}

static void registration(void)
{
	extern u8 event_entry[], failsafe_entry[];
	struct {
		u16 type, flags;
#ifndef __x86_64__
		ulong cs;
#endif
		ulong address;
	} callback = { .type = 1, .address = (ulong)failsafe_entry };

#ifdef __x86_64__
	static struct trap_info bad[2] = { { 6, 0, FLAT_KERNEL_CODE, 0x8000000000000000 } };
	extern u8 syscall_entry[];

	returns("set_trap_table.not_canonical", HC1(set_trap_table, bad), -XEN_EINVAL);
	/* This old call does not look at what became of the three; callback_op does. */
	returns("set_callbacks.not_canonical",
		HC3(set_callbacks, 0x8000000000000000, failsafe_entry, syscall_entry), 0);
#else
	callback.cs = FLAT_KERNEL_CODE;
#endif
	returns("set_trap_table.bad_pointer", HC1(set_trap_table, WILD), -XEN_EFAULT);
	returns("set_callbacks.again", callbacks_register(), 0);
	returns("callback_op.failsafe", HC2(callback_op, 0, &callback), 0);
#ifdef __x86_64__
	callback.type = 2;
	callback.address = (ulong)syscall_entry;
	returns("callback_op.syscall", HC2(callback_op, 0, &callback), 0);
	callback.address = 0x8000000000000000;
	returns("callback_op.not_canonical", HC2(callback_op, 0, &callback), -XEN_EINVAL);
#endif
	callback.address = (ulong)event_entry;
	callback.type = 77;
	returns("callback_op.unknown_type", HC2(callback_op, 0, &callback), -XEN_ENOSYS);
	callback.type = 0;
	returns("callback_op.unregister_event", HC2(callback_op, 1, &callback), -XEN_EINVAL);
	returns("callback_op.unknown", HC2(callback_op, 9, &callback), -XEN_ENOSYS);
	returns("callback_op.bad_pointer", HC2(callback_op, 0, WILD), -XEN_EFAULT);
	returns("nmi_op.unknown", HC2(nmi_op, 9, 0), -XEN_ENOSYS);
}

static void debugging(void)
{
	returns("set_debugreg.address", HC2(set_debugreg, 0, 0x12345000), 0);
	returns("get_debugreg.address", HC1(get_debugreg, 0) == (long)0x12345000, 1);
	returns("set_debugreg.control", HC2(set_debugreg, 7, 0x400), 0);
	returns("set_debugreg.hypervisor", HC2(set_debugreg, 1, HOLE_START), -XEN_EPERM);
	returns("set_debugreg.unknown", HC2(set_debugreg, 9, 0), -XEN_ENODEV);
	returns("get_debugreg.unknown", HC1(get_debugreg, 9), -XEN_ENODEV);
	HC2(set_debugreg, 0, 0);
}

void test_traps(void)
{
	exceptions();
	gates();
	floating_point();
	registration();
	debugging();
}
