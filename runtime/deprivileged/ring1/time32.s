# Time, events and services.

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

.routine event_eoi
  pushfd
  cmp eax, 0
  jne event_wrong
  popfd
  retf
