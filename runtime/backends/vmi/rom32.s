# The ROM's code, mapped at the top of every address space. The hypercall behind it is private: VMCALL,
# and which call is meant is told by where the VMCALL stands. What can be answered from the shared page is
# answered here. A call needs a flat CS and a stack; HOST_DATA is a flat segment of the hypervisor's, and
# SHARED_* are words of the shared page that follows `virtual_top`.

.define DATA_IN push ds; push HOST_DATA; pop ds

.routine EnableInterrupts
enable:
  DATA_IN
  mov dword ptr [SHARED_enabled], 0x200
  cmp dword ptr [SHARED_pending], 0
  pop ds
  jne enable_exit
  ret
enable_exit:
  vmcall
  ret

.routine DisableInterrupts
disable:
  DATA_IN
  mov dword ptr [SHARED_enabled], 0
  pop ds
  ret

.routine GetInterruptMask
  mov eax, cs:[SHARED_enabled]
  ret

.routine SetInterruptMask
  test eax, 0x200
  jne enable
  jmp disable

.routine GetCR0
  mov eax, cs:[SHARED_cr0]
  ret
.routine GetCR2
  mov eax, cs:[SHARED_cr2]
  ret
.routine GetCR3
  mov eax, cs:[SHARED_cr3]
  ret
.routine GetCR4
  mov eax, cs:[SHARED_cr4]
  ret

.routine RDTSC
  rdtsc
  ret
.routine WBINVD
  ret
.routine IODelay
  ret
.routine SetCallbacks
  ret

# [eip][cs][eflags]...: IF goes to the shared page, all else is the CPU's. With an interrupt pending the
# hypervisor delivers it first, as if it had come on the instruction before.
.routine IRET
  push eax
  DATA_IN
  mov eax, [esp+16]
  test eax, 0x20000
  jne iret_exit
  test eax, 0x200
  je iret_off
  cmp dword ptr [SHARED_pending], 0
  jne iret_exit
  mov dword ptr [SHARED_enabled], 0x200
  jmp iret_go
iret_off:
  mov dword ptr [SHARED_enabled], 0
iret_go:
  pop ds
  pop eax
iret_native:
  iretd
iret_exit:
  pop ds
  pop eax
iret_slow:
  vmcall
  jmp iret_native
