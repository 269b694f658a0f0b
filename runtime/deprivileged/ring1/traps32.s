# Traps: from the host's frame to the one the hardware would have pushed, and to the guest's handler.

# Every gate leads here with [vector | kind][error code] above the hardware's frame.
# kind: 0x100 the frame has an error code, 0x200 an interrupt of the host's, 0x1000 an INT n of the kernel's.
.routine common
  FLAT_IN
  mov [S_eax], eax
  mov [S_ecx], ecx
  mov [S_edx], edx
  mov [S_ebx], ebx
  mov [S_esi], esi
  pop dword ptr [S_ds]
  pop dword ptr [S_vector]
  pop dword ptr [S_error]
  mov dword ptr [S_nested], 0
examine:
  pop dword ptr [S_eip]
  pop dword ptr [S_cs]
  pop dword ptr [S_flags]
  movzx eax, word ptr [S_cs]
  test al, 2
  jne from_user
  mov dword ptr [S_user], 0
  cmp eax, FLAT_CS
  jne have_frame
  cmp dword ptr [S_eip], HOLE
  jae in_hole
  jmp have_frame
from_user:
  mov dword ptr [S_user], 1
  pop dword ptr [S_esp]
  pop dword ptr [S_ss]
have_frame:
  movzx ebx, byte ptr [S_vector]
  test dword ptr [S_vector], 0x200
  jne host_interrupt
  cmp ebx, 14
  je page_fault
  cmp ebx, 1
  je debug_trap
  test dword ptr [S_vector], 0x100
  je dispatch
  cmp ebx, 11
  jb dispatch
  cmp ebx, 13
  ja dispatch
  jmp selector_fault

# DR6.BS: no breakpoint is ever set, so what comes with TF set is a single step.
debug_trap:
  test dword ptr [S_flags], 0x100
  je dispatch
  or dword ptr [P_debug+16], 0x4000
  or dword ptr [P_debug+24], 0x4000
  jmp dispatch
page_fault:
  CR2_TO_EAX
  mov [V_cr2], eax
  jmp dispatch

# #NP, #SS, #GP: perhaps only the host's copy of a descriptor, or of a gate's privilege, is old.
selector_fault:
  mov eax, [S_error]
  test al, 2
  jne gate_fault
  test eax, 0xfff8
  NO_SELECTOR
  test al, 5
  jne dispatch
  call sync_selector
  cmp dword ptr [P_synced], 0
  je dispatch
  jmp resume
gate_fault:
  cmp dword ptr [S_user], 0
  je dispatch
  cmp ebx, 13
  jne dispatch
  shr eax, 3
  movzx eax, al
  mov ebx, eax
  call read_gate
  mov ebx, 13
  jne dispatch
  and edx, 0x6000
  cmp edx, 0x6000
  jne dispatch
  mov [S_vector], eax
  mov ebx, eax
  add dword ptr [S_eip], 2
  and dword ptr [S_flags], 0xfffeffff
  cmp ebx, 48
  jb dispatch
  call open_gate
  jmp dispatch

# EBX vector: its gate may be used from user mode from now on.
.routine open_gate
  push eax
  push ebx
  push ecx
  push edx
  mov ecx, ebx
  shl ecx, 4
  lea ecx, [ecx+STUBS]
  mov edx, ecx
  and ecx, 0xffff
  or ecx, GATE_SELECTOR
  and edx, 0xffff0000
  or edx, 0xef00
  LOAD_GATE
  pop edx
  pop ecx
  pop ebx
  pop eax
  ret

# EBX vector -> ZF set: ESI low word, EDX high word of the guest's gate; ZF clear: beyond the table.
.routine read_gate
  lea esi, [ebx*8+7]
  cmp esi, [V_idt_limit]
  ja gate_beyond
  mov esi, [V_idt_base]
  mov edx, [esi+ebx*8+4]
  mov esi, [esi+ebx*8]
  cmp eax, eax
  ret
gate_beyond:
  or esp, esp
  ret

