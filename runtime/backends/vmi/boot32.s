# The first instructions on a fresh machine: native, at privilege 0, paging off.

# At a physical address; EBP is that of the first resident page. Nothing here names a linear address before
# the ROM has mapped them.
.routine boot
  lea esp, [ebp+STACK_END]
  lgdt [ebp+NATIVE_GDT]
  push FLAT_CS
  and dword ptr [esp], 0xfffc
  lea eax, [ebp+boot_flat-HOLE]
  push eax
  retf
boot_flat:
  mov eax, FLAT_DS
  and eax, 0xfffc
  mov ds, eax
  mov es, eax
  mov ss, eax
  mov fs, eax
  mov gs, eax
  lea eax, [ebp+IDENTITY]
  mov cr3, eax
  mov eax, 0x10
  mov cr4, eax
  mov eax, cr0
  or eax, 0x80010000
  mov cr0, eax
  mov esi, 0xc0000
boot_search:
  cmp word ptr [esi], 0xaa55
  jne boot_next
  cmp dword ptr [esi+8], 0x696d5663
  je boot_found
boot_next:
  lea esi, [esi+2048]
  cmp esi, 0xe0000
  jb boot_search
boot_failed:
  ud2
boot_found:
  lea eax, [esi+0x80]
  call eax
  cmp eax, 0
  jne boot_failed
  mov edi, 0
boot_call:
  mov eax, [edi*4+vmi_numbers]
  lea ecx, [esi+0x88]
  call ecx
  cmp dl, 1
  jne boot_failed
  mov [edi*4+P_calls], eax
  inc edi
  cmp edi, VMI_COUNT
  jne boot_call
  mov eax, boot_high
  jmp eax

# From here on in our own part of the address space.
.routine boot_high
  mov esp, STACK_TOP
  mov eax, P_gdt_operand
  call dword ptr cs:[VMI_SetGDT]
  mov eax, FLAT_DS
  mov ds, eax
  mov es, eax
  mov fs, eax
  mov gs, eax
  mov ebx, 0
boot_gate:
  mov ecx, ebx
  shl ecx, 4
  lea ecx, [ecx+STUBS]
  mov edx, ecx
  and ecx, 0xffff
  or ecx, GATE_SELECTOR
  and edx, 0xffff0000
  or edx, 0x8f00
  cmp ebx, 3
  jb boot_gate_store
  cmp ebx, 4
  ja boot_gate_store
  or edx, 0x6000
boot_gate_store:
  mov [ebx*8+IDT], ecx
  mov [ebx*8+IDT+4], edx
  inc ebx
  cmp ebx, 256
  jne boot_gate
  mov eax, P_idt_operand
  call dword ptr cs:[VMI_SetIDT]
  mov eax, FLAT_DS
  mov edx, STACK_TOP
  call dword ptr cs:[VMI_UpdateKernelStack]
  mov eax, APIC_LVTT
  mov edx, ALARM_VECTOR
  call dword ptr cs:[VMI_APICWrite]
  call dword ptr cs:[VMI_GetCycleFrequency]
  cmp edx, 0
  jne boot_failed
  mov [P_frequency], eax
  call boot_pic
  mov eax, [B_eax]
  mov ecx, [B_ecx]
  mov edx, [B_edx]
  mov ebx, [B_ebx]
  mov esi, [B_esi]
  mov edi, [B_edi]
  mov ebp, [B_ebp]
  mov esp, [B_esp]
  jmp dword ptr [B_entry]

# The 8259s as firmware leaves them, all lines masked, but with our vectors.
.routine boot_pic
  mov ecx, 0
boot_pic_next:
  movzx edx, byte ptr [ecx*2+pic_words]
  mov al, byte ptr [ecx*2+pic_words+1]
  out dx, al
  inc ecx
  cmp ecx, 10
  jne boot_pic_next
  ret

.routine pic_words
  .byte 0x20, 0x11, 0x21, PIC_VECTORS, 0x21, 4, 0x21, 1, 0x21, 0xff
  .byte 0xa0, 0x11, 0xa1, PIC_VECTORS+8, 0xa1, 2, 0xa1, 1, 0xa1, 0xff
