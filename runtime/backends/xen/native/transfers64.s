# Far transfers, INT n, IRET and the fast returns; and faults that the ABI's own checks raise.

# Mask events and keep the guest's registers in S_*. Called; the guest's stack is as it was afterwards.
.routine seize
  push rax
  pushfq
  pop rax
  and eax, 0xffffcdff
  or eax, [rip+V_iopl]
  cmp byte ptr [rip+I_mask], 0
  mov byte ptr [rip+I_mask], 1
  jne seize_masked
  or eax, 0x200
seize_masked:
  mov [rip+S_flags], rax
  pop qword ptr [rip+S_rax]
  mov [rip+S_rcx], rcx
  mov [rip+S_rdx], rdx
  mov [rip+S_rsi], rsi
  mov [rip+S_rdi], rdi
  mov [rip+S_r10], r10
  mov [rip+S_r11], r11
  mov dword ptr [rip+S_nested], 0
  mov dword ptr [rip+S_user], 0
  mov eax, [rip+V_segments+4]
  mov [rip+S_cs], rax
  mov eax, [rip+V_segments+8]
  mov [rip+S_ss], rax
  ret

# A fault of a call: P_raise_* say which; the registers and the stack are the guest's at the call.
.routine raise
  call seize
  cmp dword ptr [rip+P_raise_mask], 0
  jne raise_now
  or dword ptr [rip+S_flags], 0x200
raise_now:
  mov [rip+S_rsp], rsp
  mov rax, [rip+P_raise_rip]
  mov [rip+S_rip], rax
  mov rax, [rip+P_raise_vector]
  mov [rip+S_vector], rax
  mov rax, [rip+P_raise_error]
  mov [rip+S_error], rax
  jmp have_frame

# After `seize`: EAX the selector that was refused, RCX the routine. The stack is the guest's at the call.
.routine refuse
  mov [rip+S_rsp], rsp
  mov [rip+S_rip], rcx
  and eax, 0xfffc
  mov [rip+S_error], rax
  mov qword ptr [rip+S_vector], 0x10d
  jmp have_frame

# [ret][vector]
.routine soft_int
  call seize
  pop qword ptr [rip+S_rip]
  pop rax
  movzx eax, al
  mov r10d, eax
  or eax, 0x1000
  mov [rip+S_vector], rax
  mov [rip+S_rsp], rsp
  test dword ptr [rip+V_efer], 0x400
  je trap_narrow
  jmp dispatch

# [rip][cs][flags][rsp][ss]
.routine iret
  call seize
  mov eax, [rsp+8]
  call code_descriptor
  jne iret_refused
  mov eax, [rsp+8]
  mov edx, [rsp+16]
  mov [rip+S_flags], rdx
  mov edi, edx
  and edx, 0x3000
  mov [rip+V_iopl], edx
  mov rdx, [rsp]
  mov [rip+S_rip], rdx
  mov rdx, [rsp+24]
  mov [rip+S_rsp], rdx
  mov edx, [rsp+32]
  movzx edx, dx
  jmp transfer
iret_refused:
  mov eax, [rsp+8]
  lea rcx, [rip+iret]
  jmp refuse

# EAX code selector, RCX its descriptor, EDX stack selector: the rest is in S_*.
.routine transfer
  movzx eax, ax
  mov [rip+S_cs], rax
  mov [rip+S_ss], rdx
  test al, 3
  jne transfer_user
  mov [rip+V_segments+4], eax
  mov [rip+V_segments+8], edx
  bt rcx, 53
  jb transfer_flat
  call descriptor_base
  test rdx, rdx
  jne segment_base
transfer_flat:
  shr rcx, 53
  and ecx, 1
  mov [rip+P_code_long], ecx
  jmp leave
transfer_user:
  mov dword ptr [rip+S_user], 1
  jmp leave

# [offset][selector]
.routine far_jump
  call seize
  mov eax, [rsp+8]
  call code_descriptor
  jne far_jump_refused
  and eax, 0xfffc
  mov rdx, [rsp]
  mov [rip+S_rip], rdx
  lea rdx, [rsp+16]
  mov [rip+S_rsp], rdx
  mov edx, [rip+S_ss]
  jmp transfer
far_jump_refused:
  mov eax, [rsp+8]
  lea rcx, [rip+far_jump]
  jmp refuse

# [offset][selector], and to privilege 3 [rsp][ss]
.routine far_return
  call seize
  mov eax, [rsp+8]
  call code_descriptor
  jne far_return_refused
  mov rdx, [rsp]
  mov [rip+S_rip], rdx
  lea rdx, [rsp+16]
  mov [rip+S_rsp], rdx
  mov edx, [rip+S_ss]
  test al, 3
  je transfer
  mov rdx, [rsp+16]
  mov [rip+S_rsp], rdx
  movzx edx, word ptr [rsp+24]
  jmp transfer
far_return_refused:
  mov eax, [rsp+8]
  lea rcx, [rip+far_return]
  jmp refuse

# [ret][offset][selector] -> [ret][cs] for the callee
.routine far_call
  call seize
  mov eax, [rsp+16]
  call code_descriptor
  jne far_call_refused
  and eax, 0xfffc
  mov rdx, [rsp+8]
  mov [rip+S_rip], rdx
  mov rdx, [rsp]
  mov [rsp+8], rdx
  mov rdx, [rip+S_cs]
  mov [rsp+16], rdx
  lea rdx, [rsp+8]
  mov [rip+S_rsp], rdx
  mov edx, [rip+S_ss]
  jmp transfer
