# The ABI on Xen: code of the guest's side, in the part of Xen's hole that the domain's builder keeps for it.
#
# Guest kernel and guest user run at privilege 3; Xen tells them apart. ABI calls of 64-bit code jump here from
# their slots, those of 32-bit code come by a far call into Xen's 64-bit segment, and traps arrive through the
# trap table. What the guest believes (its IF and IOPL, control registers, tables, selectors, segment bases) is
# kept in the vCPU page. Kernel selectors are wholly virtual: the kernel always runs on Xen's flat segments, and
# the real GDT holds the descriptors of privilege 3 alone. Xen is reached only by SYSCALL, by the words it
# shares, and by port instructions.
#
# S_* is the state of the trap or transfer that is under way: events are masked while it is in use.
# V_* are fields of the vCPU page, I_* of vcpu_info, E_* of shared_info, P_* of our private page.

.define SAVE push rax; push rcx; push rdx; push rsi; push rdi; push r10; push r11
.define RESTORE pop r11; pop r10; pop rdi; pop rsi; pop rdx; pop rcx; pop rax
.define MASK movzx ecx, byte ptr [rip+I_mask]; push rcx; mov byte ptr [rip+I_mask], 1
.define UNMASK pop rcx; call unmask

# -- the interrupt flag --

# CL: the mask as it was. Flags are lost.
.routine unmask
  mov [rip+I_mask], cl
  test cl, cl
  jne unmask_out
  cmp byte ptr [rip+I_pending], 0
  jne force
unmask_out:
  ret
# An upcall waits and is welcome now: any hypercall lets it in.
force:
  push rax
  push rcx
  push r11
  push rdi
  push rsi
  mov eax, HC_xen_version
  mov edi, 0
  mov esi, 0
  syscall
  pop rsi
  pop rdi
  pop r11
  pop rcx
  pop rax
  ret

.routine irq_disable
  mov byte ptr [rip+I_mask], 1
  ret

.routine irq_enable
  mov byte ptr [rip+I_mask], 0
  pushfq
  cmp byte ptr [rip+I_pending], 0
  je enable_out
  call force
enable_out:
  popfq
  ret

.routine irq_restore
  pushfq
  test ah, 2
  je restore_off
  mov byte ptr [rip+I_mask], 0
  cmp byte ptr [rip+I_pending], 0
  je enable_out
  call force
  popfq
  ret
restore_off:
  mov byte ptr [rip+I_mask], 1
  popfq
  ret

# EAX: the real flags -> as the guest believes them.
.routine virtual_flags
  and eax, 0xffffcdff
  or eax, [rip+V_iopl]
  cmp byte ptr [rip+I_mask], 0
  jne virtual_flags_out
  or eax, 0x200
virtual_flags_out:
  ret

.routine irq_save
  pushfq
  mov rax, [rsp]
  call virtual_flags
  mov byte ptr [rip+I_mask], 1
  popfq
  ret

.routine flags_read
  pushfq
  mov rax, [rsp]
  call virtual_flags
  popfq
  ret

.routine flags_write
  push rax
  push rax
  and eax, 0x3000
  mov [rip+V_iopl], eax
  mov rax, [rsp+8]
  test ah, 2
  je flags_off
  mov byte ptr [rip+I_mask], 0
  cmp byte ptr [rip+I_pending], 0
  je flags_go
  call force
  jmp flags_go
flags_off:
  mov byte ptr [rip+I_mask], 1
flags_go:
  and dword ptr [rsp+8], 0x244dd5
  pop rax
  popfq
  ret

.routine halt
  pushfq
  SAVE
  cmp byte ptr [rip+I_mask], 0
  jne halt_for_ever
halt_now:
  mov eax, HC_sched_op
  mov edi, SCHED_block
  mov esi, 0
  syscall
  RESTORE
  popfq
  ret
# Interrupts are off: nothing may end this.
halt_for_ever:
  mov eax, HC_sched_op
  mov edi, SCHED_poll
  lea rsi, [rip+P_poll]
  syscall
  jmp halt_for_ever

.routine safe_halt
  pushfq
  SAVE
  jmp halt_now

# -- control registers --

.routine cr0_read
  mov rax, [rip+V_cr0]
  ret
.routine smsw
  mov rax, [rip+V_cr0]
  ret
.routine cr2_read
  mov rax, [rip+V_cr2]
  ret
.routine cr3_read
  mov rax, [rip+V_cr3]
  ret
.routine cr4_read
  mov rax, [rip+V_cr4]
  ret
