# Descriptor tables and segments: the guest's stay where they are; the real GDT follows those of privilege 3.

.routine gdt_load
  pushfq
  movzx eax, ax
  mov [rip+V_gdt_limit], eax
  mov [rip+V_gdt_base], rdx
  SAVE
  call mirror_table
  RESTORE
  popfq
  ret
.routine gdt_store
  mov eax, [rip+V_gdt_limit]
  mov rdx, [rip+V_gdt_base]
  ret
.routine idt_load
  movzx eax, ax
  mov [rip+V_idt_limit], eax
  mov [rip+V_idt_base], rdx
  ret
.routine idt_store
  mov eax, [rip+V_idt_limit]
  mov rdx, [rip+V_idt_base]
  ret
.routine ldt_store
  mov eax, [rip+V_ldt]
  ret
.routine tr_store
  mov eax, [rip+V_tr]
  ret

.routine ldt_load
  pushfq
  SAVE
  lea r10, [rip+ldt_load]
  movzx eax, ax
  test eax, 0xfffc
  je ldt_null
  call find_system
  jne system_gp
  cmp edi, 0x200
  jne system_gp
  bt rcx, 47
  jae system_np
  call wide_base
  mov [rip+P_ldt_base], rdx
  call descriptor_limit
  mov [rip+P_ldt_limit], edx
  jmp ldt_set
ldt_null:
  mov dword ptr [rip+P_ldt_limit], 0
ldt_set:
  mov [rip+V_ldt], eax
  jmp system_done

# LTR marks the descriptor busy in the guest's own table, as the CPU does.
.routine tr_load
  pushfq
  SAVE
  lea r10, [rip+tr_load]
  movzx eax, ax
  call find_system
  jne system_gp
  cmp edi, 0x900
  je tr_available
  test dword ptr [rip+V_efer], 0x400
  jne system_gp
  cmp edi, 0x100
  jne system_gp
tr_available:
  bt rcx, 47
  jae system_np
  or byte ptr [rsi+5], 2
  call wide_base
  mov [rip+P_tr_base], rdx
  mov [rip+V_tr], eax
system_done:
  RESTORE
  popfq
  ret

system_gp:
  mov ecx, 0x10d
  jmp descriptor_fault
system_np:
  mov ecx, 0x10b
  jmp descriptor_fault

# As `find_descriptor`, in the GDT only and 16 bytes long in long mode; EDI its S bit and type, at bits 12 to 8.
.routine find_system
  test al, 4
  jne system_none
  test dword ptr [rip+V_efer], 0x400
  je system_fits
  mov edi, eax
  and edi, 0xfff8
  lea edi, [rdi+15]
  cmp edi, [rip+V_gdt_limit]
  ja system_none
system_fits:
  call find_descriptor
  jne system_none
  mov rdi, rcx
  shr rdi, 32
  and edi, 0x1f00
  cmp eax, eax
  ret
system_none:
  test rsp, rsp
  ret

# EAX selector -> ZF set: RCX the descriptor, RSI its address; ZF clear: there is none.
.routine find_descriptor
  push rax
  movzx eax, ax
  test al, 4
  jne find_local
  and eax, 0xfff8
  je find_none
  lea esi, [rax+7]
  cmp esi, [rip+V_gdt_limit]
  ja find_none
  mov rsi, [rip+V_gdt_base]
  jmp find_read
find_local:
  and eax, 0xfff8
  lea esi, [rax+7]
  cmp esi, [rip+P_ldt_limit]
  ja find_none
  mov rsi, [rip+P_ldt_base]
find_read:
  lea rsi, [rsi+rax]
  mov rcx, [rsi]
  cmp eax, eax
  pop rax
  ret
find_none:
  test rsp, rsp
  pop rax
  ret

# RCX -> RDX base
.routine descriptor_base
  push rcx
  mov rdx, rcx
  shr rdx, 16
  and edx, 0xffffff
  shr rcx, 56
  shl ecx, 24
  or edx, ecx
  pop rcx
  ret
# RCX at RSI, a system descriptor -> RDX its base: 64 bits wide in long mode
.routine wide_base
  call descriptor_base
  test dword ptr [rip+V_efer], 0x400
  je wide_out
  push rcx
  mov ecx, [rsi+8]
  shl rcx, 32
  or rdx, rcx
  pop rcx
