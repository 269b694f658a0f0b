# What the shared files leave to the backend: VMI's time in cycles, its services, interrupts and page tables.

# Tell the hypervisor which tables to use: the guest's, or ours that map everything to itself. The format and
# the root change one after the other, so meanwhile the stack is ours. Uses EAX, EBX, ECX.
.routine switch_tables
  mov [P_edx], edx
  mov [P_stack], esp
  mov eax, ss
  mov [P_stack+4], eax
  mov eax, FLAT_DS
  mov ss, eax
  mov esp, STACK_TOP
  mov eax, [V_cr4]
  mov ebx, [V_cr3]
  test dword ptr [V_cr0], 0x80000000
  jne tables_on
  and eax, 0xffffffdf
  mov ebx, [P_identity]
tables_on:
  call dword ptr cs:[VMI_SetCR4]
  mov eax, ebx
  call dword ptr cs:[VMI_SetCR3]
  .byte 0x0f, 0xb2, 0x25
  .long P_stack
  mov edx, [P_edx]
  ret

.routine flush_all
  push eax
  push ecx
  push edx
  mov eax, 3
  call dword ptr cs:[VMI_FlushTLB]
  pop edx
  pop ecx
  pop eax
  ret

# ------------------------------------------------------------------ descriptors and gates
.routine load_descriptor
  push edx
  mov edx, ebx
  mov eax, GDT
  call dword ptr cs:[VMI_WriteGDTEntry]
  pop edx
  ret

# Vectors of our own stay closed to user mode.
.routine load_gate
  cmp ebx, ALARM_VECTOR
  jb load_gate_now
  cmp ebx, LAST_OWN_VECTOR
  jbe load_gate_out
load_gate_now:
  push edx
  mov edx, ebx
  mov eax, IDT
  call dword ptr cs:[VMI_WriteIDTEntry]
  pop edx
load_gate_out:
  ret

# ------------------------------------------------------------------ the interrupt flag
.routine or_flag
  push eax
  call dword ptr cs:[VMI_GetInterruptMask]
  and eax, 0x200
  or eax, [P_unwound]
  or dword ptr [esp], eax
  mov dword ptr [P_unwound], 0
  pop eax
  ret

# An IRET has failed after it set the flag: the flag was EAX.
.routine flag_back
  mov [P_unwound], eax
  test eax, 0x200
  jne flag_was_on
  call dword ptr cs:[VMI_DisableInterrupts]
flag_was_on:
  ret

.routine safe_send
  push eax
  call dword ptr cs:[VMI_EnableInterrupts]
safe_point:
  pop eax
  jmp fault_iret

.routine at_halt_point
  pop dword ptr [S_edx]
  pop dword ptr [S_ecx]
  pop dword ptr [S_eax]
at_enabled_point:
  pop dword ptr [S_flags]
  pop dword ptr [S_eip]
  pop dword ptr [S_cs]
  jmp have_frame

# ------------------------------------------------------------------ interrupts
# The real bases of the 8259s are ours, so that a vector says for certain what it is; the guest's are kept.
# [ecx][eax][ds][flags] of out8; EAX base, ECX 0 or 4.
.routine keep_pic_base
  mov [ecx+P_pic_base], eax
  lea eax, [ecx*2+PIC_VECTORS]
  out dx, al
  pop ecx
  pop eax
  FLAT_OUT
  popfd
  retf

.routine host_interrupt
  cmp ebx, ALARM_VECTOR
  je own_alarm
  lea ebx, [ebx-PIC_VECTORS]
  cmp ebx, 8
  jae second_chip
  add ebx, [P_pic_base]
  jmp interrupt_known
second_chip:
  lea ebx, [ebx-8]
  add ebx, [P_pic_base+4]
  jmp interrupt_known
own_alarm:
  cmp dword ptr [P_masked], 0
  je alarm_interrupt
  mov dword ptr [P_late], 1
  jmp resume

# VMI gives user code SYSENTER, to a kernel that sets its registers up; ours was told by CPUID that there is
# none, so it gets the #UD of a CPU without it in place of #GP(0).
.routine plain_fault
  cmp dword ptr [S_user], 0
  je dispatch
  cmp ebx, 13
  jne dispatch
  movzx eax, word ptr [S_cs]
  call find_descriptor
  jne dispatch
  call descriptor_base
  mov eax, [S_eip]
  cmp word ptr [esi+eax], 0x340f
  jne dispatch
  mov dword ptr [S_vector], 6
  mov ebx, 6
  jmp dispatch

# ------------------------------------------------------------------ time
# -> EDX:EAX ns since start. Cycles become whole seconds and a rest, so that nothing is ever accumulated:
# the error is below one cycle and one nanosecond at any time. Uses ECX, EBX; DS flat.
.routine now
  mov eax, 0
