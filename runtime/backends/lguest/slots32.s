# The ABI on lguest: code of the guest's side, at the top of the linear address space.
#
# An lguest guest runs at privilege 1 and sees the host's segments, flags and tables. This code stands
# between a native guest and that: ABI calls arrive by a far call into a flat segment of ours, traps
# arrive through gates of ours, and what the guest believes (its IF and IOPL, CR0, CR3, its tables and
# selectors) is kept in the vCPU page. It speaks to the host only through lguest's own interface:
# INT 0x1F, struct lguest_data, and port instructions that fault.
#
# The host delivers no interrupt while EIP is in [HOLE, quiet_end). S_* is the state of the trap
# that is being delivered; nothing that runs then can trap visibly.
# V_* are fields of the vCPU page, LD_* of lguest_data, P_* of our private page.

.define FLAT_IN push ds; push FLAT_DS; pop ds
.define FLAT_OUT pop ds
.define HYPERCALL int 0x1f

# ------------------------------------------------------------------ slots that stay in the image
.slot tsc_read
  rdtsc
  ret
.slot tscp_read
  rdtscp
  ret
.slot pmc_read
  rdpmc
  ret
.slot arpl
  arpl ax, dx
  ret
.slot cache_writeback
  ret
.slot cache_invalidate
  ret
.slot kernel_stack_set
  ret
.slot yield
  pause
  ret
.slot console_read
  mov eax, 0
  ret
.slot xcr_read
  ud2
.slot xcr_write
  ud2
.slot monitor
  ud2
.slot mwait
  ud2
.slot safe_mwait
  ud2
.slot sysexit
  ud2
.slot sysret_compat
  ud2
.slot pcid_invalidate
  ud2
.slot user_access_allow
  ud2
.slot user_access_forbid
  ud2
.slot xsaves
  ud2
.slot xrstors
  ud2

# ------------------------------------------------------------------ interrupt flag
.routine irq_disable
  FLAT_IN
  mov dword ptr [LD_irq_enabled], 0
  FLAT_OUT
  retf

# The slot has two returns: one byte further it asks the host for what is pending, from the guest's own
# segment, so that the interrupt's frame is natural.
.routine irq_enable
  pushfd
  FLAT_IN
enable_now:
  mov dword ptr [LD_irq_enabled], 0x200
  cmp dword ptr [LD_irq_pending], 0
  jne enable_pending
  FLAT_OUT
  popfd
  retf
enable_pending:
  FLAT_OUT
  inc dword ptr [esp+4]
  popfd
  retf

.routine irq_restore
  pushfd
  FLAT_IN
  test eax, 0x200
  jne enable_now
  mov dword ptr [LD_irq_enabled], 0
  FLAT_OUT
  popfd
  retf

.routine irq_save
  pushfd
  mov eax, [esp]
  and eax, 0xffff8dff
  or eax, cs:[LD_irq_enabled]
  or eax, cs:[V_iopl]
  or eax, cs:[P_nt]
  FLAT_IN
  mov dword ptr [LD_irq_enabled], 0
  FLAT_OUT
  popfd
  retf

.routine flags_read
  pushfd
  mov eax, [esp]
  and eax, 0xffff8dff
  or eax, cs:[LD_irq_enabled]
  or eax, cs:[V_iopl]
  or eax, cs:[P_nt]
  popfd
  retf

# The new flags are loaded by the IRET that returns, so that TF first traps in the guest's own code.
.routine flags_write
  push eax
  push ecx
  FLAT_IN
  mov ecx, eax
  and ecx, 0x3000
  mov [V_iopl], ecx
  mov ecx, eax
  and ecx, 0x4000
  mov [P_nt], ecx
  mov ecx, [esp+12]
  and eax, 0x240dd5
  or eax, 0x202
  test dword ptr [esp+8], 0x200
  je flags_off
  mov dword ptr [LD_irq_enabled], 0x200
  cmp dword ptr [LD_irq_pending], 0
  je flags_go
  inc ecx
  jmp flags_go
flags_off:
  mov dword ptr [LD_irq_enabled], 0
flags_go:
  mov [P_return], ecx
  mov ecx, [esp+16]
  mov [P_return+4], ecx
  mov [P_return+8], eax
  FLAT_OUT
  pop ecx
  pop eax
  lea esp, [esp+8]
  push dword ptr cs:[P_return+8]
  push dword ptr cs:[P_return+4]
  push dword ptr cs:[P_return]
  iretd

# HALT turns interrupts on when it wakes: they are off until then, so that none can slip in between.
.routine halt
  pushfd
  FLAT_IN
  cmp dword ptr [LD_irq_enabled], 0
  jne halt_now
  mov dword ptr [LD_blocked_interrupts], -1
halt_now:
  mov dword ptr [LD_irq_enabled], 0
  FLAT_OUT
  inc dword ptr [esp+4]
  popfd
  retf

.routine safe_halt
  pushfd
  FLAT_IN
  jmp halt_now

# ------------------------------------------------------------------ control registers
.routine cr0_read
  mov eax, cs:[V_cr0]
  retf
.routine smsw
  mov eax, cs:[V_cr0]
  retf
.routine cr2_read
  mov eax, cs:[V_cr2]
  retf
.routine cr3_read
  mov eax, cs:[V_cr3]
  retf
