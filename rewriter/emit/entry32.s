# The first code of a patched image at a 32-bit entry: reserve the resident block in the boot
# protocol's memory map, give the guest a stack, go on to the entry that the image had.
# Runs at its physical address with flat segments and paging off (Multiboot 1 section 3.2,
# Multiboot 2 section 3.3, Linux boot.rst "32-bit boot protocol", Xen's pvh.pandoc). It keeps
# every general register, and does its work once.
# Symbols given: RES_START RES_END IMAGE_END (all ones: the block is behind the image) ZERO_START
# ZERO_SIZE (what a loader should have cleared) BUFFER BUFFER_END STACK_TOP, and per entry the text that
# `rewriter.emit.entry` puts at the front (labels entry_N) and at the back (labels leave_N).

save:
  mov [saved], eax
  mov [saved+4], ebx
  mov [saved+8], ecx
  mov [saved+12], edx
  mov [saved+16], esi
  mov [saved+20], edi
  mov [saved+24], ebp
  pop eax
  mov esp, STACK_TOP
  mov [leave], eax
  cld
  cmp dword ptr [done], 0
  jne finish
  mov dword ptr [done], 1
  mov edi, ZERO_START
  mov ecx, ZERO_SIZE
  mov eax, 0
  rep stosb
  mov edi, BUFFER
  mov eax, [protocol]
  cmp eax, 2
  je linux
  cmp eax, 3
  je pvh
  mov eax, [saved]
  cmp eax, 0x2badb002
  je multiboot1
  cmp eax, 0x36d76289
  je multiboot2

finish:
  mov eax, [saved]
  mov ebx, [saved+4]
  mov ecx, [saved+8]
  mov edx, [saved+12]
  mov esi, [saved+16]
  mov edi, [saved+20]
  mov ebp, [saved+24]
  jmp dword ptr [leave]

# Multiboot 1: the map is copied into the buffer. mem_lower ends before a block in conventional
# memory. mem_upper tells only of memory without holes
# from 1 MiB on; it ends before the block now, unless the block lies below the image and more
# memory lies above: then it stays, as the memory map rules and mem_upper would lose the most.
multiboot1:
  mov ebp, ebx
  test dword ptr [ebp], 1
  jz no_upper
  mov eax, RES_START
  shr eax, 10
  cmp [ebp+4], eax
  jbe no_lower
  mov [ebp+4], eax
no_lower:
  mov ecx, [ebp+8]
  add ecx, 1024
  mov eax, RES_START
  shr eax, 10
  cmp ecx, eax
  jbe no_upper
  sub eax, 1024
  jbe no_upper
  mov edx, IMAGE_END
  shr edx, 10
  cmp ecx, edx
  jbe lower
  sub ecx, edx
  cmp ecx, eax
  ja no_upper
lower:
  mov [ebp+8], eax
no_upper:
  test dword ptr [ebp], 0x40
  jz finish
  mov dword ptr [stride], 24
  mov dword ptr [lead], 4
  mov esi, [ebp+48]
  mov ebx, [ebp+44]
  add ebx, esi
next1:
  cmp esi, ebx
  jae end1
  lea eax, [edi+96]
  cmp eax, BUFFER_END
  ja end1
  mov eax, [esi]
  push eax
  add esi, 4
  call split
  pop eax
  add esi, eax
  jmp next1
end1:
  mov eax, edi
  sub eax, BUFFER
  mov [ebp+44], eax
  mov dword ptr [ebp+48], BUFFER
  jmp finish

# Multiboot 2: the whole information is copied, tag 6 grows.
multiboot2:
  mov eax, [ebx]
  add eax, 96
  cmp eax, BUFFER_END-BUFFER
  ja finish
  mov esi, ebx
  mov ebp, [ebx]
  add ebp, ebx
  add esi, 8
  add edi, 8
next2:
  cmp esi, ebp
  jae end2
  mov ecx, [esi+4]
  cmp dword ptr [esi], 6
  je map2
  add ecx, 7
  and ecx, -8
  shr ecx, 2
  rep movsd
  jmp next2
map2:
  push edi
  mov eax, [esi+8]
  mov [stride], eax
  mov dword ptr [lead], 0
  mov dword ptr [edi], 6
  mov [edi+8], eax
  mov eax, [esi+12]
  mov [edi+12], eax
  add edi, 16
  lea ebx, [esi+ecx]
  add esi, 16
entry2:
  cmp esi, ebx
  jae done2
  call split
  add esi, [stride]
  jmp entry2
done2:
  pop edx
  mov eax, edi
  sub eax, edx
  mov [edx+4], eax
  add edi, 7
  and edi, -8
  add esi, 7
  and esi, -8
  jmp next2
