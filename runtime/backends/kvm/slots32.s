# The ABI on KVM, i386. A KVM guest runs at privilege 0, so most calls are the architecture's own
# instruction (the bare page's code, which backend.py puts in for every slot not named here). What
# KVM adds is time: its shared structures lie in this page, are registered by the first call that
# wants them (one WRMSR exit), and are read with no exit from then on. They are reached through CS,
# since the page's place and the guest's data segments are unknown.

.slot clock_ns
  pushfd
  push ebx
  push ecx
  push esi
  push edi
  call here
here:
  pop esi
  lea esi, [esi+time_info-here]
  cmp dword ptr cs:[esi], 0
  jne again
  mov ecx, MSR_SYSTEM_TIME
  mov eax, cs:[esi+SELF_PHYS-time_info]
  lea eax, [eax+time_info+1]
  mov edx, 0
  wrmsr
again:
  mov ebx, cs:[esi+VERSION]
  rdtsc
  sub eax, cs:[esi+TSC_TIMESTAMP]
  sbb edx, cs:[esi+TSC_TIMESTAMP+4]
  mov cl, cs:[esi+TSC_SHIFT]
  test cl, cl
  js right
  shld edx, eax, cl
  shl eax, cl
  jmp scale
right:
  neg cl
  shrd eax, edx, cl
  shr edx, cl
scale:
  mov edi, edx
  mul dword ptr cs:[esi+TSC_MUL]
  mov ecx, edx
  mov eax, edi
  mul dword ptr cs:[esi+TSC_MUL]
  add eax, ecx
  adc edx, 0
  add eax, cs:[esi+SYSTEM_TIME]
  adc edx, cs:[esi+SYSTEM_TIME+4]
  test bl, 1
  jne again
  cmp ebx, cs:[esi+VERSION]
  jne again
  pop edi
  pop esi
  pop ecx
  pop ebx
  popfd
  ret

.slot wallclock_ns
  pushfd
  push ebx
  push ecx
  push esi
  call here
here:
  pop esi
  lea esi, [esi+wall_clock-here]
  cmp dword ptr cs:[esi], 0
  jne known
  mov ecx, MSR_WALL_CLOCK
  mov eax, cs:[esi+SELF_PHYS-wall_clock]
  lea eax, [eax+wall_clock]
  mov edx, 0
  wrmsr
known:
  call call_clock_ns
  mov ebx, eax
  mov ecx, edx
  mov eax, cs:[esi+WALL_SEC]
  mov edx, 1000000000
  mul edx
  add eax, cs:[esi+WALL_NSEC]
  adc edx, 0
  add eax, ebx
  adc edx, ecx
  pop esi
  pop ecx
  pop ebx
  popfd
  ret

.slot stolen_ns
  pushfd
  push ebx
  push ecx
  push esi
  call here
here:
  pop esi
  lea esi, [esi+steal_time-here]
  mov ebx, cs:[esi+SELF_PHYS-steal_time]
  lea ebx, [ebx+steal_time+63]
  mov ecx, ebx
  and ecx, 63
  sub esi, ecx
  lea esi, [esi+63]
  sub ebx, ecx
  cmp dword ptr cs:[esi+STEAL_VERSION], 0
  jne known
  mov ecx, MSR_STEAL_TIME
  lea eax, [ebx+1]
  mov edx, 0
  wrmsr
known:
  mov ebx, cs:[esi+STEAL_VERSION]
  mov eax, cs:[esi]
  mov edx, cs:[esi+4]
  test bl, 1
  jne known
  cmp ebx, cs:[esi+STEAL_VERSION]
  jne known
  pop esi
  pop ecx
  pop ebx
  popfd
  ret

.routine time_info
  .long 0, 0, 0, 0, 0, 0, 0, 0
.routine wall_clock
  .long 0, 0, 0
.routine steal_time
  .rept 32
  .long 0
  .endr
