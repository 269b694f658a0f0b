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