.routine cr4_read
  mov eax, cs:[V_cr4]
  retf
.routine cr2_write
  FLAT_IN
  mov [V_cr2], eax
  FLAT_OUT
  retf

.routine cr0_write
  pushfd
  push eax
  push ecx
  push ebx
  FLAT_IN
cr0_common:
  or eax, 0x11
  mov ecx, [V_cr0]
  mov [V_cr0], eax
  xor ecx, eax
  test ecx, 0x1003e
  je cr0_no_bits
  mov cr0, eax
cr0_no_bits:
  test ecx, 0x80000000
  je cr0_done
  call switch_tables
cr0_done:
  FLAT_OUT
  pop ebx
  pop ecx
  pop eax
  popfd
  retf

.routine lmsw
  pushfd
  push eax
  push ecx
  push ebx
  FLAT_IN
  and eax, 15
  mov ecx, [V_cr0]
  and ecx, 0xfffffff1
  or eax, ecx
  jmp cr0_common

.routine clts
  pushfd
  push eax
  push ebx
  FLAT_IN
  test dword ptr [V_cr0], 8
  je clts_done
  and dword ptr [V_cr0], 0xfffffff7
  mov eax, HC_ts
  mov ebx, 0
  HYPERCALL
clts_done:
  FLAT_OUT
  pop ebx
  pop eax
  popfd
  retf

# Tell the host which tables to use: the guest's, or ours that map everything to itself. Uses EAX, EBX.
.routine switch_tables
  test dword ptr [V_cr0], 0x80000000
  je tables_off
  mov eax, [V_cr4]
  mov cr4, eax
  mov ebx, [V_cr3]
  mov eax, HC_new_pgtable
  HYPERCALL
  ret
tables_off:
  mov eax, [V_cr4]
  and eax, 0xffffffdf
  mov cr4, eax
  mov ebx, [P_identity]
  mov eax, HC_new_pgtable
  HYPERCALL
  ret

.routine cr3_write
  pushfd
  push eax
  push ebx
  FLAT_IN
  mov [V_cr3], eax
  test dword ptr [V_cr0], 0x80000000
  je cr3_done
  mov ebx, eax
  mov eax, HC_new_pgtable
  HYPERCALL
cr3_done:
  FLAT_OUT
  pop ebx
  pop eax
  popfd
  retf

.routine cr4_write
  pushfd
  push eax
  FLAT_IN
  mov [V_cr4], eax
  test dword ptr [V_cr0], 0x80000000
  jne cr4_paging
  and eax, 0xffffffdf
cr4_paging:
  mov cr4, eax
  FLAT_OUT
  pop eax
  popfd
  retf

.routine dr_read
  pushfd
  and eax, 7
  mov eax, cs:[eax*4+P_debug]
  popfd
  retf

.routine dr_write
  pushfd
  push eax
  push edx
  FLAT_IN
  and eax, 7
  cmp eax, 4
  jb dr_store
  test al, 1
  jne dr_control
  mov eax, 6
  and edx, 0xe00f
  or edx, 0xffff0ff0
  mov [P_debug+16], edx
  jmp dr_store
dr_control:
  mov eax, 7
  and edx, 0xffff27ff
  or edx, 0x400
  mov [P_debug+20], edx
dr_store:
  mov [eax*4+P_debug], edx
  FLAT_OUT
  pop edx
  pop eax
  popfd
  retf

# ------------------------------------------------------------------ descriptor tables
.routine gdt_load
  FLAT_IN
  mov [V_gdt_limit], ax
  mov [V_gdt_base], edx
  FLAT_OUT
  retf
.routine gdt_store
  mov eax, cs:[V_gdt_limit]
  mov edx, cs:[V_gdt_base]
  retf
.routine idt_load
  FLAT_IN
  mov [V_idt_limit], ax
  mov [V_idt_base], edx
  FLAT_OUT
  retf
.routine idt_store
  mov eax, cs:[V_idt_limit]
  mov edx, cs:[V_idt_base]
  retf
.routine ldt_store
  mov eax, cs:[V_ldt]
  retf
.routine tr_store
  mov eax, cs:[V_tr]
  retf

.routine ldt_load
  pushfd
  push eax
  push ecx
  push edx
  push esi
  FLAT_IN
  movzx eax, ax
  mov [V_ldt], eax
  mov dword ptr [P_ldt_limit], 0
  and eax, 0xfffc
  je ldt_done
  call find_descriptor
  jne ldt_done
  call descriptor_base
  mov [P_ldt_base], esi
  call descriptor_limit
  mov [P_ldt_limit], esi
ldt_done:
  FLAT_OUT
  pop esi
  pop edx
  pop ecx
  pop eax
  popfd
  retf

# LTR marks the descriptor busy in the guest's own table, as the CPU does.
.routine tr_load
  pushfd
  push eax
  push ecx
  push edx
  push esi
  FLAT_IN
  movzx eax, ax
  mov [V_tr], eax
  call find_descriptor
  jne tr_done
  push esi
  call descriptor_base
  mov [P_tr_base], esi
  pop esi
  or byte ptr [esi+5], 2
tr_done:
  FLAT_OUT
  pop esi
  pop edx
  pop ecx
  pop eax
  popfd
  retf

