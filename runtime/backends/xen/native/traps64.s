# Traps: from Xen's frame to the one the hardware would have pushed, and to the guest's handler.

# Every entry of the trap table leads here with [vector | kind] above Xen's frame: RCX, R11, [error], RIP, CS,
# RFLAGS, RSP, SS. kind: 0x100 there is an error code, 0x200 an event of Xen's, 0x400 an interrupt of the
# guest's, 0x800 a system call. Events are masked from here on; R10 holds the vector.
.routine common
  pop qword ptr [rip+S_vector]
  pop qword ptr [rip+S_rcx]
  pop qword ptr [rip+S_r11]
  mov [rip+S_rax], rax
  mov [rip+S_rdx], rdx
  mov [rip+S_rsi], rsi
  mov [rip+S_rdi], rdi
  mov [rip+S_r10], r10
  test dword ptr [rip+S_vector], 0x100
  je no_error
  pop qword ptr [rip+S_error]
no_error:
  pop qword ptr [rip+S_rip]
  pop qword ptr [rip+S_cs]
  pop qword ptr [rip+S_flags]
  pop qword ptr [rip+S_rsp]
  pop qword ptr [rip+S_ss]
  mov dword ptr [rip+S_nested], 0
  mov dword ptr [rip+S_user], 0
  mov eax, [rip+S_flags]
  and eax, 0xffffcfff
  or eax, [rip+V_iopl]
  mov [rip+S_flags], rax
  movzx eax, word ptr [rip+S_cs]
  mov [rip+S_cs], rax
  test al, 3
  je from_kernel
  mov dword ptr [rip+S_user], 1
  movzx eax, word ptr [rip+S_ss]
  mov [rip+S_ss], rax
  test dword ptr [rip+S_vector], 0x800
  jne system_call
  jmp have_frame
from_kernel:
  mov eax, [rip+V_segments+4]
  mov [rip+S_cs], rax
  mov eax, [rip+V_segments+8]
  mov [rip+S_ss], rax
have_frame:
  test dword ptr [rip+V_efer], 0x400
  je trap_narrow
  movzx r10d, byte ptr [rip+S_vector]
  test dword ptr [rip+S_vector], 0x200
  jne host_event
  cmp r10d, 14
  je page_fault
  test dword ptr [rip+S_vector], 0x100
  je dispatch
  cmp r10d, 11
  jb dispatch
  cmp r10d, 13
  ja dispatch
  cmp dword ptr [rip+S_user], 0
  je dispatch
  jmp selector_fault
trap_narrow:
  lea rdi, [rip+MESSAGE_TRAP]
  jmp crash

page_fault:
  mov rax, [rip+I_cr2]
  mov [rip+V_cr2], rax
  jmp dispatch

# #NP, #SS, #GP of user mode: perhaps only the real descriptor, or the trap table's privilege, is old.
selector_fault:
  mov eax, [rip+S_error]
  test al, 2
  jne gate_fault
  test eax, 0xfff8
  je dispatch
  call mirror_table
  movzx r10d, byte ptr [rip+S_vector]
  cmp dword ptr [rip+P_changed], 0
  je dispatch
  jmp leave
gate_fault:
  cmp r10d, 13
  jne dispatch
  shr eax, 3
  movzx eax, al
  push rax
  mov r10d, eax
  call read_gate
  pop rax
  mov r10d, 13
  jne dispatch
  mov rdx, rsi
  shr rdx, 45
  and edx, 3
  cmp edx, 3
  jne dispatch
  mov [rip+S_vector], rax
  mov r10d, eax
  add qword ptr [rip+S_rip], 2
  cmp r10d, 48
  jb dispatch
  call open_gate
  jmp dispatch

# R10 vector: its entry of the trap table may be used from user mode from now on. R10 stays.
.routine open_gate
  push r10
  mov [rip+P_one_trap], r10b
  mov byte ptr [rip+P_one_trap+1], 7
  mov eax, r10d
  shl eax, 4
  lea rcx, [rip+STUBS]
  lea rcx, [rcx+rax]
  mov [rip+P_one_trap+8], rcx
  mov eax, HC_set_trap_table
  lea rdi, [rip+P_one_trap]
  syscall
  pop r10
  ret

