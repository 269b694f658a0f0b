# The ABI on lguest: code of the guest's side, at the top of the linear address space.
#
# An lguest guest runs at privilege 1 and sees the host's segments, flags and tables. This code stands
# between a native guest and that: ABI calls arrive by a far call into a flat segment of ours, traps
# arrive through gates of ours, and what the guest believes (its IF and IOPL, CR0, CR3, its tables and
# selectors) is kept in the vCPU page. It speaks to the host only through lguest's own interface:
# INT 0x1F, struct lguest_data, and port instructions that fault.
#
# The host delivers no interrupt while EIP is in [HOLE, quiet_end). S_* is the state of the trap
# that is being delivered; nothing that runs then can trap visibly.
# V_* are fields of the vCPU page, LD_* of lguest_data, P_* of our private page.
#
# This file: the words all files use, and the slots that stay in the image. The rest is in flags32.s,
# registers32.s, tables32.s, segments32.s, transfers32.s, io32.s, time32.s, traps32.s and boot32.s.

.define FLAT_IN push ds; push FLAT_DS; pop ds
.define FLAT_OUT pop ds
.define HYPERCALL int 0x1f

# What the shared files ask of a backend. DS is flat; what a word may change is said beside it.
# SET_CR0, SET_CR4: from EAX (keeps it). NEW_ROOT: EBX guest-physical (EAX, EBX). CLEAR_TS (EAX, EBX).
.define SET_CR0 mov cr0, eax
.define SET_CR4 mov cr4, eax
.define NEW_ROOT mov eax, HC_new_pgtable; int 0x1f
.define CLEAR_TS mov eax, HC_ts; mov ebx, 0; int 0x1f
# INVALIDATE: the page at EAX (EAX, EBX, ECX, EDX, ESI). FLUSH keeps all.
.define INVALIDATE mov ecx, eax; mov ebx, [V_cr3]; mov edx, 0; mov esi, 0; mov eax, HC_set_pte; int 0x1f
.define FLUSH push eax; push ebx; mov ebx, 1; mov eax, HC_flush_tlb; int 0x1f; pop ebx; pop eax
# LOAD_DESCRIPTOR: EBX index, ECX and EDX words. LOAD_GATE: EBX vector, ECX and EDX words (all change).
.define LOAD_DESCRIPTOR mov eax, HC_load_gdt_entry; int 0x1f
.define LOAD_GATE mov eax, HC_load_idt_entry; int 0x1f
# PIC_BASE: the guest tells chip ECX (0, or 4 for the slave) its base EAX, by the OUT that follows.
.define PIC_BASE mov [ecx+P_pic_base], eax
# The guest's IF: FLAG_TO_ECX (EAX), OR_FLAG into EAX, FLAG_OFF, FLAG_BACK from EAX.
.define FLAG_TO_ECX mov ecx, [LD_irq_enabled]
.define OR_FLAG or eax, [LD_irq_enabled]
.define FLAG_OFF mov dword ptr [LD_irq_enabled], 0
.define FLAG_BACK mov [LD_irq_enabled], eax
# IRET_FLAG: to ECX (tested); goes to iret_pending to let a waiting interrupt in first.
.define IRET_FLAG mov [LD_irq_enabled], ecx; je iret_go; cmp dword ptr [LD_irq_pending], 0; jne iret_pending
# SAFE_POINTS: places (in EAX) where an interrupt may have come, and how they are left.
.define SAFE_POINTS cmp eax, safe_point; je at_safe_point
# CR2_TO_EAX: address of the page fault (ECX, EDX).
.define CR2_TO_EAX mov eax, [LD_cr2]
# NO_SELECTOR: goes on (at dispatch) with a #GP, #SS or #NP that names no selector (EAX, ECX, EDX, ESI).
.define NO_SELECTOR je dispatch