# EAX selector -> ZF set: ECX low word, EDX high word, ESI address; ZF clear: none. DS is flat.
.routine find_descriptor
  push eax
  test al, 4
  jne find_local
  and eax, 0xfff8
  je find_none
  lea esi, [eax+7]
  cmp esi, [V_gdt_limit]
  ja find_none
  mov esi, [V_gdt_base]
  jmp find_read
find_local:
  and eax, 0xfff8
  lea esi, [eax+7]
  cmp esi, [P_ldt_limit]
  ja find_none
  mov esi, [P_ldt_base]
find_read:
  lea esi, [esi+eax]
  mov ecx, [esi]
  mov edx, [esi+4]
  cmp eax, eax
  pop eax
  ret
find_none:
  or esp, esp
  pop eax
  ret

# ECX, EDX -> ESI base
.routine descriptor_base
  push edx
  mov esi, edx
  and esi, 0xff000000
  movzx edx, dl
  shl edx, 16
  or esi, edx
  mov edx, ecx
  shr edx, 16
  or esi, edx
  pop edx
  ret

# ECX, EDX -> ESI limit in bytes
.routine descriptor_limit
  push ecx
  mov esi, edx
  and esi, 0xf0000
  movzx ecx, cx
  or esi, ecx
  test edx, 0x800000
  je limit_bytes
  shl esi, 12
  or esi, 0xfff
limit_bytes:
  pop ecx
  ret

# Bring the host's copy of one descriptor up to date with the guest's table. EAX selector; DS flat.
# P_synced is not 0 afterwards if it was not.
.routine sync_selector
  push eax
  push ebx
  push ecx
  push edx
  push esi
  mov dword ptr [P_synced], 0
  test al, 4
  jne sync_done
  movzx ebx, ax
  shr ebx, 3
  je sync_done
  cmp ebx, GUEST_ENTRIES
  jae sync_done
  mov eax, ebx
  shl eax, 3
  call find_descriptor
  je sync_found
  mov ecx, 0
  mov edx, 0
sync_found:
  or edx, 0x100
  cmp ecx, [ebx*8+P_gdt_copy]
  jne sync_load
  cmp edx, [ebx*8+P_gdt_copy+4]
  je sync_done
sync_load:
  mov [ebx*8+P_gdt_copy], ecx
  mov [ebx*8+P_gdt_copy+4], edx
  mov dword ptr [P_synced], 1
  mov eax, HC_load_gdt_entry
  HYPERCALL
sync_done:
  pop esi
  pop edx
  pop ecx
  pop ebx
  pop eax
  ret

# All descriptors: user mode loads segments with no call of ours.
.routine sync_all
  push eax
  mov eax, LAST_SELECTOR
sync_next:
  call sync_selector
  sub eax, 8
  ja sync_next
  pop eax
  ret

# ------------------------------------------------------------------ segment registers
# EAX real selector -> EAX what the guest believes. DS or CS flat.
.routine virtual_data
  cmp eax, FLAT_DS
  je virtual_data_boot
  ret
virtual_data_boot:
  mov eax, cs:[P_boot_data]
  ret
.routine virtual_kernel
  cmp eax, FLAT_CS
  je virtual_code_boot
  cmp eax, FLAT_DS
  je virtual_data_boot
  test al, 2
  jne virtual_as_is
  and eax, 0xfffc
virtual_as_is:
  ret
virtual_code_boot:
  mov eax, cs:[P_boot_code]
  ret

.routine segment_store
  pushfd
  cmp edx, 1
  je store_code
  jb store_es
  cmp edx, 3
  jb store_stack
  je store_ds
  cmp edx, 5
  je store_gs
  mov eax, fs
  jmp store_data
store_es:
  mov eax, es
  jmp store_data
store_ds:
  mov eax, ds
  jmp store_data
store_gs:
  mov eax, gs
store_data:
  movzx eax, ax
  call virtual_data
  popfd
  retf
store_code:
  movzx eax, word ptr [esp+8]
  call virtual_kernel
  popfd
  retf
store_stack:
  mov eax, ss
  movzx eax, ax
  call virtual_kernel
  popfd
  retf

.routine segment_load
  pushfd
  FLAT_IN
  call sync_selector
  cmp edx, 3
  je load_ds
  jb load_low
  cmp edx, 5
  je load_gs
  FLAT_OUT
  popfd
fault_fs:
  mov fs, eax
  retf
load_gs:
  FLAT_OUT
  popfd
fault_gs:
  mov gs, eax
  retf
load_low:
  cmp edx, 2
  je load_stack
  FLAT_OUT
  popfd
fault_es:
  mov es, eax
  retf
load_ds:
  lea esp, [esp+4]
  popfd
fault_ds:
  mov ds, eax
  retf
# [ds][flags][eip][cs][return]: the return leaves the stack before the stack changes; EDX is lost.
load_stack:
  mov edx, [esp+12]
  mov [P_return+4], edx
  mov edx, [esp+8]
  lea edx, [edx-7]
  mov [P_site], edx
  mov edx, [esp+16]
  mov [P_return], edx
  mov edx, eax
  test dl, 3
  jne load_stack_now
  or edx, 1
load_stack_now:
  FLAT_OUT
  popfd
  lea esp, [esp+12]
fault_ss:
  mov ss, edx
  .byte 0x2e, 0xff, 0x2d
  .long P_return

