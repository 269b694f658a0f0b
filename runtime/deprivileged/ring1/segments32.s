# Segment registers: selectors of ring 0 run in ring 1 and are shown as ring 0.

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
# The old selector may be no segment any more: it is not loaded again, but shown if the new one is refused.
load_ds:
  pop dword ptr [P_ds]
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
