# Ports (which fault, and are carried out outside), CPUID, MSRs and the TLB.

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
  PIC_BASE
out8_seen:
  pop ecx
  pop eax
  FLAT_OUT
out8_go:
  popfd
  out dx, al
  retf

# CPUID runs natively; leaving out what a kernel at privilege 1 has not is up to us. So are the leaves of
# the hypervisor (40......): what they announce is for kernels that speak to it themselves.
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
  cmp byte ptr [esp+3], 0x40
  je cpuid_state
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
  INVALIDATE
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
  FLUSH
  jmp invalidate_out

.routine tlb_flush_all
  pushfd
  FLAT_IN
  test dword ptr [V_cr0], 0x80000000
  je invalidate_out
  FLUSH
  jmp invalidate_out