# ------------------------------------------------------------------ inspecting selectors
# [flags] under the saved registers: ZF of the result goes there.
.routine lar
  pushfd
  push eax
  push ecx
  push esi
  push edx
  FLAT_IN
  call find_descriptor
  jne lar_no
  call visible
  jne lar_no
  test dh, 0x10
  jne lar_yes
  mov esi, edx
  shr esi, 8
  and esi, 15
  bt dword ptr [P_lar_types], esi
  jae lar_no
lar_yes:
  and edx, 0xf0ff00
  mov [esp+4], edx
  jmp inspect_yes
lar_no:
  jmp inspect_no
inspect_yes:
  FLAT_OUT
  or dword ptr [esp+16], 0x40
  jmp inspect_out
inspect_no:
  FLAT_OUT
  and dword ptr [esp+16], 0xffffffbf
inspect_out:
  pop edx
  pop esi
  pop ecx
  pop eax
  popfd
  retf

.routine lsl
  pushfd
  push eax
  push ecx
  push esi
  push edx
  FLAT_IN
  call find_descriptor
  jne inspect_no
  call visible
  jne inspect_no
  test dh, 0x10
  jne lsl_yes
  mov esi, edx
  shr esi, 8
  and esi, 15
  bt dword ptr [P_lsl_types], esi
  jae inspect_no
lsl_yes:
  call descriptor_limit
  mov [esp+4], esi
  jmp inspect_yes

.routine verr
  pushfd
  push eax
  push ecx
  push esi
  push edx
  FLAT_IN
  call find_descriptor
  jne inspect_no
  call visible
  jne inspect_no
  test dh, 0x10
  je inspect_no
  test dh, 8
  je inspect_yes
  test dh, 2
  jne inspect_yes
  jmp inspect_no

.routine verw
  pushfd
  push eax
  push ecx
  push esi
  push edx
  FLAT_IN
  call find_descriptor
  jne inspect_no
  call visible
  jne inspect_no
  and dh, 0x1a
  cmp dh, 0x12
  je inspect_yes
  jmp inspect_no

# EAX selector, EDX high word -> ZF set if privilege 0 with that RPL may see it.
.routine visible
  push edx
  and dh, 0x1c
  cmp dh, 0x1c
  pop edx
  je visible_out
  push eax
  push edx
  shr edx, 13
  and edx, 3
  and eax, 3
  cmp eax, edx
  pop edx
  pop eax
  ja visible_out
  cmp eax, eax
visible_out:
  ret

# ------------------------------------------------------------------ far transfers
# Reached by a far call: the slot's own address is kept for a fault, and what lies below is the frame.

# [ds][slot eip][slot cs] -> P_site, DS flat and the guest's DS in P_ds. EAX is preserved.
.routine keep_site
  mov [P_eax], eax
  pop eax
  mov [P_near], eax
  pop dword ptr [P_ds]
  pop eax
  lea eax, [eax-7]
  mov [P_site], eax
  pop dword ptr [P_site+4]
  mov eax, [P_eax]
  jmp dword ptr [P_near]

.routine far_jump
  FLAT_IN
  call keep_site
  pushfd
  push eax
  mov eax, [esp+12]
  call sync_selector
  test al, 3
  jne far_privilege
  or dword ptr [esp+12], 1
far_privilege:
  pop eax
  popfd
  push dword ptr [P_ds]
  FLAT_OUT
fault_far:
  retf

.routine far_return
  FLAT_IN
  call keep_site
  pushfd
  push eax
  mov eax, [esp+12]
  and eax, 3
  cmp eax, 3
  jne far_inner
  call sync_all
far_inner:
  mov eax, [esp+12]
  call sync_selector
  test al, 3
  jne far_privilege
  or dword ptr [esp+12], 1
  jmp far_privilege

# [ret][offset][selector] -> [ret][virtual cs] for the callee, and off to offset:selector.
.routine far_call
  FLAT_IN
  call keep_site
  pushfd
  push eax
  push ebx
  mov eax, [esp+20]
  call sync_selector
  test al, 3
  jne far_call_level
  or eax, 1
far_call_level:
  mov [P_return+4], eax
  mov eax, [esp+16]
  mov [P_return], eax
  mov eax, [P_site+4]
  movzx eax, ax
  call virtual_kernel
  mov ebx, [esp+12]
  mov [P_return+8], ebx
  mov [esp+16], ebx
  mov [esp+20], eax
  pop ebx
  pop eax
  popfd
  lea esp, [esp+4]
  push dword ptr [P_ds]
  FLAT_OUT
fault_far_call:
  .byte 0x2e, 0xff, 0x2d
  .long P_return

# [ret][vector]: a trap frame as INT n would push it, then the common path.
.routine soft_int
  pushfd
  push eax
  mov eax, [esp+20]
  and eax, 255
  xchg eax, [esp+4]
  mov [esp+20], eax
  mov eax, [esp+12]
  xchg eax, [esp+16]
  mov [esp+12], eax
  mov dword ptr [esp+8], 0
  pop eax
  jmp common