# An interrupt of the host's is known: EBX is the vector that the guest expects, or it is the alarm.
.routine interrupt_known
  mov [S_vector], ebx
  or dword ptr [S_vector], 0x400
  jmp dispatch
.routine alarm_interrupt
  cmp dword ptr [P_armed], 0
  je resume
  call now
  sub eax, [P_deadline]
  sbb edx, [P_deadline+4]
  jae alarm_due
  call arm_clock
  jmp resume
alarm_due:
  mov dword ptr [P_armed], 0
  mov ebx, [P_alarm_vector]
  cmp ebx, 0
  je resume
  jmp interrupt_known

# Find the guest's gate for EBX and enter its handler. At the HLT an exception of the kernel's becomes that of
# the instruction that the guest believes to run: what S_*, the stack pointer, EBP and EDI say may change.
.routine dispatch
  test dword ptr [S_vector], 0x600
  jne dispatch_shown
  cmp dword ptr [S_user], 0
  jne dispatch_shown
trap_shown:
  hlt
dispatch_shown:
  call read_gate
  jne bad_gate
  mov ecx, edx
  shr ecx, 8
  and ecx, 31
  cmp ecx, 15
  je gate_kind
  cmp ecx, 14
  jne bad_gate
gate_kind:
  cmp dword ptr [S_user], 0
  je gate_allowed
  cmp ebx, 48
  jae gate_privilege
  cmp ebx, 3
  je gate_privilege
  cmp ebx, 4
  jne gate_allowed
gate_privilege:
  test dword ptr [S_vector], 0x400
  jne gate_allowed
  mov eax, edx
  and eax, 0x6000
  cmp eax, 0x6000
  jne gate_refused
gate_allowed:
  test dh, 0x80
  je gate_absent
  mov eax, esi
  and eax, 0xffff
  and edx, 0xffff0000
  or eax, edx
  mov [S_offset], eax
  shr esi, 16
  mov eax, esi
  call sync_selector
  or eax, 1
  mov [S_selector], eax
  mov eax, [S_flags]
  and eax, 0xffff8dff
  OR_FLAG
  or eax, [V_iopl]
  or eax, [P_nt]
  mov [S_flags], eax
  mov dword ptr [P_nt], 0
  cmp ecx, 14
  jne gate_trap
  FLAG_OFF
gate_trap:
  cmp dword ptr [S_user], 0
  jne switch_stack
  movzx eax, word ptr [S_cs]
  call virtual_kernel
  mov [S_cs], eax
  jmp build_frame
switch_stack:
  mov esi, [P_tr_base]
  mov eax, [esi+8]
  call sync_selector
  or eax, 1
  mov ecx, [esi+4]
  mov ss, eax
  mov esp, ecx
  push dword ptr [S_ss]
  push dword ptr [S_esp]
build_frame:
  push dword ptr [S_flags]
  push dword ptr [S_cs]
  push dword ptr [S_eip]
  test dword ptr [S_vector], 0x100
  je enter_handler
  push dword ptr [S_error]
enter_handler:
  push dword ptr [S_selector]
  push dword ptr [S_offset]
  mov eax, [S_flags]
  and eax, 0x244ed5
  and eax, 0xffffbfff
  push eax
  popfd
  mov eax, [S_eax]
  mov ecx, [S_ecx]
  mov edx, [S_edx]
  mov ebx, [S_ebx]
  mov esi, [S_esi]
  push dword ptr [S_ds]
  FLAT_OUT
fault_enter:
  retf

# Faults of delivery itself: EBX the vector whose gate is wrong. INT n, INT3 and INTO point at themselves.
gate_refused:
  mov dword ptr [S_vector], 0
bad_gate:
  mov ecx, 13
  jmp nested_fault
gate_absent:
  mov ecx, 11
nested_fault:
  lea edx, [ebx*8+2]
  test dword ptr [S_vector], 0x700
  je nested_software
  or edx, 1
  jmp nested_known
nested_software:
  test dword ptr [S_vector], 0x1000
  jne nested_word
  cmp ebx, 3
  je nested_byte
  cmp ebx, 4
  je nested_byte
  cmp ebx, 32
  jb nested_known
