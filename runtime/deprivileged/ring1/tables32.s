# Descriptor tables: the guest's stay where they are, the host's copy follows them entry by entry.

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
  test eax, 0xfffc
  je ldt_null
  test al, 4
  jne system_refused
  call find_descriptor
  jne system_refused
  push edx
  and dh, 0x1f
  cmp dh, 2
  pop edx
  jne system_refused
  test dh, 0x80
  je system_absent
  call descriptor_base
  mov [P_ldt_base], esi
  call descriptor_limit
  mov [P_ldt_limit], esi
  jmp ldt_set
ldt_null:
  mov dword ptr [P_ldt_limit], 0
ldt_set:
  mov [V_ldt], eax
system_out:
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
  test al, 4
  jne system_refused
  call find_descriptor
  jne system_refused
  push edx
  and dh, 0x17
  cmp dh, 1
  pop edx
  jne system_refused
  test dh, 0x80
  je system_absent
  or byte ptr [esi+5], 2
  call descriptor_base
  mov [P_tr_base], esi
  mov [V_tr], eax
  jmp system_out

# #GP or #NP of LLDT and LTR: EAX the selector, and on the stack what they have pushed.
.routine system_refused
  mov ecx, 0x10d
  jmp system_fault
system_absent:
  mov ecx, 0x10b
system_fault:
  and eax, 0xfffc
  mov [S_error], eax
  mov [S_vector], ecx
  mov dword ptr [S_nested], 0
  mov dword ptr [S_user], 0
  pop dword ptr [S_ds]
  pop dword ptr [S_esi]
  pop dword ptr [S_edx]
  pop dword ptr [S_ecx]
  pop dword ptr [S_eax]
  pop dword ptr [S_flags]
  pop dword ptr [S_eip]
  sub dword ptr [S_eip], 7
  pop dword ptr [S_cs]
  mov [S_ebx], ebx
  movzx ebx, cl
  jmp dispatch

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
  LOAD_DESCRIPTOR
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
