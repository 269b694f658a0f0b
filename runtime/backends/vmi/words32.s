# The ABI on VMI: code of the guest's side, at the top of the linear address space, beside the ROM's.
#
# The traps, segments and tables of a kernel at privilege 1 are the same work on every such hypervisor and
# lie in shared files; this folder has what is VMI's. It speaks to the hypervisor only through the ROM:
# VMI_NAME is the word in which boot32.s keeps the address that GetReloc gave for the call. The ROM calls
# may destroy EAX, ECX, EDX and the flags, and need a flat CS and a stack. Port instructions fault and are
# carried out by the hypervisor, as for every VMI kernel.
# No interrupt comes while EIP is in the hypervisor's part of the address space, but by the calls that say so.
# V_* are fields of the vCPU page, P_* of our private page, S_* the state of the trap being delivered.

.define FLAT_IN push ds; push FLAT_DS; pop ds
.define FLAT_OUT pop ds

# What the shared files ask of a backend. DS is flat; what a word may change is said beside it.
# SET_CR0, SET_CR4: from EAX (keeps it). NEW_ROOT: EBX guest-physical (EAX, EBX). CLEAR_TS (EAX, EBX).
.define SET_CR0 push eax; push ecx; push edx; call dword ptr cs:[VMI_SetCR0]; pop edx; pop ecx; pop eax
.define SET_CR4 push eax; push ecx; push edx; call dword ptr cs:[VMI_SetCR4]; pop edx; pop ecx; pop eax
.define NEW_ROOT push ecx; push edx; mov eax, ebx; call dword ptr cs:[VMI_SetCR3]; pop edx; pop ecx
.define CLEAR_TS push ecx; push edx; call dword ptr cs:[VMI_CLTS]; pop edx; pop ecx
# INVALIDATE: the page at EAX (EAX, EBX, ECX, EDX, ESI). FLUSH keeps all.
.define INVALIDATE call dword ptr cs:[VMI_InvalPage]
.define FLUSH call flush_all
# LOAD_DESCRIPTOR: EBX index, ECX and EDX words. LOAD_GATE: EBX vector, ECX and EDX words (all change).
.define LOAD_DESCRIPTOR call load_descriptor
.define LOAD_GATE call load_gate
# PIC_BASE: the guest tells chip ECX (0, or 4 for the slave) its base EAX, by the OUT that follows.
.define PIC_BASE jmp keep_pic_base
# The guest's IF: FLAG_TO_ECX (EAX), OR_FLAG into EAX, FLAG_OFF, FLAG_BACK from EAX.
.define FLAG_TO_ECX call dword ptr cs:[VMI_GetInterruptMask]; mov ecx, eax
.define OR_FLAG call or_flag
.define FLAG_OFF call dword ptr cs:[VMI_DisableInterrupts]
.define FLAG_BACK call flag_back
# IRET_FLAG: to ECX (tested); goes to iret_pending to let a waiting interrupt in first.
.define IRET_FLAG jne iret_pending; call dword ptr cs:[VMI_DisableInterrupts]
# SAFE_POINTS: places (in EAX) where an interrupt may have come, and how they are left.
.define SAFE_POINTS cmp eax, safe_point; je at_safe_point; cmp eax, enabled_point; je at_enabled_point; cmp eax, halt_point; je at_halt_point
# CR2_TO_EAX: address of the page fault (ECX, EDX).
.define CR2_TO_EAX call dword ptr cs:[VMI_GetCR2]
# NO_SELECTOR: goes on (at dispatch) with a #GP, #SS or #NP that names no selector (EAX, ECX, EDX, ESI).
.define NO_SELECTOR je plain_fault
