# The interrupt flag: the ROM answers from the page that it shares with the hypervisor, with no exit unless
# something is pending. What comes at enabled_point or halt_point is shown to the guest as coming at the
# instruction after its slot's call.

.routine irq_disable
  pushfd
  call dword ptr cs:[VMI_DisableInterrupts]
  popfd
  retf

# [flags][eip][cs]
.routine irq_enable
  pushfd
enable_now:
  call dword ptr cs:[VMI_EnableInterrupts]
enabled_point:
  popfd
  retf

.routine irq_restore
  pushfd
  test eax, 0x200
  jne enable_now
  call dword ptr cs:[VMI_DisableInterrupts]
  popfd
  retf

# EAX: the flags as the guest believes them; below the return address lie the real ones.
.routine believed_flags
  push ecx
  call dword ptr cs:[VMI_GetInterruptMask]
  and eax, 0x200
  mov ecx, [esp+8]
  and ecx, 0xffff8dff
  or eax, ecx
  or eax, cs:[V_iopl]
  or eax, cs:[P_nt]
  pop ecx
  ret

.routine irq_save
  pushfd
  call believed_flags
  call dword ptr cs:[VMI_DisableInterrupts]
  popfd
  retf

.routine flags_read
  pushfd
  call believed_flags
  popfd
  retf

# The new flags are loaded by the IRET that returns, so that TF first traps in the guest's own code.
.routine flags_write
  push eax
  push ecx
  FLAT_IN
  mov ecx, eax
  and ecx, 0x3000
  mov [V_iopl], ecx
  mov ecx, eax
  and ecx, 0x4000
  mov [P_nt], ecx
  mov ecx, [esp+12]
  mov [P_return], ecx
  mov ecx, [esp+16]
  mov [P_return+4], ecx
  mov ecx, eax
  and eax, 0x240dd5
  or eax, 0x202
  mov [P_return+8], eax
  test ecx, 0x200
  jne flags_on
  call dword ptr cs:[VMI_DisableInterrupts]
  call flags_frame
  iretd
flags_on:
  call flags_frame
  jmp safe_send

# [own return][ds][ecx][eax][eip][cs] -> [eip][cs][flags], DS, ECX and EAX as they were.
.routine flags_frame
  pop dword ptr [P_near]
  FLAT_OUT
  pop ecx
  pop eax
  lea esp, [esp+8]
  push dword ptr cs:[P_return+8]
  push dword ptr cs:[P_return+4]
  push dword ptr cs:[P_return]
  jmp dword ptr cs:[P_near]

# HLT with interrupts off never ends: that is Shutdown.
.routine halt
  pushfd
  push eax
  call dword ptr cs:[VMI_GetInterruptMask]
  test eax, 0x200
  pop eax
  jne halt_now
  call dword ptr cs:[VMI_Shutdown]

.routine halt_now
  push eax
  push ecx
  push edx
  call dword ptr cs:[VMI_Halt]
halt_point:
  pop edx
  pop ecx
  pop eax
  popfd
  retf

.routine safe_halt
  pushfd
  jmp halt_now
