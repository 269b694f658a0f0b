# CPUID, model specific registers, segment bases, and the ports that are listened to.

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
  cmp byte ptr [rsp+3], 0x40
  je cpuid_state
cpuid_out:
  lea rsp, [rsp+8]
  popfq
  ret
cpuid_basic:
  and ecx, 0xf3fdffd7
  and edx, 0xfffffdff
  or edx, 0x2808
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