.routine iret
  FLAT_IN
  call keep_site
  push eax
  push ecx
  mov ecx, [LD_irq_enabled]
  mov [P_old_if], ecx
  mov eax, [esp+16]
  mov [P_old_flags], eax
  test eax, 0x20000
  jne iret_v86
  mov ecx, eax
  and ecx, 0x3000
  mov [V_iopl], ecx
  mov ecx, eax
  and ecx, 0x4000
  mov [P_nt], ecx
  mov ecx, eax
  and eax, 0x254dd5
  and eax, 0xffffbfff
  or eax, 0x202
  mov [esp+16], eax
  mov eax, [esp+12]
  test al, 3
  jne iret_user
  call sync_selector
  or dword ptr [esp+12], 1
  jmp iret_flag
iret_user:
  call sync_all
iret_flag:
  and ecx, 0x200
  mov [LD_irq_enabled], ecx
  je iret_go
  cmp dword ptr [LD_irq_pending], 0
  jne iret_pending
iret_go:
  pop ecx
  pop eax
  push dword ptr [P_ds]
  FLAT_OUT
fault_iret:
  iretd
iret_pending:
  pop ecx
  pop eax
  push dword ptr [P_ds]
  FLAT_OUT
  jmp safe_send
iret_v86:
  mov ebx, MESSAGE_V86
  jmp crash

# ------------------------------------------------------------------ ports, identification, TLB
.routine in8
  in al, dx
  retf
.routine in16
  in ax, dx
  retf
.routine in32
  in eax, dx
  retf
.routine out16
  out dx, ax
  retf
.routine out32
  out dx, eax
  retf
.routine ins8
fault_ins8:
  rep insb
  retf
.routine ins16
fault_ins16:
  rep insw
  retf
.routine ins32
fault_ins32:
  rep insd
  retf
.routine outs8
fault_outs8:
  rep outsb
  retf
.routine outs16
fault_outs16:
  rep outsw
  retf
.routine outs32
fault_outs32:
  rep outsd
  retf

# The 8259s' vector bases are needed when their interrupt comes, and cannot be read back from them.
.routine out8
  pushfd
  test dx, 0xff5e
  jne out8_go
  test dl, 0x20
  je out8_go
  FLAT_IN
  push eax
  push ecx
  mov ecx, 0
  test dl, 0x80
  je out8_master
  mov ecx, 4
out8_master:
  test dl, 1
  jne out8_data
  test al, 0x10
  je out8_seen
  mov dword ptr [ecx+P_pic_expects], 1
  jmp out8_seen
out8_data:
  cmp dword ptr [ecx+P_pic_expects], 0
  je out8_seen
  mov dword ptr [ecx+P_pic_expects], 0
  and eax, 0xf8
  mov [ecx+P_pic_base], eax
out8_seen:
  pop ecx
  pop eax
  FLAT_OUT
out8_go:
  popfd
  out dx, al
  retf

# lguest runs CPUID natively and leaves the masking to its guests.
.routine cpuid
  pushfd
  push eax
  cpuid
  cmp dword ptr [esp], 1
  je cpuid_basic
  cmp dword ptr [esp], 7
  je cpuid_seven
  cmp dword ptr [esp], 13
  je cpuid_state
  cmp dword ptr [esp], 0x80000001
  je cpuid_extended
cpuid_out:
  lea esp, [esp+4]
  popfd
  retf
cpuid_basic:
  and ecx, 0xf3ffffd7
  and edx, 0xfffff5ff
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
cpuid_extended:
  and edx, 0xdfeff7ff
  jmp cpuid_out

# Registers that a guest may keep: the rest read as zero, as on the bare machine.
.routine msr_read
  pushfd
  cmp ecx, 0x10
  je msr_tsc
  cmp ecx, 0x277
  je msr_pat
  mov eax, 0
  mov edx, 0
  popfd
  retf
msr_tsc:
  rdtsc
  popfd
  retf
msr_pat:
  mov eax, cs:[P_pat]
  mov edx, cs:[P_pat+4]
  popfd
  retf
.routine msr_write
  pushfd
  cmp ecx, 0x277
  jne msr_ignored
  FLAT_IN
  mov [P_pat], eax
  mov [P_pat+4], edx
  FLAT_OUT
msr_ignored:
  popfd
  retf

.routine tlb_invalidate
  pushfd
  FLAT_IN
  test dword ptr [V_cr0], 0x80000000
  je invalidate_out
  push eax
  push ebx
  push ecx
  push edx
  push esi
  mov ecx, eax
  mov ebx, [V_cr3]
  mov edx, 0
  mov esi, 0
  mov eax, HC_set_pte
  HYPERCALL
  pop esi
  pop edx
  pop ecx
  pop ebx
  pop eax
invalidate_out:
  FLAT_OUT
  popfd
  retf

.routine tlb_flush_local
  pushfd
  FLAT_IN
  test dword ptr [V_cr0], 0x80000000
  je invalidate_out
  push eax
  push ebx
  mov ebx, 1
  mov eax, HC_flush_tlb
  HYPERCALL
  pop ebx
  pop eax
  jmp invalidate_out
.routine tlb_flush_all
  pushfd
  FLAT_IN
  test dword ptr [V_cr0], 0x80000000
  je invalidate_out
  push eax
  push ebx
  mov ebx, 1
  mov eax, HC_flush_tlb
  HYPERCALL
  pop ebx
  pop eax
  jmp invalidate_out