# R10 vector -> ZF set: RSI, RDI the guest's gate; ZF clear: beyond the table. RAX is lost.
.routine read_gate
  mov eax, r10d
  shl eax, 4
  lea esi, [rax+15]
  cmp esi, [rip+V_idt_limit]
  ja gate_beyond
  mov rsi, [rip+V_idt_base]
  lea rax, [rax+rsi]
  mov rsi, [rax]
  mov rdi, [rax+8]
  cmp eax, eax
  ret
gate_beyond:
  test rsp, rsp
  ret

# The upcall: port P_timer_port is the alarm, P_line_port the pair of 8259s, which say which line it is.
.routine host_event
  mov byte ptr [rip+I_pending], 0
  mov qword ptr [rip+I_selector], 0
  mov eax, 0
  xchg [rip+E_pending], rax
  or [rip+P_events], rax
  mov ecx, [rip+P_timer_port]
  btr qword ptr [rip+P_events], rcx
  jb alarm_event
  mov ecx, [rip+P_line_port]
  btr qword ptr [rip+P_events], rcx
  jae leave
  mov al, 0x0c
  out 0x20, al
  in al, 0x20
  test al, 0x80
  je leave
  and eax, 7
  cmp eax, 2
  je slave_event
  mov r10d, [rip+P_pic+4]
  lea r10d, [r10+rax]
  jmp event_known
slave_event:
  mov al, 0x0c
  out 0xa0, al
  in al, 0xa0
  test al, 0x80
  je leave
  and eax, 7
  mov r10d, [rip+P_pic+12]
  lea r10d, [r10+rax]
event_known:
  mov [rip+S_vector], r10
  or dword ptr [rip+S_vector], 0x400
  jmp dispatch
# What else is pending comes with another upcall.
alarm_event:
  cmp qword ptr [rip+P_events], 0
  je alarm_alone
  mov byte ptr [rip+I_pending], 1
alarm_alone:
  cmp dword ptr [rip+P_armed], 0
  je leave
  cmp dword ptr [rip+P_alarm_masked], 0
  jne alarm_held
  mov dword ptr [rip+P_armed], 0
  mov r10d, [rip+P_alarm_vector]
  cmp r10d, 0
  je leave
  jmp event_known
alarm_held:
  mov dword ptr [rip+P_alarm_held], 1
  jmp leave

# Find the guest's gate for R10 and enter its handler. At the HLT an exception of the kernel's becomes that of
# the instruction that the guest believes to run: S_* and the registers that are not kept there may change.
.routine dispatch
  test dword ptr [rip+S_vector], 0x600
  jne dispatch_shown
  cmp dword ptr [rip+S_user], 0
  jne dispatch_shown
trap_shown:
  hlt
dispatch_shown:
  call read_gate
  jne bad_gate
  mov rax, rsi
  shr rax, 40
  and eax, 31
  cmp eax, 15
  je gate_kind
  cmp eax, 14
  jne bad_gate
gate_kind:
  mov [rip+S_kind], eax
  cmp dword ptr [rip+S_user], 0
  je gate_allowed
  test dword ptr [rip+S_vector], 0x400
  jne gate_allowed
  cmp r10d, 48
  jae gate_privilege
  cmp r10d, 3
  je gate_privilege
  cmp r10d, 4
  jne gate_allowed
gate_privilege:
  mov rax, rsi
  shr rax, 45
  and eax, 3
  cmp eax, 3
  jne gate_refused
gate_allowed:
  bt rsi, 47
  jae gate_absent
  mov rax, rsi
  shr rax, 48
  shl eax, 16
  movzx edx, si
  or eax, edx
  shl rdi, 32
  or rax, rdi
  mov [rip+S_target], rax
  mov rdi, rsi
  shr rsi, 16
  movzx eax, si
  call code_descriptor
  jne bad_handler
  and eax, 0xfffc
  mov [rip+V_segments+4], eax
  mov dword ptr [rip+P_code_long], 1
  shr rdi, 32
  and edi, 7
  je stack_plain
  mov rax, [rip+P_tr_base]
  mov rdx, [rax+rdi*8+0x1c]
  jmp stack_known