nested_word:
  dec dword ptr [S_eip]
nested_byte:
  dec dword ptr [S_eip]
nested_known:
  cmp ebx, 8
  je triple_fault
  inc dword ptr [S_nested]
  cmp dword ptr [S_nested], 3
  ja triple_fault
  cmp ebx, 14
  je double_fault
  cmp ebx, 10
  jb nested_plain
  cmp ebx, 13
  jbe double_fault
nested_plain:
  mov ebx, ecx
  mov [S_error], edx
  or ecx, 0x100
  mov [S_vector], ecx
  jmp dispatch
double_fault:
  mov ebx, 8
  mov dword ptr [S_error], 0
  mov dword ptr [S_vector], 0x108
  jmp dispatch
triple_fault:
  mov ebx, MESSAGE_TRIPLE
  jmp crash

# Back to where the trap came from, as if it had not been.
.routine resume
  cmp dword ptr [S_user], 0
  je resume_kernel
  push dword ptr [S_ss]
  push dword ptr [S_esp]
resume_kernel:
  push dword ptr [S_flags]
  push dword ptr [S_cs]
  push dword ptr [S_eip]
  mov eax, [S_eax]
  mov ecx, [S_ecx]
  mov edx, [S_edx]
  mov ebx, [S_ebx]
  mov esi, [S_esi]
  push dword ptr [S_ds]
  FLAT_OUT
  iretd

# A trap while our own code ran.
.routine in_hole
  mov eax, [S_eip]
  SAFE_POINTS
  movzx ecx, byte ptr [S_vector]
  cmp ecx, 1
  je resume
  cmp eax, fault_iret
  je unwind_iret
  cmp eax, fault_far
  je unwind_far
  cmp eax, fault_ss
  je unwind_stack
  cmp eax, fault_ds
  je unwind_data
  cmp eax, fault_far_call
  je unwind_far_call
  mov ecx, 0
next_simple:
  cmp eax, [ecx*4+simple_faults]
  je unwind_simple
  inc ecx
  cmp dword ptr [ecx*4+simple_faults], 0
  jne next_simple
  cmp eax, fault_enter
  je handler_fault
  mov ebx, MESSAGE_INSIDE
  jmp crash

# An interrupt at the end of `iret`: what it interrupts is the frame that IRET was to load.
at_safe_point:
  pop dword ptr [S_eax]
  jmp examine

# The slot's own far call lies on the stack: the guest faulted there.
unwind_data:
  mov ecx, [P_ds]
  mov [S_ds], ecx
unwind_simple:
  pop dword ptr [S_eip]
  sub dword ptr [S_eip], 7
  pop dword ptr [S_cs]
  jmp unwound
unwind_stack:
  push dword ptr [P_return]
  mov eax, [P_site]
  mov [S_eip], eax
  mov eax, [P_return+4]
  mov [S_cs], eax
  jmp unwound
unwind_far_call:
  mov eax, [P_return+8]
  push eax
  mov eax, [P_return]
  mov [esp+4], eax
  mov eax, [P_return+4]
  mov [esp+8], eax
  and eax, 3
  cmp eax, 1
  jne unwound_site
  and dword ptr [esp+8], 0xfffffffc
  jmp unwound_site
unwind_iret:
  mov eax, [P_old_flags]
  mov [esp+8], eax
  mov eax, [P_old_if]
  FLAG_BACK
unwind_far:
  mov eax, [esp+4]
  and eax, 3
  cmp eax, 1
  jne unwound_site
  and dword ptr [esp+4], 0xfffffffc
unwound_site:
  mov eax, [P_site]
  mov [S_eip], eax
  mov eax, [P_site+4]
  mov [S_cs], eax
unwound:
  and dword ptr [S_error], 0xffff
  jmp have_frame

# The handler's code segment was refused: the frame goes away again and a double fault follows.
handler_fault:
  jmp triple_fault

.routine simple_faults
  .long fault_es, fault_fs, fault_gs
  .long fault_ins8, fault_ins16, fault_ins32, fault_outs8, fault_outs16, fault_outs32, 0
