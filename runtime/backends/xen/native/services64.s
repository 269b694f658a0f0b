# Time, events, the console, and the end.

# -> RAX ns since start. RCX, RDX are lost.
.routine now
  push rsi
now_again:
  mov esi, [rip+I_time_version]
  rdtsc
  shl rdx, 32
  or rax, rdx
  sub rax, [rip+I_time_tsc]
  mov ecx, [rip+I_time_shift]
  test cl, cl
  js now_right
  shl rax, cl
  jmp now_scale
now_right:
  neg cl
  shr rax, cl
now_scale:
  mov edx, [rip+I_time_mul]
  mul rdx
  shrd rax, rdx, 32
  add rax, [rip+I_time_ns]
  test esi, 1
  jne now_again
  cmp esi, [rip+I_time_version]
  jne now_again
  pop rsi
  ret

.routine clock_ns
  pushfq
  push rcx
  push rdx
  call now
  pop rdx
  pop rcx
  popfq
  ret
.routine wallclock_ns
  pushfq
  push rcx
  push rdx
  call now
  mov ecx, [rip+E_wc_sec_hi]
  shl rcx, 32
  mov edx, [rip+E_wc_sec]
  or rcx, rdx
  mov edx, 1000000000
  imul rcx, rdx
  add rax, rcx
  mov ecx, [rip+E_wc_nsec]
  add rax, rcx
  pop rdx
  pop rcx
  popfq
  ret

.routine alarm_set
  pushfq
  SAVE
  mov [rip+P_deadline], rax
  mov dword ptr [rip+P_armed], 1
  mov rdi, rax
  mov eax, HC_set_timer_op
  syscall
  RESTORE
  mov eax, 0
  popfq
  ret
.routine alarm_cancel
  pushfq
  SAVE
  mov edi, 0
  mov eax, HC_set_timer_op
  syscall
  RESTORE
  mov eax, [rip+P_armed]
  mov dword ptr [rip+P_armed], 0
  popfq
  ret

.routine event_bind
  pushfq
  cmp eax, 0
  jne event_wrong
  cmp edx, 32
  jb event_wrong
  cmp edx, 255
  ja event_wrong
  mov [rip+P_alarm_vector], edx
  popfq
  ret
event_wrong:
  mov rax, -22
  popfq
  ret
.routine event_send
  mov rax, -22
  ret
.routine event_mask
  pushfq
  cmp eax, 0
  jne event_wrong
  mov dword ptr [rip+P_alarm_masked], 1
  popfq
  ret
.routine event_unmask
  pushfq
  cmp eax, 0
  jne event_wrong
  mov dword ptr [rip+P_alarm_masked], 0
  cmp dword ptr [rip+P_alarm_held], 0
  je unmask_none
  push rdi
  push rcx
  push r11
  mov dword ptr [rip+P_alarm_held], 0
  mov rdi, [rip+P_deadline]
  mov eax, HC_set_timer_op
  syscall
  pop r11
  pop rcx
  pop rdi
unmask_none:
  mov eax, 0
  popfq
  ret
.routine event_eoi
  pushfq
  cmp eax, 0
  jne event_wrong
  popfq
  ret

# Through the console ring; the back end takes everything that it is told of.
.routine console_write
  pushfq
  SAVE
  mov rsi, rax
  mov rdi, rdx
write_more:
  test rdi, rdi
  je write_done
  lea rcx, [rip+CONSOLE]
  mov edx, [rcx+RING_out_prod]
write_byte:
  mov r10d, edx
  and r10d, 2047
  mov al, [rsi]
  mov [rcx+r10+1024], al
  inc rsi
  inc edx
  dec rdi
  je write_flush
  mov eax, edx
  sub eax, [rcx+RING_out_cons]
  cmp eax, 2048
  jb write_byte
write_flush:
  mov [rcx+RING_out_prod], edx
  push rsi
  push rdi
  mov eax, HC_event_channel_op
  mov edi, EVENT_send
  lea rsi, [rip+P_console_port]
  syscall
  pop rdi
  pop rsi
  jmp write_more
write_done:
  RESTORE
  mov rax, rdx
  popfq
  ret
.routine console_read
  mov eax, 0
  ret

.routine shutdown
  cmp eax, 1
  je reboot
  mov [rip+P_reason], eax
end_now:
  mov eax, HC_sched_op
  mov edi, SCHED_shutdown
  lea rsi, [rip+P_reason]
  syscall
  jmp end_now
.routine reboot
  mov dword ptr [rip+P_reason], 1
  jmp end_now

# The end: RDI says why, a text that ends in a zero byte.
.routine crash
  mov edx, 0
crash_length:
  cmp byte ptr [rdi+rdx], 0
  je crash_say
  inc rdx
  jmp crash_length
crash_say:
  mov rax, rdi
  call console_write
  mov dword ptr [rip+P_reason], 3
  jmp end_now
