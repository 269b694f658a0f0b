# Control and debug registers: what the guest believes is in the vCPU page.

.routine cr0_read
  mov eax, cs:[V_cr0]
  retf

.routine smsw
  mov eax, cs:[V_cr0]
  retf

.routine cr2_read
  mov eax, cs:[V_cr2]
  retf

.routine cr3_read
  mov eax, cs:[V_cr3]
  retf

.routine cr4_read
  mov eax, cs:[V_cr4]
  retf

.routine cr2_write
  FLAT_IN
  mov [V_cr2], eax
  FLAT_OUT
  retf

.routine cr0_write
  pushfd
  push eax
  push ecx
  push ebx
  FLAT_IN
cr0_common:
  or eax, 0x11
  mov ecx, [V_cr0]
  mov [V_cr0], eax
  xor ecx, eax
  test ecx, 0x1003e
  je cr0_no_bits
  SET_CR0
cr0_no_bits:
  test ecx, 0x80000000
  je cr0_done
  call switch_tables
cr0_done:
  FLAT_OUT
  pop ebx
  pop ecx
  pop eax
  popfd
  retf

.routine lmsw
  pushfd
  push eax
  push ecx
  push ebx
  FLAT_IN
  and eax, 15
  mov ecx, [V_cr0]
  and ecx, 0xfffffff1
  or eax, ecx
  jmp cr0_common

.routine clts
  pushfd
  push eax
  push ebx
  FLAT_IN
  test dword ptr [V_cr0], 8
  je clts_done
  and dword ptr [V_cr0], 0xfffffff7
  CLEAR_TS
clts_done:
  FLAT_OUT
  pop ebx
  pop eax
  popfd
  retf

.routine cr3_write
  pushfd
  push eax
  push ebx
  FLAT_IN
  mov [V_cr3], eax
  test dword ptr [V_cr0], 0x80000000
  je cr3_done
  mov ebx, eax
  NEW_ROOT
cr3_done:
  FLAT_OUT
  pop ebx
  pop eax
  popfd
  retf

.routine cr4_write
  pushfd
  push eax
  FLAT_IN
  mov [V_cr4], eax
  test dword ptr [V_cr0], 0x80000000
  jne cr4_paging
  and eax, 0xffffffdf
cr4_paging:
  SET_CR4
  FLAT_OUT
  pop eax
  popfd
  retf

.routine dr_read
  pushfd
  and eax, 7
  mov eax, cs:[eax*4+P_debug]
  popfd
  retf

.routine dr_write
  pushfd
  push eax
  push edx
  FLAT_IN
  and eax, 7
  cmp eax, 4
  jb dr_store
  test al, 1
  jne dr_control
  mov eax, 6
  and edx, 0xe00f
  or edx, 0xffff0ff0
  mov [P_debug+16], edx
  jmp dr_store
dr_control:
  mov eax, 7
  and edx, 0xffff27ff
  or edx, 0x400
  mov [P_debug+20], edx
dr_store:
  mov [eax*4+P_debug], edx
  FLAT_OUT
  pop edx
  pop eax
  popfd
  retf
