# Far transfers, INT n and IRET: frames with virtual selectors and flags in, real ones out.

# Reached by a far call: the slot's own address is kept for a fault, and what lies below is the frame.

# [ds][slot eip][slot cs] -> P_site, DS flat and the guest's DS in P_ds. EAX is preserved.
.routine keep_site
  mov [P_eax], eax
  pop eax
  mov [P_near], eax
  pop dword ptr [P_ds]
  pop eax
  lea eax, [eax-7]
  mov [P_site], eax
  pop dword ptr [P_site+4]
  mov eax, [P_eax]
  jmp dword ptr [P_near]

.routine far_jump
  FLAT_IN
  call keep_site
  pushfd
  push eax
  mov eax, [esp+12]
  call sync_selector
  test al, 3
  jne far_privilege
  or dword ptr [esp+12], 1
far_privilege:
  pop eax
  popfd
  push dword ptr [P_ds]
  FLAT_OUT
fault_far:
  retf

.routine far_return
  FLAT_IN
  call keep_site
  pushfd
  push eax
  mov eax, [esp+12]
  and eax, 3
  cmp eax, 3
  jne far_inner
  call sync_all
far_inner:
  mov eax, [esp+12]
  call sync_selector
  test al, 3
  jne far_privilege
  or dword ptr [esp+12], 1
  jmp far_privilege

# [ret][offset][selector] -> [ret][virtual cs] for the callee, and off to offset:selector.
.routine far_call
  FLAT_IN
  call keep_site
  pushfd
  push eax
  push ebx
  mov eax, [esp+20]
  call sync_selector
  test al, 3
  jne far_call_level
  or eax, 1
far_call_level:
  mov [P_return+4], eax
  mov eax, [esp+16]
  mov [P_return], eax
  mov eax, [P_site+4]
  movzx eax, ax
  call virtual_kernel
  mov ebx, [esp+12]
  mov [P_return+8], ebx
  mov [esp+16], ebx
  mov [esp+20], eax
  pop ebx
  pop eax
  popfd
  lea esp, [esp+4]
  push dword ptr [P_ds]
  FLAT_OUT
fault_far_call:
  .byte 0x2e, 0xff, 0x2d
  .long P_return

# [ret][vector]: a trap frame as INT n would push it, then the common path.
.routine soft_int
  pushfd
  push eax
  mov eax, [esp+20]
  and eax, 255
  or eax, 0x1000
  xchg eax, [esp+4]
  mov [esp+20], eax
  mov eax, [esp+12]
  xchg eax, [esp+16]
  mov [esp+12], eax
  mov dword ptr [esp+8], 0
  pop eax
  jmp common

.routine iret
  FLAT_IN
  call keep_site
  push eax
  push ecx
  FLAG_TO_ECX
  mov [P_old_if], ecx
  mov eax, [esp+16]
  mov [P_old_flags], eax
  test eax, 0x20000
  jne iret_v86
  mov ecx, eax
  and ecx, 0x3000
  mov [V_iopl], ecx
  mov ecx, eax
  and ecx, 0x4000
  mov [P_nt], ecx
  mov ecx, eax
  and eax, 0x254dd5
  and eax, 0xffffbfff
  or eax, 0x202
  mov [esp+16], eax
  mov eax, [esp+12]
  test al, 3
  jne iret_user
  call sync_selector
  or dword ptr [esp+12], 1
  jmp iret_flag
iret_user:
  call sync_all
iret_flag:
  and ecx, 0x200
  IRET_FLAG
iret_go:
  pop ecx
  pop eax
  push dword ptr [P_ds]
  FLAT_OUT
fault_iret:
  iretd
iret_pending:
  pop ecx
  pop eax
  push dword ptr [P_ds]
  FLAT_OUT
  jmp safe_send
iret_v86:
  mov ebx, MESSAGE_V86
  jmp crash