.routine cr8_read
  mov rax, [rip+V_cr8]
  ret
.routine cr2_write
  mov [rip+V_cr2], rax
  ret
.routine cr8_write
  mov [rip+V_cr8], rax
  ret

.routine cr0_write
  pushfq
  SAVE
cr0_common:
  or eax, 0x10
  mov rdx, [rip+V_cr0]
  mov [rip+V_cr0], rax
  xor edx, eax
  test edx, 0x1002e
  je cr0_paging
  mov ecx, eax
  and ecx, 0x1002e
  or ecx, 0x80000011
  mov cr0, rcx
cr0_paging:
  test edx, 0x80000000
  je cr0_done
  test eax, 0x80000000
  je cr0_off
  test dword ptr [rip+V_efer], 0x100
  je cr0_narrow
  or dword ptr [rip+V_efer], 0x400
  jmp cr0_base
cr0_off:
  and dword ptr [rip+V_efer], 0xfffffbff
cr0_base:
  call load_base
cr0_done:
  RESTORE
  popfq
  ret
cr0_narrow:
  lea rdi, [rip+MESSAGE_NARROW]
  jmp crash

.routine lmsw
  pushfq
  SAVE
  and eax, 15
  mov rcx, [rip+V_cr0]
  and ecx, 0xfffffff1
  or eax, ecx
  jmp cr0_common

.routine clts
  pushfq
  SAVE
  test dword ptr [rip+V_cr0], 8
  je cr0_done
  and dword ptr [rip+V_cr0], 0xfffffff7
  mov eax, HC_fpu_taskswitch
  mov edi, 0
  syscall
  jmp cr0_done

# Tell Xen which tables count, for the kernel and for user mode: the guest's, or those that map everything to
# itself while it believes that paging is off. SAVEd registers are lost.
.routine load_base
  MASK
  mov rax, [rip+V_cr3]
  shr rax, 12
  mov ecx, 0xffffffff
  and rax, rcx
  test dword ptr [rip+V_cr0], 0x80000000
  jne load_base_known
  mov rax, [rip+P_identity]
load_base_known:
  mov [rip+P_mmuext+8], rax
  mov [rip+P_mmuext+32], rax
  lea rdi, [rip+P_mmuext]
  mov esi, 3
  call mmuext
  UNMASK
  ret
mmuext:
  mov eax, HC_mmuext_op
  mov edx, 0
  mov r10d, 0x7ff0
  syscall
  ret

.routine cr3_write
  pushfq
  SAVE
  mov [rip+V_cr3], rax
  test dword ptr [rip+V_cr0], 0x80000000
  je cr3_done
  call load_base
cr3_done:
  RESTORE
  popfq
  ret

.routine cr4_write
  pushfq
  SAVE
  mov rdx, [rip+V_cr4]
  mov [rip+V_cr4], rax
  xor edx, eax
  test edx, 0x60e
  je cr4_paging
  mov ecx, eax
  and ecx, 0x60e
  or ecx, 0x20
  mov cr4, rcx
cr4_paging:
  test edx, 0xb0
  je cr3_done
flush_now:
  lea rdi, [rip+P_mmuext+48]
  mov esi, 1
  call mmuext
  jmp cr3_done

.routine tlb_flush_local
  pushfq
  SAVE
  jmp flush_now
.routine tlb_flush_all
  pushfq
  SAVE
  jmp flush_now
.routine tlb_invalidate
  pushfq
  SAVE
  test dword ptr [rip+V_cr0], 0x80000000
  je cr3_done
  mov r10, rax
  MASK
  mov [rip+P_invlpg+8], r10
  lea rdi, [rip+P_invlpg]
  mov esi, 1
  call mmuext
  UNMASK
  jmp cr3_done

.routine dr_read
  push rcx
  push rdi
  push r11
  pushfq
  mov rdi, rax
  mov eax, HC_get_debugreg
  syscall
  popfq
  pop r11
  pop rdi
  pop rcx
  ret
.routine dr_write
  pushfq
  SAVE
  mov rdi, rax
  mov rsi, rdx
  mov eax, HC_set_debugreg
  syscall
  jmp cr3_done

# -- identification --

# Xen answers CPUID behind its prefix; what this code has no answer for is hidden here.
.routine cpuid
  pushfq
  push rax
  .byte 0x0f, 0x0b, 0x78, 0x65, 0x6e, 0x0f, 0xa2
  cmp dword ptr [rsp], 1
  je cpuid_basic
  cmp dword ptr [rsp], 7
  je cpuid_seven
  cmp dword ptr [rsp], 13
  je cpuid_state