far_call_refused:
  mov eax, [rsp+16]
  lea rcx, [rip+far_call]
  jmp refuse

# The same from 32-bit code, which has come by a far call: [eip][cs] of four bytes each lie above.
.routine far_jump32
  lea esp, [rsp+8]
  call seize
  mov eax, [rsp+4]
  call code_descriptor
  jne far_jump32_refused
  and eax, 0xfffc
  mov edx, [rsp]
  mov [rip+S_rip], rdx
  lea rdx, [rsp+8]
  mov [rip+S_rsp], rdx
  mov edx, [rip+S_ss]
  jmp transfer
far_jump32_refused:
  mov eax, [rsp+4]
  lea rcx, [rip+far_jump]
  jmp refuse
# [eip][cs][ret][offset][selector]
.routine far_call32
  lea esp, [rsp+8]
  call seize
  mov eax, [rsp+8]
  call code_descriptor
  jne far_call32_refused
  and eax, 0xfffc
  mov edx, [rsp+4]
  mov [rip+S_rip], rdx
  mov edx, [rsp]
  mov [rsp+4], edx
  mov edx, [rip+S_cs]
  mov [rsp+8], edx
  lea rdx, [rsp+4]
  mov [rip+S_rsp], rdx
  mov edx, [rip+S_ss]
  jmp transfer
far_call32_refused:
  mov eax, [rsp+8]
  lea rcx, [rip+far_call]
  jmp refuse

# -- the fast returns: the stack is the user's already, so ours is used --

.routine sysret
  mov byte ptr [rip+I_mask], 1
  mov [rip+P_user_rsp], rsp
  lea rsp, [rip+STACK_TOP]
  call seize
  mov [rip+S_rip], rcx
  mov eax, [rip+P_star+6]
  movzx eax, ax
  lea edx, [rax+16]
fast_flags:
  mov ecx, r11d
  and ecx, 0x3c7fd7
  mov [rip+S_flags], rcx
  and ecx, 0x3000
  mov [rip+V_iopl], ecx
  lea ecx, [rax+8]
  mov rax, [rip+P_user_rsp]
  mov [rip+S_rsp], rax
fast_leave:
  or edx, 3
  or ecx, 3
  mov [rip+S_cs], rdx
  mov [rip+S_ss], rcx
  mov dword ptr [rip+S_user], 1
  jmp leave
.routine sysret_compat
  mov byte ptr [rip+I_mask], 1
  mov [rip+P_user_rsp], rsp
  lea rsp, [rip+STACK_TOP]
  call seize
  mov ecx, ecx
  mov [rip+S_rip], rcx
  mov eax, [rip+P_star+6]
  movzx eax, ax
  mov edx, eax
  jmp fast_flags
.routine sysexit64
  mov [rip+P_user_rsp], rsp
  lea rsp, [rip+STACK_TOP]
  call seize
  mov [rip+S_rip], rdx
  mov [rip+S_rsp], rcx
  mov eax, [rip+P_sysenter_cs]
  lea edx, [rax+32]
  lea ecx, [rax+40]
  jmp fast_leave
.routine sysexit
  mov [rip+P_user_rsp], rsp
  lea rsp, [rip+STACK_TOP]
  call seize
  mov edx, edx
  mov ecx, ecx
  mov [rip+S_rip], rdx
  mov [rip+S_rsp], rcx
  mov eax, [rip+P_sysenter_cs]
  lea edx, [rax+16]
  lea ecx, [rax+24]
  jmp fast_leave

# The first instructions on a fresh domain: Xen enters here with the registers that the boot protocol promised.
.routine boot
  mov [rip+S_rax], rax
  mov [rip+S_rcx], rcx
  mov [rip+S_rdx], rdx
  mov [rip+S_rsi], rsi
  mov [rip+S_rdi], rdi
  mov [rip+S_rsp], rsp
  lea rsp, [rip+STACK_TOP]
  mov eax, HC_set_trap_table
  lea rdi, [rip+TRAPS]
  syscall
  mov eax, HC_set_callbacks
  lea rdi, [rip+event_stub]
  lea rsi, [rip+failsafe]
  lea rdx, [rip+syscall_stub]
  syscall
  mov eax, HC_stack_switch
  mov edi, FLAT_DATA
  lea rsi, [rip+STACK_TOP]
  syscall
  mov eax, HC_set_gdt
  lea rdi, [rip+P_gdt_frame]
  mov esi, 512
  syscall
  mov eax, HC_event_channel_op
  mov edi, EVENT_bind_virq
  lea rsi, [rip+P_bind_timer]
  syscall
  mov eax, [rip+P_bind_timer+8]
  mov [rip+P_timer_port], eax
  lea rax, [rip+system_enter]
  mov [rip+P_sysenter_callback+8], rax
  call load_base
  mov rdx, [rip+P_entry]
  mov [rip+S_rip], rdx
  mov qword ptr [rip+S_flags], 2
  jmp leave

# The upcall and the system call, each with its kind above Xen's frame.
.routine event_stub
  push 0x200
  jmp common
.routine syscall_stub
  push 0x800
  jmp common