wide_out:
  ret
# RCX -> EDX limit in bytes
.routine descriptor_limit
  push rcx
  movzx edx, cx
  shr rcx, 32
  push rcx
  and ecx, 0xf0000
  or edx, ecx
  pop rcx
  test ecx, 0x800000
  je limit_bytes
  shl edx, 12
  or edx, 0xfff
limit_bytes:
  pop rcx
  ret

# The whole GDT of the guest: P_changed counts what the real one did not know. SAVEd registers are lost.
.routine mirror_table
  mov dword ptr [rip+P_changed], 0
  mov eax, 8
mirror_next:
  call mirror_one
  lea eax, [rax+8]
  cmp eax, 4096
  jb mirror_next
  ret

# EAX selector of the GDT: bring the real descriptor up to date. RCX, RDX, RSI, RDI, R10, R11 are lost.
.routine mirror_one
  test eax, 4
  jne mirror_out
  call find_descriptor
  jne mirror_null
  mov rsi, rcx
  shr rsi, 32
  and esi, 0x7000
  cmp esi, 0x7000
  je mirror_keep
mirror_null:
  mov ecx, 0
  jmp mirror_compare
mirror_keep:
  mov rsi, 0x10000000000
  or rcx, rsi
mirror_compare:
  mov edx, eax
  and edx, 0xff8
  lea rsi, [rip+P_gdt]
  cmp rcx, [rsi+rdx]
  je mirror_out
  inc dword ptr [rip+P_changed]
  push rax
  mov rdi, [rip+P_gdt_physical]
  lea rdi, [rdi+rdx]
  mov rsi, rcx
  mov eax, HC_update_descriptor
  syscall
  pop rax
mirror_out:
  ret

# -- segment registers --

.routine segment_store
  pushfq
  push rcx
  cmp edx, 1
  je store_virtual
  jb store_es
  cmp edx, 3
  jb store_virtual
  je store_ds
  cmp edx, 5
  je store_gs
  mov eax, fs
  jmp store_real
store_es:
  mov eax, es
  jmp store_real
store_ds:
  mov eax, ds
  jmp store_real
store_gs:
  mov eax, gs
store_real:
  movzx eax, ax
  cmp eax, FLAT_DATA
  jne store_out
store_virtual:
  lea rcx, [rip+V_segments]
  mov eax, [rcx+rdx*4]
store_out:
  pop rcx
  popfq
  ret

# EAX selector, EDX segment: what the guest's own descriptor allows is checked here.
.routine segment_load
  pushfq
  SAVE
  movzx eax, ax
  cmp edx, 2
  je load_stack
  test eax, 0xfffc
  je load_null
  mov r10d, edx
  call find_descriptor
  jne segment_gp
  mov rsi, rcx
  shr rsi, 32
  test esi, 0x1000
  je segment_gp
  mov edi, esi
  and edi, 0xa00
  cmp edi, 0x800
  je segment_gp
  mov edi, esi
  and edi, 0xc00
  cmp edi, 0xc00
  je load_privileged
  shr esi, 13
  and esi, 3
  mov edi, eax
  and edi, 3
  cmp edi, esi
  ja segment_gp
load_privileged:
  bt rcx, 47
  jae segment_np
  call descriptor_base
  mov rsi, rdx
  mov edx, r10d
  mov edi, FLAT_DATA
  test al, 4
  jne load_virtual
  push rcx
  shr rcx, 45
  and ecx, 3
  cmp ecx, 3
  pop rcx
  jne load_virtual
  push rdx
  push rsi
  call mirror_one
  pop rsi
  pop rdx
  mov edi, eax
load_virtual:
  test rsi, rsi
  je load_known
  cmp edx, 4
  jae load_known
  test dword ptr [rip+P_code_long], 1
  je segment_base
load_known:
  lea rcx, [rip+V_segments]
  mov [rcx+rdx*4], eax
load_real:
  cmp edx, 3
  je load_ds
  jb load_es
  cmp edx, 5
  je load_gs
  mov fs, edi
  mov edi, 0
  call set_base
  jmp load_done
load_gs:
  mov gs, edi
  mov [rip+P_gs], rsi
  mov edi, 2
  call set_base
  jmp load_done