# ------------------------------------------------------------------ time, events
# -> EDX:EAX ns since start: TSC * 1000000 / kHz. Uses ECX, EBX; DS flat.
.routine now
  push esi
  push edi
  rdtsc
  mov ecx, [LD_tsc_khz]
  mov ebx, eax
  mov eax, edx
  mov edx, 0
  div ecx
  mov esi, eax
  mov eax, ebx
  div ecx
  mov edi, eax
  mov eax, edx
  mov edx, 1000000
  mul edx
  div ecx
  mov ebx, eax
  mov eax, esi
  mov ecx, 1000000
  mul ecx
  mov esi, eax
  mov eax, edi
  mul ecx
  add edx, esi
  add eax, ebx
  adc edx, 0
  pop edi
  pop esi
  ret

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

.routine wallclock_ns
  pushfd
  push ebx
  push ecx
  FLAT_IN
  call now
  add eax, [P_wall]
  adc edx, [P_wall+4]
  FLAT_OUT
  pop ecx
  pop ebx
  popfd
  retf

# SET_CLOCKEVENT is relative and 32 bits wide: arm for what is left, at most four seconds. DS flat.
# Uses EAX, EBX, ECX, EDX.
.routine arm_clock
  call now
  mov ecx, [P_deadline]
  mov ebx, [P_deadline+4]
  sub ecx, eax
  sbb ebx, edx
  jb arm_late
  jne arm_far
  cmp ecx, 4000000000
  ja arm_far
  cmp ecx, 0
  je arm_late
  mov ebx, ecx
  jmp arm_now
arm_far:
  mov ebx, 4000000000
  jmp arm_now
arm_late:
  mov ebx, 1
arm_now:
  mov eax, HC_set_clockevent
  HYPERCALL
  ret

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

.routine alarm_cancel
  pushfd
  push ebx
  FLAT_IN
  mov eax, HC_set_clockevent
  mov ebx, 0
  HYPERCALL
  mov eax, [P_armed]
  mov dword ptr [P_armed], 0
  FLAT_OUT
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
.routine event_mask
  pushfd
  cmp eax, 0
  jne event_wrong
  FLAT_IN
  or dword ptr [LD_blocked_interrupts], 1
  FLAT_OUT
  popfd
  retf
.routine event_unmask
  pushfd
  cmp eax, 0
  jne event_wrong
  FLAT_IN
  and dword ptr [LD_blocked_interrupts], 0xfffffffe
  FLAT_OUT
  popfd
  retf
.routine event_eoi
  pushfd
  cmp eax, 0
  jne event_wrong
  popfd
  retf

# ------------------------------------------------------------------ services
# NOTIFY prints a string that ends in a zero byte: the text goes through our buffer.
.routine console_write
  pushfd
  push ebx
  push ecx
  push edx
  push esi
  push edi
  push eax
  FLAT_IN
  mov esi, eax
write_more:
  cmp edx, 0
  je write_done
  mov edi, P_text
write_byte:
  mov cl, [esi]
  mov [edi], cl
  lea esi, [esi+1]
  lea edi, [edi+1]
  dec edx
  je write_flush
  cmp edi, P_text+255
  jne write_byte
write_flush:
  mov byte ptr [edi], 0
  mov ebx, [P_private]
  lea ebx, [ebx+TEXT_OFFSET]
  mov eax, HC_notify
  HYPERCALL
  jmp write_more
write_done:
  FLAT_OUT
  pop eax
  pop edi
  pop esi
  pop edx
  mov eax, edx
  pop ecx
  pop ebx
  popfd
  retf

.routine shutdown
  cmp eax, 1
  je reboot
  jb shutdown_off
  cmp eax, 3
  je shutdown_crash
  mov eax, -22
  retf
shutdown_off:
  mov ebx, cs:[P_private]
  lea ebx, [ebx+MESSAGE_OFF]
  mov ecx, 1
  mov eax, HC_shutdown
  HYPERCALL
  retf
shutdown_crash:
  mov ebx, MESSAGE_CRASH
  jmp crash
.routine reboot
  mov ebx, cs:[P_private]
  lea ebx, [ebx+MESSAGE_RESTART]
  mov ecx, 2
  mov eax, HC_shutdown
  HYPERCALL
  retf

# The end: EBX says why.
.routine crash
  add ebx, cs:[P_private]
  mov ecx, 0
  mov eax, HC_shutdown
  HYPERCALL
dead:
  jmp dead

# ------------------------------------------------------------------ traps
# Every gate leads here with [vector | kind][error code] above the hardware's frame.
# kind: 0x100 the frame has an error code, 0x200 an interrupt of the host's.
.routine common
  FLAT_IN
  mov [S_eax], eax
  mov [S_ecx], ecx
  mov [S_edx], edx
  mov [S_ebx], ebx
  mov [S_esi], esi
  pop dword ptr [S_ds]
  pop dword ptr [S_vector]
  pop dword ptr [S_error]
  mov dword ptr [S_nested], 0
examine:
  pop dword ptr [S_eip]
  pop dword ptr [S_cs]
  pop dword ptr [S_flags]
  movzx eax, word ptr [S_cs]
  test al, 2
  jne from_user
  mov dword ptr [S_user], 0
  cmp eax, FLAT_CS
  jne have_frame
  cmp dword ptr [S_eip], HOLE
  jae in_hole
  jmp have_frame
from_user:
  mov dword ptr [S_user], 1
  pop dword ptr [S_esp]
  pop dword ptr [S_ss]
