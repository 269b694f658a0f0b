/* Is this KVM, and what does it offer? */
#include "check.h"
#include "kvm.h"

void test_detection(void)
{
	u32 base = kvm_base(), leaf;

	expect("hypervisor bit", cpuid(1, 0).ecx >> 31, 1);
	expect_that("signature found", base != 0);
	leaf = cpuid(base, 0).eax;
	/* Old hosts say 0 and mean the feature leaf. */
	expect_that("highest leaf", leaf == 0 || leaf >= base + KVM_CPUID_FEATURES);
	verdict("cpuid.signature");

	expect("unknown feature bits", kvm_features() & ~KNOWN_FEATURES, 0);
	expect("unknown hint bits", cpuid(base + KVM_CPUID_FEATURES, 0).edx & ~1u, 0);
	verdict("cpuid.features");
}
