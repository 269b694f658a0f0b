# The first code of a patched flat image at its 64-bit Linux entry (boot.rst, "64-bit boot
# protocol": RSI holds the zero page, memory is mapped one to one). Same work as entry32.s:
# reserve the resident block in the e820 table, give a stack, go on. Every register is kept.
# Symbols given: RES_START RES_END BUFFER STACK_TOP TARGET.

  mov rsp, STACK_TOP
  push rax
  push rbx
  push rcx
  push rdx
  push rsi
  push rdi
  push r8
  push r9
  push r10
  cld
  lea rax, [rip+done]
  cmp dword ptr [rax], 0
  jne finish
  mov dword ptr [rax], 1
  mov r10, rsi
  movzx ebx, byte ptr [rsi+0x1e8]
  lea rsi, [rsi+0x2d0]
  mov edi, BUFFER
next:
  test ebx, ebx
  jz end
  mov rax, [rsi]
  mov rcx, [rsi+8]
  add rcx, rax
  mov edx, [rsi+16]
  add rsi, 20
  sub ebx, 1
  cmp edx, 1
  jne whole
  mov r8d, RES_START
  mov r9d, RES_END
  cmp rax, r9
  jae whole
  cmp rcx, r8
  jbe whole
  cmp rax, r8
  jae second
  push rcx
  mov rcx, r8
  call put
  pop rcx
  mov rax, r8
second:
  mov edx, 2
  cmp rcx, r9
  jbe whole
  push rcx
  mov rcx, r9
  call put
  pop rcx
  mov rax, r9
  mov edx, 1
whole:
  call put
  jmp next
end:
  mov eax, edi
  sub eax, BUFFER
  cmp eax, 2560
  jbe fits
  mov eax, 2560
fits:
  mov ecx, eax
  shr ecx, 2
  mov edx, 0
  mov ebx, 20
  div ebx
  mov [r10+0x1e8], al
  mov esi, BUFFER
  lea rdi, [r10+0x2d0]
  rep movsd
finish:
  pop r10
  pop r9
  pop r8
  pop rdi
  pop rsi
  pop rdx
  pop rcx
  pop rbx
  pop rax
  jmp leave_0

put:
  mov [rdi], rax
  sub rcx, rax
  mov [rdi+8], rcx
  mov [rdi+16], edx
  add rdi, 20
  ret

.align 8
done:
  .long 0