have_frame:
  movzx ebx, byte ptr [S_vector]
  test dword ptr [S_vector], 0x200
  jne host_interrupt
  cmp ebx, 14
  je page_fault
  test dword ptr [S_vector], 0x100
  je dispatch
  cmp ebx, 11
  jb dispatch
  cmp ebx, 13
  ja dispatch
  jmp selector_fault

page_fault:
  mov eax, [LD_cr2]
  mov [V_cr2], eax
  jmp dispatch

# #NP, #SS, #GP: perhaps only the host's copy of a descriptor, or of a gate's privilege, is old.
selector_fault:
  mov eax, [S_error]
  test al, 2
  jne gate_fault
  test eax, 0xfff8
  je dispatch
  test al, 5
  jne dispatch
  call sync_selector
  cmp dword ptr [P_synced], 0
  je dispatch
  jmp resume
gate_fault:
  cmp dword ptr [S_user], 0
  je dispatch
  cmp ebx, 13
  jne dispatch
  shr eax, 3
  movzx eax, al
  mov ebx, eax
  call read_gate
  mov ebx, 13
  jne dispatch
  and edx, 0x6000
  cmp edx, 0x6000
  jne dispatch
  mov [S_vector], eax
  mov ebx, eax
  add dword ptr [S_eip], 2
  cmp ebx, 48
  jb dispatch
  call open_gate
  jmp dispatch

# EBX vector: its gate may be used from user mode from now on.
.routine open_gate
  push eax
  push ebx
  push ecx
  push edx
  mov ecx, ebx
  shl ecx, 4
  lea ecx, [ecx+STUBS]
  mov edx, ecx
  and ecx, 0xffff
  or ecx, GATE_SELECTOR
  and edx, 0xffff0000
  or edx, 0xef00
  mov eax, HC_load_idt_entry
  HYPERCALL
  pop edx
  pop ecx
  pop ebx
  pop eax
  ret

# EBX vector -> ZF set: ESI low word, EDX high word of the guest's gate; ZF clear: beyond the table.
.routine read_gate
  lea esi, [ebx*8+7]
  cmp esi, [V_idt_limit]
  ja gate_beyond
  mov esi, [V_idt_base]
  mov edx, [esi+ebx*8+4]
  mov esi, [esi+ebx*8]
  cmp eax, eax
  ret
gate_beyond:
  or esp, esp
  ret

# An interrupt of the host's: 0 is the alarm, 1 the pair of 8259s, which say which line it is.
.routine host_interrupt
  cmp ebx, 32
  je alarm_interrupt
  mov al, 0x0c
  out 0x20, al
  in al, 0x20
  test al, 0x80
  je resume
  and eax, 7
  cmp eax, 2
  je slave_interrupt
  mov ebx, [P_pic_base]
  add ebx, eax
  jmp interrupt_known
slave_interrupt:
  mov al, 0x0c
  out 0xa0, al
  in al, 0xa0
  test al, 0x80
  je resume
  and eax, 7
  mov ebx, [P_pic_base+4]
  add ebx, eax
interrupt_known:
  mov [S_vector], ebx
  or dword ptr [S_vector], 0x400
  jmp dispatch
alarm_interrupt:
  cmp dword ptr [P_armed], 0
  je resume
  call now
  sub eax, [P_deadline]
  sbb edx, [P_deadline+4]
  jae alarm_due
  call arm_clock
  jmp resume
alarm_due:
  mov dword ptr [P_armed], 0
  mov ebx, [P_alarm_vector]
  cmp ebx, 0
  je resume
  jmp interrupt_known

# Find the guest's gate for EBX and enter its handler.
.routine dispatch
  call read_gate
  jne bad_gate
  mov ecx, edx
  shr ecx, 8
  and ecx, 31
  cmp ecx, 15
  je gate_kind
  cmp ecx, 14
  jne bad_gate
gate_kind:
  cmp dword ptr [S_user], 0
  je gate_allowed
  cmp ebx, 48
  jae gate_privilege
  cmp ebx, 3
  je gate_privilege
  cmp ebx, 4
  jne gate_allowed
gate_privilege:
  test dword ptr [S_vector], 0x400
  jne gate_allowed
  mov eax, edx
  and eax, 0x6000
  cmp eax, 0x6000
  jne gate_refused
gate_allowed:
  test dh, 0x80
  je gate_absent
  mov eax, esi
  and eax, 0xffff
  and edx, 0xffff0000
  or eax, edx
  mov [S_offset], eax
  shr esi, 16
  mov eax, esi
  call sync_selector
  or eax, 1
  mov [S_selector], eax
  mov eax, [S_flags]
  and eax, 0xffff8dff
  or eax, [LD_irq_enabled]
  or eax, [V_iopl]
  or eax, [P_nt]
  mov [S_flags], eax
  mov dword ptr [P_nt], 0
  cmp ecx, 14
  jne gate_trap
  mov dword ptr [LD_irq_enabled], 0
gate_trap:
  cmp dword ptr [S_user], 0
  jne switch_stack
  movzx eax, word ptr [S_cs]
  call virtual_kernel
  mov [S_cs], eax
  jmp build_frame
switch_stack:
  mov esi, [P_tr_base]
  mov eax, [esi+8]
  call sync_selector
  or eax, 1
  mov ecx, [esi+4]
  mov ss, eax
  mov esp, ecx
  push dword ptr [S_ss]
  push dword ptr [S_esp]
