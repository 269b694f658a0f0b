# Time, events and services.

# -> EDX:EAX ns since start: TSC * 1000000 / kHz. Uses ECX, EBX; DS flat.
.routine now
  push esi
  push edi
  rdtsc
  mov ecx, [LD_tsc_khz]
  mov ebx, eax
  mov eax, edx
  mov edx, 0
  div ecx
  mov esi, eax
  mov eax, ebx
  div ecx
  mov edi, eax
  mov eax, edx
  mov edx, 1000000
  mul edx
  div ecx
  mov ebx, eax
  mov eax, esi
  mov ecx, 1000000
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

.routine clock_ns
  pushfd
  push ebx
  push ecx
  FLAT_IN
  call now
  FLAT_OUT
  pop ecx
  pop ebx
  popfd
  retf

.routine wallclock_ns
  pushfd
  push ebx
  push ecx
  FLAT_IN
  call now
  add eax, [P_wall]
  adc edx, [P_wall+4]
  FLAT_OUT
  pop ecx
  pop ebx
  popfd
  retf

# SET_CLOCKEVENT is relative and 32 bits wide: arm for what is left, at most four seconds. DS flat.
# Uses EAX, EBX, ECX, EDX.
.routine arm_clock
  call now
  mov ecx, [P_deadline]
  mov ebx, [P_deadline+4]
  sub ecx, eax
  sbb ebx, edx
  jb arm_late
  jne arm_far
  cmp ecx, 4000000000
  ja arm_far
  cmp ecx, 0
  je arm_late
  mov ebx, ecx
  jmp arm_now
arm_far:
  mov ebx, 4000000000
  jmp arm_now
arm_late:
  mov ebx, 1
arm_now:
  mov eax, HC_set_clockevent
  HYPERCALL
  ret

.routine alarm_set
  pushfd
  push ebx
  push ecx
  push edx
  FLAT_IN
  mov [P_deadline], eax
  mov [P_deadline+4], edx
  mov dword ptr [P_armed], 1
  call arm_clock
  mov eax, 0
  FLAT_OUT
  pop edx
  pop ecx
  pop ebx
  popfd
  retf

.routine alarm_cancel
  pushfd
  push ebx
  FLAT_IN
  mov eax, HC_set_clockevent
  mov ebx, 0
  HYPERCALL
  mov eax, [P_armed]
  mov dword ptr [P_armed], 0
  FLAT_OUT
  pop ebx
  popfd
  retf

.routine event_bind
  pushfd
  cmp eax, 0
  jne event_wrong
  cmp edx, 32
  jb event_wrong
  cmp edx, 255
  ja event_wrong
  FLAT_IN
  mov [P_alarm_vector], edx
  FLAT_OUT
  popfd
  retf
event_wrong:
  mov eax, -22
  popfd
  retf
.routine event_send
  mov eax, -22
  retf
.routine event_mask
  pushfd
  cmp eax, 0
  jne event_wrong
  FLAT_IN
  or dword ptr [LD_blocked_interrupts], 1
  FLAT_OUT
  popfd
  retf
.routine event_unmask
  pushfd
  cmp eax, 0
  jne event_wrong
  FLAT_IN
  and dword ptr [LD_blocked_interrupts], 0xfffffffe
  mov eax, HC_flush_async
  HYPERCALL
  mov eax, 0
  FLAT_OUT
  popfd
  retf
.routine event_eoi
  pushfd
  cmp eax, 0
  jne event_wrong
  popfd
  retf

# NOTIFY prints a string that ends in a zero byte: the text goes through our buffer.
.routine console_write
  pushfd
  push ebx
  push ecx
  push edx
  push esi
  push edi
  push eax
  FLAT_IN
  mov esi, eax
write_more:
  cmp edx, 0
  je write_done
  mov edi, P_text
write_byte:
  mov cl, [esi]
  mov [edi], cl
  lea esi, [esi+1]
  lea edi, [edi+1]
  dec edx
  je write_flush
  cmp edi, P_text+255
  jne write_byte
write_flush:
  mov byte ptr [edi], 0
  mov ebx, [P_private]
  lea ebx, [ebx+TEXT_OFFSET]
  mov eax, HC_notify
  HYPERCALL
  jmp write_more
write_done:
  FLAT_OUT
  pop eax
  pop edi
  pop esi
  pop edx
  mov eax, edx
  pop ecx
  pop ebx
  popfd
  retf

.routine shutdown
  cmp eax, 1
  je reboot
  jb shutdown_off
  cmp eax, 3
  je shutdown_crash
  mov eax, -22
  retf
shutdown_off:
  mov ebx, cs:[P_private]
  lea ebx, [ebx+MESSAGE_OFF]
  mov ecx, 1
  mov eax, HC_shutdown
  HYPERCALL
  retf
shutdown_crash:
  mov ebx, MESSAGE_CRASH
  jmp crash
.routine reboot
  mov ebx, cs:[P_private]
  lea ebx, [ebx+MESSAGE_RESTART]
  mov ecx, 2
  mov eax, HC_shutdown
  HYPERCALL
  retf

# The end: EBX says why.
.routine crash
  add ebx, cs:[P_private]
  mov ecx, 0
  mov eax, HC_shutdown
  HYPERCALL
dead:
  jmp dead