stack_plain:
  mov rdx, [rip+S_rsp]
  cmp dword ptr [rip+S_user], 0
  je stack_known
  mov rax, [rip+P_tr_base]
  mov rdx, [rax+4]
stack_known:
  cmp dword ptr [rip+S_user], 0
  je stack_ready
  mov dword ptr [rip+V_segments+8], 0
stack_ready:
  and rdx, 0xfffffffffffffff0
  mov rsp, rdx
  push qword ptr [rip+S_ss]
  push qword ptr [rip+S_rsp]
  push qword ptr [rip+S_flags]
  push qword ptr [rip+S_cs]
  push qword ptr [rip+S_rip]
  test dword ptr [rip+S_vector], 0x100
  je enter_handler
  push qword ptr [rip+S_error]
enter_handler:
  push qword ptr [rip+S_target]
  mov eax, [rip+S_flags]
  and eax, 0x240cd5
  push rax
  mov rax, [rip+S_rax]
  mov rcx, [rip+S_rcx]
  mov rdx, [rip+S_rdx]
  mov rsi, [rip+S_rsi]
  mov rdi, [rip+S_rdi]
  mov r10, [rip+S_r10]
  mov r11, [rip+S_r11]
  cmp dword ptr [rip+S_kind], 14
  je enter_go
  test dword ptr [rip+S_flags], 0x200
  je enter_go
  mov byte ptr [rip+I_mask], 0
  cmp byte ptr [rip+I_pending], 0
  je enter_go
  call force
enter_go:
  popfq
  ret

# Faults of delivery itself: R10 the vector whose gate is wrong. INT n, INT3 and INTO point at themselves.
gate_refused:
  mov dword ptr [rip+S_vector], 0
bad_gate:
  mov ecx, 13
  jmp nested_fault
gate_absent:
  mov ecx, 11
nested_fault:
  lea edx, [r10*8+2]
nested_known:
  test dword ptr [rip+S_vector], 0x700
  je nested_software
  or edx, 1
  jmp nested_counted
nested_software:
  test dword ptr [rip+S_vector], 0x1000
  jne nested_word
  cmp r10d, 3
  je nested_byte
  cmp r10d, 4
  je nested_byte
  cmp r10d, 32
  jb nested_counted
nested_word:
  dec qword ptr [rip+S_rip]
nested_byte:
  dec qword ptr [rip+S_rip]
nested_counted:
  cmp r10d, 8
  je triple_fault
  inc dword ptr [rip+S_nested]
  cmp dword ptr [rip+S_nested], 3
  ja triple_fault
  test dword ptr [rip+S_vector], 0x100
  je nested_plain
  cmp r10d, 14
  je double_fault
  cmp r10d, 10
  jb nested_plain
  cmp r10d, 13
  jbe double_fault
nested_plain:
  mov r10d, ecx
  mov [rip+S_error], rdx
  or ecx, 0x100
  mov [rip+S_vector], rcx
  jmp dispatch
double_fault:
  mov r10d, 8
  mov qword ptr [rip+S_error], 0
  mov qword ptr [rip+S_vector], 0x108
  jmp dispatch
bad_handler:
  mov edx, eax
  and edx, 0xfffc
  mov ecx, 13
  jmp nested_known
triple_fault:
  lea rdi, [rip+MESSAGE_TRIPLE]
  jmp crash

# EAX selector -> ZF set if it is code that is there; RCX its descriptor. RSI is lost.
.routine code_descriptor
  call find_descriptor
  jne code_out
  mov rsi, rcx
  shr rsi, 40
  and esi, 0x98
  cmp esi, 0x98
code_out:
  ret

# SYSCALL of user mode: on the user's stack, through the guest's own registers.
.routine system_call
  test dword ptr [rip+V_efer], 1
  je call_invalid
  mov rdx, [rip+P_lstar]
  mov eax, [rip+S_cs]
  call code_descriptor
  bt rcx, 53
  jb call_target
  mov rdx, [rip+P_cstar]