build_frame:
  push dword ptr [S_flags]
  push dword ptr [S_cs]
  push dword ptr [S_eip]
  test dword ptr [S_vector], 0x100
  je enter_handler
  push dword ptr [S_error]
enter_handler:
  push dword ptr [S_selector]
  push dword ptr [S_offset]
  mov eax, [S_flags]
  and eax, 0x244ed5
  and eax, 0xffffbfff
  push eax
  popfd
  mov eax, [S_eax]
  mov ecx, [S_ecx]
  mov edx, [S_edx]
  mov ebx, [S_ebx]
  mov esi, [S_esi]
  push dword ptr [S_ds]
  FLAT_OUT
fault_enter:
  retf

# Faults of delivery itself: EBX the vector whose gate is wrong.
gate_refused:
  mov eax, 2
  cmp ebx, 48
  jae refused_length
  mov eax, 1
refused_length:
  sub [S_eip], eax
  mov dword ptr [S_vector], 0
bad_gate:
  mov ecx, 13
  jmp nested_fault
gate_absent:
  mov ecx, 11
nested_fault:
  lea edx, [ebx*8+2]
  test dword ptr [S_vector], 0x700
  je nested_software
  or edx, 1
nested_software:
  cmp ebx, 8
  je triple_fault
  inc dword ptr [S_nested]
  cmp dword ptr [S_nested], 3
  ja triple_fault
  cmp ebx, 14
  je double_fault
  cmp ebx, 10
  jb nested_plain
  cmp ebx, 13
  jbe double_fault
nested_plain:
  mov ebx, ecx
  mov [S_error], edx
  or ecx, 0x100
  mov [S_vector], ecx
  jmp dispatch
double_fault:
  mov ebx, 8
  mov dword ptr [S_error], 0
  mov dword ptr [S_vector], 0x108
  jmp dispatch
triple_fault:
  mov ebx, MESSAGE_TRIPLE
  jmp crash

# Back to where the trap came from, as if it had not been.
.routine resume
  cmp dword ptr [S_user], 0
  je resume_kernel
  push dword ptr [S_ss]
  push dword ptr [S_esp]
resume_kernel:
  push dword ptr [S_flags]
  push dword ptr [S_cs]
  push dword ptr [S_eip]
  mov eax, [S_eax]
  mov ecx, [S_ecx]
  mov edx, [S_edx]
  mov ebx, [S_ebx]
  mov esi, [S_esi]
  push dword ptr [S_ds]
  FLAT_OUT
  iretd

# A trap while our own code ran.
.routine in_hole
  mov eax, [S_eip]
  cmp eax, safe_point
  je at_safe_point
  movzx ecx, byte ptr [S_vector]
  cmp ecx, 1
  je resume
  cmp eax, fault_iret
  je unwind_iret
  cmp eax, fault_far
  je unwind_far
  cmp eax, fault_ss
  je unwind_stack
  cmp eax, fault_far_call
  je unwind_far_call
  mov ecx, 0
next_simple:
  cmp eax, [ecx*4+simple_faults]
  je unwind_simple
  inc ecx
  cmp dword ptr [ecx*4+simple_faults], 0
  jne next_simple
  cmp eax, fault_enter
  je handler_fault
  mov ebx, MESSAGE_INSIDE
  jmp crash

# An interrupt at the end of `iret`: what it interrupts is the frame that IRET was to load.
at_safe_point:
  pop dword ptr [S_eax]
  jmp examine

# The slot's own far call lies on the stack: the guest faulted there.
unwind_simple:
  pop dword ptr [S_eip]
  sub dword ptr [S_eip], 7
  pop dword ptr [S_cs]
  jmp unwound
unwind_stack:
  push dword ptr [P_return]
  mov eax, [P_site]
  mov [S_eip], eax
  mov eax, [P_return+4]
  mov [S_cs], eax
  jmp unwound
unwind_far_call:
  mov eax, [P_return+8]
  push eax
  mov eax, [P_return]
  mov [esp+4], eax
  mov eax, [P_return+4]
  mov [esp+8], eax
  jmp unwound_site
unwind_iret:
  mov eax, [P_old_flags]
  mov [esp+8], eax
  mov eax, [P_old_if]
  mov [LD_irq_enabled], eax
unwind_far:
  mov eax, [esp+4]
  and eax, 3
  cmp eax, 1
  jne unwound_site
  and dword ptr [esp+4], 0xfffffffc
unwound_site:
  mov eax, [P_site]
  mov [S_eip], eax
  mov eax, [P_site+4]
  mov [S_cs], eax
unwound:
  and dword ptr [S_error], 0xffff
  jmp have_frame

# The handler's code segment was refused: the frame goes away again and a double fault follows.
handler_fault:
  jmp triple_fault

.routine simple_faults
  .long fault_es, fault_ds, fault_fs, fault_gs
  .long fault_ins8, fault_ins16, fault_ins32, fault_outs8, fault_outs16, fault_outs32, 0

# ------------------------------------------------------------------ start
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

# ------------------------------------------------------------------ here interrupts may come
.routine safe_send
  push eax
  mov eax, HC_send_interrupts
  HYPERCALL
safe_point:
  pop eax
  jmp fault_iret
