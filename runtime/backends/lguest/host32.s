# What the shared files leave to the backend: lguest's time, services, interrupts and page tables.

# Tell the host which tables to use: the guest's, or ours that map everything to itself. Uses EAX, EBX.
.routine switch_tables
  test dword ptr [V_cr0], 0x80000000
  je tables_off
  mov eax, [V_cr4]
  mov cr4, eax
  mov ebx, [V_cr3]
  mov eax, HC_new_pgtable
  HYPERCALL
  ret
tables_off:
  mov eax, [V_cr4]
  and eax, 0xffffffdf
  mov cr4, eax
  mov ebx, [P_identity]
  mov eax, HC_new_pgtable
  HYPERCALL
  ret

.routine safe_send
  push eax
  mov eax, HC_send_interrupts
  HYPERCALL
safe_point:
  pop eax
  jmp fault_iret

# An interrupt of the host's: 0 is the alarm, 1 the pair of 8259s, which say which line it is.
.routine host_interrupt
  cmp ebx, 32
  je alarm_interrupt
  mov al, 0x0c
  out 0x20, al
  in al, 0x20
  test al, 0x80
  je resume
  and eax, 7
  cmp eax, 2
  je slave_interrupt
  mov ebx, [P_pic_base]
  add ebx, eax
  jmp interrupt_known
slave_interrupt:
  mov al, 0x0c
  out 0xa0, al
  in al, 0xa0
  test al, 0x80
  je resume
  and eax, 7
  mov ebx, [P_pic_base+4]
  add ebx, eax
  jmp interrupt_known

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
