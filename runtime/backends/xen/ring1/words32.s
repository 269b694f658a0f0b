# The ABI on Xen, i386: code of the guest's side, at the top of the linear address space.
#
# What stands between a native kernel and privilege 1 is the same on every such hypervisor: the files in
# runtime/deprivileged/ring1. This file and host32.s say it in Xen's terms: INT 0x82, shared_info and
# vcpu_info, event channels, and privileged instructions that Xen carries out when they fault.
#
# The guest's IF is LD_irq_enabled; Xen's event mask is only set while an upcall is being looked at. An
# upcall that finds the guest with IF clear, or in this code, leaves LD_irq_pending for the next enabling
# call. XS_* are fields of shared_info, XV_* of vcpu_info, XT_* of its time, XC_* of the console ring.

.define FLAT_IN push ds; push FLAT_DS; pop ds
.define FLAT_OUT pop ds
.define HYPERCALL int 0x82

.define SET_CR0 mov cr0, eax
.define SET_CR4 mov cr4, eax
.define NEW_ROOT mov cr3, ebx
.define CLEAR_TS mov eax, HC_fpu_taskswitch; mov ebx, 0; int 0x82
.define INVALIDATE call invalidate
.define FLUSH call flush
.define LOAD_DESCRIPTOR call load_descriptor
.define LOAD_GATE call load_gate
.define PIC_BASE mov [ecx+P_pic_base], eax
.define FLAG_TO_ECX mov ecx, [LD_irq_enabled]
.define OR_FLAG or eax, [LD_irq_enabled]
.define FLAG_OFF mov dword ptr [LD_irq_enabled], 0
.define FLAG_BACK mov [LD_irq_enabled], eax
.define IRET_FLAG mov [LD_irq_enabled], ecx; je iret_go; cmp dword ptr [LD_irq_pending], 0; jne iret_pending
.define SAFE_POINTS nop
.define CR2_TO_EAX mov eax, [XV_cr2]
.define NO_SELECTOR je dispatch