call_target:
  mov rax, [rip+S_rip]
  mov [rip+S_rcx], rax
  mov rax, [rip+S_flags]
  mov [rip+S_r11], rax
  mov rcx, [rip+P_fmask]
  not rcx
  and rax, rcx
  mov [rip+S_flags], rax
  mov [rip+S_rip], rdx
  mov ecx, [rip+P_star+4]
  jmp fast_entry
call_invalid:
  sub qword ptr [rip+S_rip], 2
  mov dword ptr [rip+S_vector], 6
  jmp have_frame

# ECX: the kernel's code selector. To S_rip with S_rsp and S_flags, at privilege 0.
fast_entry:
  and ecx, 0xfffc
  mov [rip+V_segments+4], ecx
  lea ecx, [rcx+8]
  mov [rip+V_segments+8], ecx
  mov dword ptr [rip+P_code_long], 1
  mov dword ptr [rip+S_user], 0
  jmp leave

# SYSENTER of user mode: Xen's frame says nothing of the caller, nor does the hardware.
.routine system_enter
  pop qword ptr [rip+S_rcx]
  pop qword ptr [rip+S_r11]
  mov [rip+S_rax], rax
  mov [rip+S_rdx], rdx
  mov [rip+S_rsi], rsi
  mov [rip+S_rdi], rdi
  mov [rip+S_r10], r10
  mov eax, [rsp+16]
  and eax, 0xffffcdff
  or eax, [rip+V_iopl]
  mov [rip+S_flags], rax
  mov rax, [rip+P_sysenter_eip]
  mov [rip+S_rip], rax
  mov rax, [rip+P_sysenter_esp]
  mov [rip+S_rsp], rax
  mov ecx, [rip+P_sysenter_cs]
  jmp fast_entry

# Leave by HYPERVISOR_iret to what S_* says; S_flags has the virtual IF.
.routine leave
  mov eax, [rip+S_flags]
  mov [rip+P_frame+48], rax
  mov rax, [rip+S_rip]
  mov [rip+P_frame+32], rax
  mov rax, [rip+S_rsp]
  mov [rip+P_frame+56], rax
  cmp dword ptr [rip+S_user], 0
  jne leave_user
  mov eax, FLAT_CODE64
  test dword ptr [rip+P_code_long], 1
  jne leave_kernel
  mov eax, FLAT_CODE32
leave_kernel:
  mov [rip+P_frame+40], rax
  mov qword ptr [rip+P_frame+64], FLAT_DATA
  jmp leave_go
# User mode: its descriptors must be the real ones, and the kernel's data segments go.
leave_user:
  mov eax, [rip+S_cs]
  mov [rip+P_frame+40], rax
  call mirror_one
  mov eax, [rip+S_ss]
  mov [rip+P_frame+64], rax
  call mirror_one
  mov ecx, 0
  mov eax, ds
  cmp ax, FLAT_DATA
  jne leave_es
  mov ds, ecx
leave_es:
  mov eax, es
  cmp ax, FLAT_DATA
  jne leave_fs
  mov es, ecx
leave_fs:
  mov eax, fs
  cmp ax, FLAT_DATA
  jne leave_gs
  mov fs, ecx
leave_gs:
  mov eax, gs
  cmp ax, FLAT_DATA
  jne leave_base
  mov gs, ecx
leave_base:
  mov rsi, [rip+P_gs]
  cmp rsi, [rip+P_user_gs]
  je leave_go
  mov [rip+P_user_gs], rsi
  mov edi, 1
  call set_base
leave_go:
  mov rax, [rip+S_rax]
  mov [rip+P_frame], rax
  mov rax, [rip+S_r11]
  mov [rip+P_frame+8], rax
  mov rax, [rip+S_rcx]
  mov [rip+P_frame+16], rax
  mov rdx, [rip+S_rdx]
  mov rsi, [rip+S_rsi]
  mov rdi, [rip+S_rdi]
  mov r10, [rip+S_r10]
  lea rsp, [rip+P_frame]
  mov eax, HC_iret
  syscall

# HYPERVISOR_iret found something in its frame that the CPU refuses.
.routine failsafe
  lea rdi, [rip+MESSAGE_FRAME]
  jmp crash
