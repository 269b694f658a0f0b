/* How a guest talks to KVM: CPUID to find it, an instruction to call it, MSRs to tell it addresses. */
#include "kvm.h"

volatile struct trap_record last_trap;
volatile struct trap_resume trap_resume;

void trap_forget(void)
{
	last_trap.vector = NO_TRAP;
	last_trap.error = 0;
}

u32 kvm_base(void)
{
	if (!(cpuid(1, 0).ecx >> 31)) /* "running under a hypervisor" */
		return 0;
	/* A host may show other interfaces first; KVM's then moves up by 0x100. */
	for (u32 leaf = 0x40000000; leaf < 0x40010000; leaf += 0x100) {
		struct cpuid r = cpuid(leaf, 0);

		if (r.ebx == 0x4b4d564b && r.ecx == 0x564b4d56 && r.edx == 0x4d) /* KVMKVMKVM */
			return leaf;
	}
	return 0;
}

u32 kvm_features(void)
{
	return cpuid(kvm_base() + KVM_CPUID_FEATURES, 0).eax;
}

int kvm_has(enum feature feature)
{
	return kvm_features() >> feature & 1;
}

/* Intel's instruction or AMD's: the host would mend the wrong one, at a price. */
s64 hypercall(u64 number, u64 a0, u64 a1, u64 a2, u64 a3)
{
	s64 result;

	if (cpuid(0, 0).ecx == 0x6c65746e) /* Genuine"ntel" */
		asm volatile("vmcall" : "=a"(result)
			     : "a"(number), "b"(a0), "c"(a1), "d"(a2), "S"(a3) : "memory");
	else
		asm volatile("vmmcall" : "=a"(result)
			     : "a"(number), "b"(a0), "c"(a1), "d"(a2), "S"(a3) : "memory");
	return result;
}

u64 msr_try_write(u32 index, u64 value)
{
	PROBE("wrmsr", (), ("c"(index), "a"((u32)value), "d"((u32)(value >> 32))));
	return last_trap.vector;
}

u64 msr_try_read(u32 index, u64 *value)
{
	u32 low = 0, high = 0;

	PROBE("rdmsr", ("+a"(low), "+d"(high)), ("c"(index)));
	*value = (u64)high << 32 | low;
	return last_trap.vector;
}
