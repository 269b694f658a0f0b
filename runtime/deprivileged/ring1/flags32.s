# The interrupt flag in a word of shared memory (LD_irq_enabled, LD_irq_pending): no exit unless something is pending.

.routine irq_disable
  FLAT_IN
  mov dword ptr [LD_irq_enabled], 0
  FLAT_OUT
  retf

# The slot has two returns: one byte further it asks the host for what is pending, from the guest's own
# segment, so that the interrupt's frame is natural.
.routine irq_enable
  pushfd
  FLAT_IN
enable_now:
  mov dword ptr [LD_irq_enabled], 0x200
  cmp dword ptr [LD_irq_pending], 0
  jne enable_pending
  FLAT_OUT
  popfd
  retf
enable_pending:
  FLAT_OUT
  inc dword ptr [esp+4]
  popfd
  retf

.routine irq_restore
  pushfd
  FLAT_IN
  test eax, 0x200
  jne enable_now
  mov dword ptr [LD_irq_enabled], 0
  FLAT_OUT
  popfd
  retf

.routine irq_save
  pushfd
  mov eax, [esp]
  and eax, 0xffff8dff
  or eax, cs:[LD_irq_enabled]
  or eax, cs:[V_iopl]
  or eax, cs:[P_nt]
  FLAT_IN
  mov dword ptr [LD_irq_enabled], 0
  FLAT_OUT
  popfd
  retf

.routine flags_read
  pushfd
  mov eax, [esp]
  and eax, 0xffff8dff
  or eax, cs:[LD_irq_enabled]
  or eax, cs:[V_iopl]
  or eax, cs:[P_nt]
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
  and eax, 0x240dd5
  or eax, 0x202
  test dword ptr [esp+8], 0x200
  je flags_off
  mov dword ptr [LD_irq_enabled], 0x200
  cmp dword ptr [LD_irq_pending], 0
  je flags_go
  inc ecx
  jmp flags_go
flags_off:
  mov dword ptr [LD_irq_enabled], 0
flags_go:
  mov [P_return], ecx
  mov ecx, [esp+16]
  mov [P_return+4], ecx
  mov [P_return+8], eax
  FLAT_OUT
  pop ecx
  pop eax
  lea esp, [esp+8]
  push dword ptr cs:[P_return+8]
  push dword ptr cs:[P_return+4]
  push dword ptr cs:[P_return]
  iretd

# HALT turns interrupts on when it wakes: they are off until then, so that none can slip in between.
.routine halt
  pushfd
  FLAT_IN
  cmp dword ptr [LD_irq_enabled], 0
  jne halt_now
  mov dword ptr [LD_blocked_interrupts], -1
halt_now:
  mov dword ptr [LD_irq_enabled], 0
  FLAT_OUT
  inc dword ptr [esp+4]
  popfd
  retf

.routine safe_halt
  pushfd
  FLAT_IN
  jmp halt_now
