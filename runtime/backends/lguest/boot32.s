# The first instructions on a fresh machine.

# The host enters here with the registers that the boot protocol promised the guest.
.routine boot
  mov [B_eax], eax
  mov [B_ecx], ecx
  mov [B_edx], edx
  mov [B_ebx], ebx
  mov [B_esp], esp
  mov [B_esi], esi
  mov esp, STACK_TOP
  mov dword ptr [LD_noirq_start], HOLE
  mov dword ptr [LD_noirq_end], quiet_end
  mov eax, HC_lguest_init
  mov ebx, [P_lguest_data]
  HYPERCALL
  mov eax, HC_new_pgtable
  mov ebx, [P_identity]
  HYPERCALL
  mov eax, HC_set_stack
  mov ebx, FLAT_DS
  mov ecx, STACK_TOP
  mov edx, 1
  HYPERCALL
  mov ebx, 0
boot_gate:
  mov ecx, ebx
  shl ecx, 4
  lea ecx, [ecx+STUBS]
  mov edx, ecx
  and ecx, 0xffff
  or ecx, GATE_SELECTOR
  and edx, 0xffff0000
  or edx, 0xaf00
  cmp ebx, 3
  jb boot_gate_load
  cmp ebx, 4
  ja boot_gate_load
  or edx, 0x6000
boot_gate_load:
  mov eax, HC_load_idt_entry
  HYPERCALL
  inc ebx
  cmp ebx, 256
  jne boot_gate
  call now
  mov ecx, eax
  mov ebx, edx
  mov eax, [LD_time_sec]
  mov edx, 1000000000
  mul edx
  add eax, [LD_time_nsec]
  adc edx, 0
  sub eax, ecx
  sbb edx, ebx
  mov [P_wall], eax
  mov [P_wall+4], edx
  mov eax, [B_eax]
  mov ecx, [B_ecx]
  mov edx, [B_edx]
  mov ebx, [B_ebx]
  mov esi, [B_esi]
  mov esp, [B_esp]
  jmp dword ptr [B_entry]
