"""KVM's guest interface: privilege 0 in the guest, CPUID leaves, MSRs, VMCALL and VMMCALL."""