load_es:
  mov es, edi
  jmp load_done
load_ds:
  mov ds, edi
load_done:
  RESTORE
  popfq
  ret
load_null:
  mov edi, eax
  mov esi, 0
  jmp load_virtual

load_stack:
  mov r10d, edx
  test eax, 0xfffc
  je stack_null
  call find_descriptor
  jne segment_gp
  mov rsi, rcx
  shr rsi, 32
  mov edi, esi
  and edi, 0x1a00
  cmp edi, 0x1200
  jne segment_gp
  mov edi, esi
  shr edi, 13
  or edi, eax
  test edi, 3
  jne segment_gp
  test esi, 0x8000
  je segment_np
  test dword ptr [rip+P_code_long], 1
  jne stack_set
  call descriptor_base
  test rdx, rdx
  jne segment_base
stack_set:
  mov [rip+V_segments+8], eax
  jmp load_done
stack_null:
  test dword ptr [rip+P_code_long], 1
  je segment_gp
  test eax, 3
  je stack_set

# 32-bit code with a segment that does not begin at 0: ours, which are flat, would be wrong in silence.
segment_base:
  lea rdi, [rip+MESSAGE_BASE]
  jmp crash

segment_gp:
  mov ecx, 0x10d
  jmp segment_fault
segment_np:
  mov ecx, 0x10b
  cmp r10d, 2
  jne segment_fault
  mov ecx, 0x10c
segment_fault:
  lea r10, [rip+segment_load]
# ECX the vector and kind, EAX the selector, R10 the routine whose SAVEd registers lie on the stack.
descriptor_fault:
  movzx edx, byte ptr [rip+I_mask]
  mov byte ptr [rip+I_mask], 1
  mov [rip+P_raise_mask], edx
  and eax, 0xfffc
  mov [rip+P_raise_error], rax
  mov [rip+P_raise_vector], rcx
  mov [rip+P_raise_rip], r10
  RESTORE
  popfq
  jmp raise

# -- inspection: the flags but ZF stay --

.routine lar
  pushfq
  push rcx
  push rsi
  push rdi
  call find_descriptor
  jne look_no
  mov edi, LAR_TYPES
  call visible
  jne look_no
  shr rcx, 32
  and ecx, 0xffff00
  mov edx, ecx
look_yes:
  or dword ptr [rsp+24], 0x40
  jmp look_out
look_no:
  and dword ptr [rsp+24], 0xffffffbf
look_out:
  pop rdi
  pop rsi
  pop rcx
  popfq
  ret
.routine lsl
  pushfq
  push rcx
  push rsi
  push rdi
  call find_descriptor
  jne look_no
  mov edi, LSL_TYPES
  call visible
  jne look_no
  call descriptor_limit
  jmp look_yes

# RCX descriptor, EAX selector, EDI allowed system types -> ZF set if privilege 0 with that RPL may see it.
.routine visible
  push rax
  push rcx
  shr rcx, 32
  test ecx, 0x1000
  jne visible_segment
  mov esi, ecx
  shr esi, 8
  and esi, 15
  bt edi, esi
  jae visible_no
  jmp visible_level
visible_segment:
  mov esi, ecx
  and esi, 0xc00
  cmp esi, 0xc00
  je visible_out
visible_level:
  shr ecx, 13
  and ecx, 3
  and eax, 3
  cmp eax, ecx
  ja visible_no
  cmp eax, eax
visible_out:
  pop rcx
  pop rax
  ret
visible_no:
  test rsp, rsp
  pop rcx
  pop rax
  ret

.routine verr
  pushfq
  push rcx
  push rsi
  push rdi
  call find_descriptor
  jne look_no
  bt rcx, 44
  jae look_no
  mov edi, 0
  call visible
  jne look_no
  bt rcx, 43
  jae look_yes
  bt rcx, 41
  jae look_no
  jmp look_yes
.routine verw
  pushfq
  push rcx
  push rsi
  push rdi
  call find_descriptor
  jne look_no
  bt rcx, 44
  jae look_no
  mov edi, 0
  call visible
  jne look_no
  bt rcx, 43
  jb look_no
  bt rcx, 41
  jae look_no
  jmp look_yes