cpuid_out:
  lea rsp, [rsp+8]
  popfq
  ret
cpuid_basic:
  and ecx, 0xf3fdffd7
  and edx, 0xfffffdff
  or edx, 0x2008
  jmp cpuid_out
cpuid_seven:
  and ebx, 0xffeffb7e
  jmp cpuid_out
cpuid_state:
  mov eax, 0
  mov ebx, 0
  mov ecx, 0
  mov edx, 0
  jmp cpuid_out

.routine msr_read
  pushfq
  cmp ecx, 0xc0000100
  je msr_fs
  call msr_place
  jne msr_none
  mov edx, [rax+4]
  mov eax, [rax]
  popfq
  ret
msr_fs:
  rdmsr
  popfq
  ret
msr_none:
  cmp ecx, 0x10
  je msr_tsc
  mov eax, 0
  mov edx, 0
  popfq
  ret
msr_tsc:
  rdtsc
  popfq
  ret

# ECX -> ZF set: RAX the variable that stands for the register.
.routine msr_place
  push rcx
  push rdx
  mov edx, ecx
  lea rax, [rip+msr_list]
msr_look:
  mov ecx, [rax]
  cmp ecx, edx
  je msr_found
  lea rax, [rax+8]
  test ecx, ecx
  jne msr_look
  cmp eax, 0
  pop rdx
  pop rcx
  ret
msr_found:
  mov ecx, [rax+4]
  lea rax, [rip+VARIABLES]
  lea rax, [rax+rcx]
  cmp ecx, ecx
  pop rdx
  pop rcx
  ret
.routine msr_list
  .long 0xc0000080, PLACE_V_efer, 0xc0000081, PLACE_P_star, 0xc0000082, PLACE_P_lstar
  .long 0xc0000083, PLACE_P_cstar, 0xc0000084, PLACE_P_fmask, 0xc0000101, PLACE_P_gs
  .long 0xc0000102, PLACE_P_kernel_gs, 0x174, PLACE_P_sysenter_cs, 0x175, PLACE_P_sysenter_esp
  .long 0x176, PLACE_P_sysenter_eip, 0x277, PLACE_P_pat, 0xc0000103, PLACE_P_aux, 0, 0

.routine msr_write
  pushfq
  SAVE
  shl rdx, 32
  mov eax, eax
  or rdx, rax
  cmp ecx, 0xc0000080
  je msr_efer
  cmp ecx, 0xc0000100
  je msr_write_fs
  call msr_place
  jne msr_written
  mov [rax], rdx
  cmp ecx, 0xc0000101
  je msr_write_gs
  cmp ecx, 0x174
  jne msr_written
  mov eax, HC_callback_op
  mov edi, 0
  lea rsi, [rip+P_sysenter_callback]
  syscall
msr_written:
  RESTORE
  popfq
  ret
msr_efer:
  and edx, 0x901
  mov eax, [rip+V_efer]
  and eax, 0x400
  or edx, eax
  mov [rip+V_efer], rdx
  jmp msr_written
msr_write_fs:
  mov rsi, rdx
  mov edi, 0
  call set_base
  jmp msr_written
msr_write_gs:
  mov rsi, rdx
  mov edi, 2
  call set_base
  jmp msr_written

.routine set_base
  mov eax, HC_set_segment_base
  syscall
  ret

.routine swapgs
  pushfq
  SAVE
  mov rsi, [rip+P_kernel_gs]
  mov rax, [rip+P_gs]
  mov [rip+P_kernel_gs], rax
  mov [rip+P_gs], rsi
  mov edi, 2
  call set_base
  RESTORE
  popfq
  ret

# -- ports: the 8259s' vector bases are needed when their interrupt comes, and cannot be read back --

.routine out8
  pushfq
  test dx, 0xff5e
  jne out8_go
  test dl, 0x20
  je out8_go
  push rax
  push rcx
  push rdx
  lea rcx, [rip+P_pic]
  test dl, 0x80
  je out8_master
  lea rcx, [rcx+8]
out8_master:
  test dl, 1
  jne out8_data
  test al, 0x10
  je out8_seen
  mov dword ptr [rcx], 1
  jmp out8_seen
out8_data:
  cmp dword ptr [rcx], 0
  je out8_seen
  mov dword ptr [rcx], 0
  and eax, 0xf8
  mov [rcx+4], eax
out8_seen:
  pop rdx
  pop rcx
  pop rax
out8_go:
  popfq
  out dx, al
  ret

# -- time, events, services --

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
