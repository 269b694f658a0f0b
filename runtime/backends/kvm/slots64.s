# The ABI on KVM, x86_64: as slots32.s, with RIP-relative addresses.

.slot clock_ns
  pushfq
  push rbx
  push rcx
  push rdx
  push rsi
  lea rsi, [rip+time_info]
  cmp dword ptr [rsi], 0
  jne again
  mov ecx, MSR_SYSTEM_TIME
  mov eax, [rsi+SELF_PHYS-time_info]
  lea eax, [rax+time_info+1]
  mov edx, 0
  wrmsr
again:
  mov ebx, [rsi+VERSION]
  rdtsc
  shl rdx, 32
  or rax, rdx
  sub rax, [rsi+TSC_TIMESTAMP]
  mov cl, [rsi+TSC_SHIFT]
  test cl, cl
  js right
  shl rax, cl
  jmp scale
right:
  neg cl
  shr rax, cl
scale:
  mov edx, [rsi+TSC_MUL]
  mul rdx
  shrd rax, rdx, 32
  add rax, [rsi+SYSTEM_TIME]
  test bl, 1
  jne again
  cmp ebx, [rsi+VERSION]
  jne again
  pop rsi
  pop rdx
  pop rcx
  pop rbx
  popfq
  ret

.slot wallclock_ns
  pushfq
  push rbx
  push rcx
  push rdx
  push rsi
  lea rsi, [rip+wall_clock]
  cmp dword ptr [rsi], 0
  jne known
  mov ecx, MSR_WALL_CLOCK
  mov eax, [rsi+SELF_PHYS-wall_clock]
  lea eax, [rax+wall_clock]
  mov edx, 0
  wrmsr
known:
  call call_clock_ns
  mov ebx, [rsi+WALL_SEC]
  mov edx, 1000000000
  imul rbx, rdx
  add rax, rbx
  mov ebx, [rsi+WALL_NSEC]
  add rax, rbx
  pop rsi
  pop rdx
  pop rcx
  pop rbx
  popfq
  ret

.slot stolen_ns
  pushfq
  push rbx
  push rcx
  push rdx
  push rsi
  lea rsi, [rip+steal_time]
  mov ebx, [rsi+SELF_PHYS-steal_time]
  lea rbx, [rbx+steal_time+63]
  mov rcx, rbx
  and rcx, 63
  sub rsi, rcx
  lea rsi, [rsi+63]
  sub rbx, rcx
  cmp dword ptr [rsi+STEAL_VERSION], 0
  jne known
  mov ecx, MSR_STEAL_TIME
  lea rax, [rbx+1]
  mov edx, 0
  wrmsr
known:
  mov ebx, [rsi+STEAL_VERSION]
  mov rax, [rsi]
  test bl, 1
  jne known
  cmp ebx, [rsi+STEAL_VERSION]
  jne known
  pop rsi
  pop rdx
  pop rcx
  pop rbx
  popfq
  ret

.routine time_info
  .long 0, 0, 0, 0, 0, 0, 0, 0
.routine wall_clock
  .long 0, 0, 0
.routine steal_time
  .rept 32
  .long 0
  .endr
