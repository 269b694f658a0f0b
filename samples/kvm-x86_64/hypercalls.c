/* The hypercalls, good and bad. What is not advertised may do anything, so it is not tried. */
#include "check.h"
#include "kvm.h"

static struct clock_pairing pairing __attribute__((aligned(64)));

static void unknown(void)
{
	static const u64 numbers[] = { 0, 13, 0x1000, 0xffffffff, ~0ull };
	static const u64 foreign[] = { HC_FEATURES, HC_PPC_MAP_MAGIC_PAGE, HC_MIPS_GET_CLOCK_FREQ,
				       HC_MIPS_EXIT_VM, HC_MIPS_CONSOLE_OUTPUT };

	for (u32 i = 0; i < ARRAY_LENGTH(numbers); i++)
		expect("result", (u64)hypercall(numbers[i], 1, 2, 3, 4), (u64)-KVM_ENOSYS);
	verdict("hypercall.unknown");

	for (u32 i = 0; i < ARRAY_LENGTH(foreign); i++)
		expect("result", (u64)hypercall(foreign[i], 0, 0, 0, 0), (u64)-KVM_ENOSYS);
	verdict("hypercall.other_architectures");
}

/* Only RAX changes, not even the flags that the instruction sequence around it relies on. */
static void preserved(void)
{
	register u64 r8 asm("r8") = 8, r9 asm("r9") = 9, r10 asm("r10") = 10, r15 asm("r15") = 15;
	u64 number = HC_VAPIC_POLL_IRQ, b = 0xb, c = 0xc, d = 0xd, s = 0x5, t = 0x7;
	int intel = cpuid(0, 0).ecx == 0x6c65746e;
	u8 carry;

	if (intel)
		asm volatile("stc; vmcall; setc %6"
			     : "+a"(number), "+b"(b), "+c"(c), "+d"(d), "+S"(s), "+D"(t),
			       "=m"(carry), "+r"(r8), "+r"(r9), "+r"(r10), "+r"(r15)
			     : : "memory", "cc");
	else
		asm volatile("stc; vmmcall; setc %6"
			     : "+a"(number), "+b"(b), "+c"(c), "+d"(d), "+S"(s), "+D"(t),
			       "=m"(carry), "+r"(r8), "+r"(r9), "+r"(r10), "+r"(r15)
			     : : "memory", "cc");
	expect("result", number, 0);
	expect("rbx", b, 0xb);
	expect("rcx", c, 0xc);
	expect("rdx", d, 0xd);
	expect("rsi", s, 0x5);
	expect("rdi", t, 0x7);
	expect("r8", r8, 8);
	expect("r9", r9, 9);
	expect("r10", r10, 10);
	expect("r15", r15, 15);
	expect("carry", carry, 1);
	verdict("hypercall.registers_kept");
}

static void clock_pairs(void)
{
	s64 result = hypercall(HC_CLOCK_PAIRING, (u64)&pairing, 0, 0, 0);
	int offered = result == 0;

	/* The host can only do this if its own clock runs by the time stamp counter. */
	if (offered) {
		expect_that("nanoseconds in a second",
			    pairing.nanoseconds >= 0 && pairing.nanoseconds < 1000000000);
		expect_that("seconds", pairing.seconds > 0);
		expect_that("a past time stamp", pairing.tsc <= tsc_read());
		expect("flags", pairing.flags, 0);
	} else {
		expect_that("not supported",
			    result == -KVM_EOPNOTSUPP || result == -KVM_ENOSYS);
	}
	result = hypercall(HC_CLOCK_PAIRING, (u64)&pairing, 1, 0, 0); /* no such clock */
	expect_that("wrong clock", result == -KVM_EOPNOTSUPP || result == -KVM_ENOSYS);
	result = hypercall(HC_CLOCK_PAIRING, 1ull << 51, 0, 0, 0); /* no such memory */
	expect_that("wild address", offered ? result == -KVM_EFAULT
		    : result == -KVM_EOPNOTSUPP || result == -KVM_ENOSYS);
	verdict("hypercall.clock_pairing");
}

static void advertised(void)
{
	if (kvm_has(PV_UNHALT)) {
		expect("kick of ourselves", (u64)hypercall(HC_KICK_CPU, 0, 0, 0, 0), 0);
		verdict("hypercall.kick_cpu");
	} else {
		skipped("hypercall.kick_cpu", "not advertised");
	}
	if (kvm_has(PV_SEND_IPI)) {
		expect("nobody", (u64)hypercall(HC_SEND_IPI, 0, 0, 0, 0xfe), 0);
		verdict("hypercall.send_ipi");
	} else {
		skipped("hypercall.send_ipi", "not advertised");
	}
	if (kvm_has(PV_SCHED_YIELD)) {
		expect("to ourselves", (u64)hypercall(HC_SCHED_YIELD, 0, 0, 0, 0), 0);
		expect("to nobody", (u64)hypercall(HC_SCHED_YIELD, 0xfff, 0, 0, 0), 0);
		verdict("hypercall.sched_yield");
	} else {
		skipped("hypercall.sched_yield", "not advertised");
	}
	if (kvm_has(HC_MAP_GPA_RANGE)) {
		expect("unaligned", (u64)hypercall(HC_MAP_GPA, 1, 1, 0, 0), (u64)-KVM_EINVAL);
		expect("no pages", (u64)hypercall(HC_MAP_GPA, 0x1000, 0, 0, 0), (u64)-KVM_EINVAL);
		verdict("hypercall.map_gpa_range");
	} else {
		skipped("hypercall.map_gpa_range", "not advertised");
	}
}

/* Hypercalls are the kernel's: the same instruction in user mode is refused. */
static void from_user(void)
{
	extern u8 syscall_entry[];
	static const u8 intel[] = { 0xb8, 1, 0, 0, 0, 0x0f, 0x01, 0xc1, 0x0f, 0x05 };
	static const u8 amd[] = { 0xb8, 1, 0, 0, 0, 0x0f, 0x01, 0xd9, 0x0f, 0x05 };
	const u8 *program = cpuid(0, 0).ecx == 0x6c65746e ? intel : amd;
	u8 *to = (u8 *)0x400000; /* mov $1, %eax; the call; syscall */

	for (u32 i = 0; i < sizeof intel; i++)
		to[i] = program[i];
	msr_write(MSR_STAR, 0x18ull << 48 | 0x08ull << 32);
	msr_write(MSR_LSTAR, (u64)syscall_entry);
	msr_write(MSR_SYSCALL_MASK, 0x200);
	expect("result", (u64)from_user_mode(to), (u64)-KVM_EPERM);
	verdict("hypercall.refused_to_user_mode");
}

void test_hypercalls(void)
{
	unknown();
	preserved();
	clock_pairs();
	advertised();
	from_user();
}