counter_ns:
  push esi
  push edi
  call dword ptr cs:[VMI_GetCycleCounter]
  mov ecx, [P_frequency]
  mov ebx, eax
  mov eax, edx
  mov edx, 0
  div ecx
  mov esi, eax
  mov eax, ebx
  div ecx
  mov edi, eax
  mov eax, edx
  mov edx, 1000000000
  mul edx
  div ecx
  mov ebx, eax
  mov eax, esi
  mov ecx, 1000000000
  mul ecx
  mov esi, eax
  mov eax, edi
  mul ecx
  add edx, esi
  add eax, ebx
  adc edx, 0
  pop edi
  pop esi
  ret

.routine stolen_ns
  pushfd
  push ebx
  push ecx
  FLAT_IN
  mov eax, 2
  call counter_ns
  FLAT_OUT
  pop ecx
  pop ebx
  popfd
  retf

.routine wallclock_ns
  pushfd
  push ecx
  call dword ptr cs:[VMI_GetWallclockTime]
  pop ecx
  popfd
  retf

# SetAlarm takes cycles: the first count that is not before the deadline, so never early and less than one
# cycle late. What does not fit in 64 bits never comes. DS flat. Uses EAX, EBX, ECX, EDX.
.routine arm_clock
  push esi
  push edi
  mov ecx, 1000000000
  mov eax, [P_deadline+4]
  mov edx, 0
  div ecx
  mov esi, eax
  mov eax, [P_deadline]
  div ecx
  mov edi, eax
  mov eax, edx
  mul dword ptr [P_frequency]
  add eax, 999999999
  adc edx, 0
  div ecx
  mov ebx, eax
  mov eax, edi
  mul dword ptr [P_frequency]
  add ebx, eax
  adc edx, 0
  mov ecx, edx
  mov eax, esi
  mul dword ptr [P_frequency]
  cmp edx, 0
  jne alarm_never
  add ecx, eax
  jae alarm_known
alarm_never:
  mov ebx, -1
  mov ecx, -1
alarm_known:
  mov edx, ebx
  push 0
  push 0
  mov eax, ALARM_FLAGS
  call dword ptr cs:[VMI_SetAlarm]
  lea esp, [esp+8]
  pop edi
  pop esi
  ret

.routine alarm_cancel
  pushfd
  push ecx
  push edx
  FLAT_IN
  mov eax, 0
  call dword ptr cs:[VMI_CancelAlarm]
  mov eax, [P_armed]
  mov dword ptr [P_armed], 0
  mov dword ptr [P_late], 0
  FLAT_OUT
  pop edx
  pop ecx
  popfd
  retf

.routine event_mask
  pushfd
  cmp eax, 0
  jne event_wrong
  FLAT_IN
  mov dword ptr [P_masked], 1
  FLAT_OUT
  popfd
  retf

# An alarm that came meanwhile is set again; its time is past, so it comes at once.
.routine event_unmask
  pushfd
  cmp eax, 0
  jne event_wrong
  push ebx
  push ecx
  push edx
  FLAT_IN
  mov dword ptr [P_masked], 0
  cmp dword ptr [P_late], 0
  je unmask_out
  mov dword ptr [P_late], 0
  call arm_clock
unmask_out:
  mov eax, 0
  FLAT_OUT
  pop edx
  pop ecx
  pop ebx
  popfd
  retf

# ------------------------------------------------------------------ services
# VMI has no console: the first serial line is the console.
.routine console_write
  pushfd
  push edx
  push esi
  push edi
  FLAT_IN
  mov esi, eax
  mov edi, edx
write_byte:
  cmp edi, 0
  je write_done
  mov edx, 0x3fd
write_wait:
  in al, dx
  test al, 0x20
  je write_wait
  mov al, [esi]
  mov edx, 0x3f8
  out dx, al
  inc esi
  dec edi
  jmp write_byte
write_done:
  FLAT_OUT
  pop edi
  pop esi
  pop edx
  mov eax, edx
  popfd
  retf

.routine shutdown
  cmp eax, 1
  je reboot
  jb shutdown_off
  cmp eax, 3
  je crash
  mov eax, -22
  retf
shutdown_off:
  call dword ptr cs:[VMI_Shutdown]
  retf
.routine reboot
  mov eax, 1
  call dword ptr cs:[VMI_Reboot]
  retf

# The end of a guest whose traps cannot be delivered: no gates, and one more trap.
.routine crash
  mov eax, P_no_gates
  call dword ptr cs:[VMI_SetIDT]
  ud2
