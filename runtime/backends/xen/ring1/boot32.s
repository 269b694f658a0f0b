# The first instructions of the domain.

# Entered with the registers that the boot protocol promised the guest.
.routine boot
  mov [B_eax], eax
  mov [B_ecx], ecx
  mov [B_edx], edx
  mov [B_ebx], ebx
  mov [B_esp], esp
  mov [B_esi], esi
  mov esp, STACK_TOP
  mov ebx, FLAT_DS
  mov ecx, STACK_TOP
  mov eax, HC_stack_switch
  HYPERCALL
  mov ebx, FLAT_CS
  mov ecx, upcall
  mov edx, FLAT_CS
  mov esi, failsafe
  mov eax, HC_set_callbacks
  HYPERCALL
  mov ebx, 0
boot_gate:
  push ebx
  mov ecx, ebx
  shl ecx, 4
  lea ecx, [ecx+STUBS]
  mov edx, ecx
  and ecx, 0xffff
  and edx, 0xffff0000
  or edx, 0xaf00
  cmp ebx, 3
  jb boot_gate_load
  cmp ebx, 4
  ja boot_gate_load
  or edx, 0x6000
boot_gate_load:
  LOAD_GATE
  pop ebx
  inc ebx
  cmp ebx, 256
  jne boot_gate
  mov dword ptr [P_argument], 1
  mov ebx, PHYSDEV_set_iopl
  mov ecx, P_argument
  mov eax, HC_physdev_op
  HYPERCALL
  mov dword ptr [P_argument], VIRQ_timer
  mov dword ptr [P_argument+4], 0
  mov ebx, EVENT_bind_virq
  call bind
  mov [P_alarm_port], ecx
  mov [P_alarm_bit], eax
  mov dword ptr [P_argument], CONTROLLER_PIRQ
  mov dword ptr [P_argument+4], 0
  mov ebx, EVENT_bind_pirq
  call bind
  mov [P_pic_bit], eax
  or eax, [P_alarm_bit]
  mov [P_interest], eax
  not eax
  mov [XS_evtchn_mask], eax
  mov eax, [XS_wc_sec]
  mov edx, 1000000000
  mul edx
  add eax, [XS_wc_nsec]
  adc edx, 0
  mov [P_wall], eax
  mov [P_wall+4], edx
  mov byte ptr [XV_upcall_mask], 0
  mov eax, [B_eax]
  mov ecx, [B_ecx]
  mov edx, [B_edx]
  mov ebx, [B_ebx]
  mov esi, [B_esi]
  mov esp, [B_esp]
  jmp dword ptr [B_entry]

# EBX the command, P_argument its structure with the port last -> ECX port, EAX its bit.
.routine bind
  mov ecx, P_argument
  mov eax, HC_event_channel_op
  HYPERCALL
  mov ecx, [P_argument+8]
  mov eax, 1
  shl eax, cl
  ret

# Xen could not load a segment of a context that it was to return to: this code never asks it to.
.routine failsafe
  mov ebx, MESSAGE_INSIDE
  jmp crash