end2:
  mov eax, edi
  sub eax, BUFFER
  mov [BUFFER], eax
  mov dword ptr [BUFFER+4], 0
  mov dword ptr [saved+4], BUFFER
  jmp finish

# Linux: e820 table of the zero page (count at 0x1e8, 20-byte entries at 0x2d0), written back.
linux:
  mov ebp, [saved+16]
  mov dword ptr [stride], 20
  mov dword ptr [lead], 0
  lea esi, [ebp+0x2d0]
  movzx ebx, byte ptr [ebp+0x1e8]
next3:
  test ebx, ebx
  jz end3
  call split
  add esi, 20
  sub ebx, 1
  jmp next3
end3:
  mov eax, edi
  sub eax, BUFFER
  cmp eax, 2560
  jbe fits3
  mov eax, 2560
fits3:
  mov ecx, eax
  shr ecx, 2
  mov edx, 0
  mov ebx, 20
  div ebx
  mov [ebp+0x1e8], al
  mov esi, BUFFER
  lea edi, [ebp+0x2d0]
  rep movsd
  jmp finish

# PVH: memory map at paddr [+40] (u64), entries [+48], 24 bytes each; copied into the buffer.
pvh:
  mov ebp, [saved+4]
  cmp dword ptr [ebp], 0x336ec578
  jne finish
  cmp dword ptr [ebp+4], 0
  je finish
  mov esi, [ebp+40]
  mov ebx, [ebp+48]
  mov dword ptr [stride], 24
  mov dword ptr [lead], 0
next4:
  test ebx, ebx
  jz end4
  lea eax, [edi+96]
  cmp eax, BUFFER_END
  ja end4
  call split
  add esi, 24
  sub ebx, 1
  jmp next4
end4:
  mov eax, edi
  sub eax, BUFFER
  mov edx, 0
  mov ebx, 24
  div ebx
  mov [ebp+48], eax
  mov dword ptr [ebp+40], BUFFER
  mov dword ptr [ebp+44], 0
  jmp finish

# One map entry at ESI (base, length, type) becomes one to three at EDI, the block of type 2.
split:
  mov eax, [esi]
  mov edx, [esi+4]
  mov [first], eax
  mov [first+4], edx
  add eax, [esi+8]
  adc edx, [esi+12]
  mov [limit], eax
  mov [limit+4], edx
  mov ecx, [esi+16]
  mov [kind], ecx
  cmp ecx, 1
  jne put
  cmp dword ptr [first+4], 0
  jne put
  cmp dword ptr [first], RES_END
  jae put
  cmp dword ptr [limit+4], 0
  jne overlaps
  cmp dword ptr [limit], RES_START
  jbe put
overlaps:
  cmp dword ptr [first], RES_START
  jae second
  push edx
  push eax
  mov dword ptr [limit], RES_START
  mov dword ptr [limit+4], 0
  call put
  pop eax
  pop edx
  mov [limit], eax
  mov [limit+4], edx
  mov dword ptr [first], RES_START
second:
  mov dword ptr [kind], 2
  cmp dword ptr [limit+4], 0
  jne third
  cmp dword ptr [limit], RES_END
  jbe put
third:
  mov dword ptr [limit], RES_END
  push edx
  push eax
  mov dword ptr [limit+4], 0
  call put
  pop eax
  pop edx
  mov [limit], eax
  mov [limit+4], edx
  mov dword ptr [first], RES_END
  mov dword ptr [kind], 1

put:
  push edx
  push eax
  mov edx, edi
  cmp dword ptr [lead], 0
  je unled
  mov dword ptr [edi], 20
  add edx, 4
  jmp fields
unled:
  cmp dword ptr [stride], 24
  jb fields
  mov dword ptr [edx+20], 0
fields:
  mov ecx, [first]
  mov [edx], ecx
  mov eax, [limit]
  sub eax, ecx
  mov [edx+8], eax
  mov ecx, [first+4]
  mov [edx+4], ecx
  mov eax, [limit+4]
  mov ecx, [limit]
  sub ecx, [first]
  sbb eax, [first+4]
  mov [edx+12], eax
  mov ecx, [kind]
  mov [edx+16], ecx
  add edi, [stride]
  pop eax
  pop edx
  ret

.align 8
first:
  .quad 0
limit:
  .quad 0
saved:
  .long 0, 0, 0, 0, 0, 0, 0
kind:
  .long 0
stride:
  .long 0
lead:
  .long 0
done:
  .long 0
protocol:
  .long 0
leave:
  .long 0
