"""Native kernels that load an SS of limit 0 and go on without a stack, as multiboot ELF files.

While there is no stack, the stack pointer names an address without memory: whatever pushes there and
pops again gets all ones. Each kernel keeps what it finds in a table and sends it to the serial port.
"""

from __future__ import annotations

from collections.abc import Mapping

from pvpatch.abi.asm import Assembly, assemble
from tests.image.builders import Load, elf, multiboot1_header

__all__ = ["ENTRY", "UNMAPPED", "WORDS", "faulting32", "kernel32", "kernel64"]

BASE = 0x100000
ENTRY = BASE + 0x40
LONG = BASE + 0x2000
"""64-bit code."""
DATA = BASE + 0x3000
POINTER = DATA + 0x800
"""A far pointer to code of the i386 kernel."""
TABLES = BASE + 0x4000
STACK = BASE + 0x8000
IDT = BASE + 0x7800
SIZE = 0x10000
NOWHERE = 0xD0000000
"""No memory is there."""
UNMAPPED = 0x00C00000
"""Behind the only page that `faulting32` maps."""
WORDS = 8
"""Words that a kernel reports."""
EMPTY = 0x55555555
SHIFT = 0x1000
"""Base of the segment that the second far jump goes to."""

_DATA = f"""
gdt:
 .quad 0
 .quad CODE
 .quad 0x00cf93000000ffff
 .quad 0x0040930000000000
 .quad 0x00cf9b001000ffff
pseudo:
 .word 39
 .long gdt
interrupts:
 .word 0x7ff
 .long {IDT}
none:
 .word 0x18
flat:
 .word 0x10
stack:
 .long {STACK}
 .word 0x10
report:
 .rept {WORDS}
 .long {EMPTY}
 .endr
end:
"""
_SEND = """
 mov esi, report
send:
 mov al, [INDEX]
 mov edx, 0x3f8
 out dx, al
 inc esi
 cmp esi, end
 jne send
 mov eax, 0
 out 0xf4, eax
stay:
 jmp stay
"""
_LIVE = f"""
 lgdt [pseudo]
 mov eax, 0x10
 mov ds, eax
 mov es, eax
 mov ecx, 0x22222222
 mov edx, 0x3fd
 mov ebx, 0x11111111
 mov esi, 0x44444444
 mov edi, 0x66666666
 mov ebp, 0x77777777
 mov esp, {NOWHERE}
 mov eax, 0x18
 stc
 mov ss, ax
"""
"""Every register is live over the load of SS and what follows, and so is the carry flag."""
_SUM = """
 add eax, ecx
 add eax, ebx
 add eax, esi
 add eax, edi
 add eax, ebp
 add eax, esp
"""
_NARROW = f"""
{_LIVE}
 ljmp 8, after
after:
 setb byte ptr [report+4]
 mov [report], eax
{_SUM}
 mov [report+8], eax
 mov ss, [none]
 in al, dx
 mov [report+5], al
 mov eax, cr0
 mov [report+12], eax
 lidt [interrupts]
 mov es, [flat]
 cli
 sidt [report+16]
 str [report+22]
 .byte 0xff, 0x2d
 .long {POINTER}
through:
 .byte 0x0f, 0xb2, 0x25
 .long stack
 mov ebx, cs
 mov [report+24], ebx
 push 0x1234
 pop dword ptr [report+28]
"""
_ENTER_LONG = f"""
 mov edi, {TABLES}
 mov dword ptr [edi], {TABLES + 0x1003}
 mov dword ptr [edi+0x1000], {TABLES + 0x2003}
 mov dword ptr [edi+0x2000], 0x83
 mov eax, edi
 mov cr3, eax
 mov eax, cr4
 or eax, 0x20
 mov cr4, eax
 mov ecx, 0xc0000080
 rdmsr
 or eax, 0x100
 wrmsr
 mov eax, cr0
 or eax, 0x80000000
 mov cr0, eax
{_LIVE}
 ljmp 8, {LONG}
"""
_IN_LONG = f"""
 mov r8d, report
 setb byte ptr [r8+4]
 mov [r8], eax
{_SUM}
 mov [r8+8], eax
 mov rsp, {STACK}
 mov eax, cs
 mov [r8+12], eax
 mov eax, 0x10
 mov ss, eax
 push 0x1234
 pop rax
 mov [r8+16], eax
"""


_FAULTING = f"""
 lgdt [pseudo]
 mov eax, 0x10
 mov ds, eax
 mov es, eax
 mov edi, {TABLES}
 mov dword ptr [edi], 0x83
 mov eax, handler
 mov [{IDT}+112], ax
 mov word ptr [{IDT}+114], 8
 mov word ptr [{IDT}+116], 0x8e00
 shr eax, 16
 mov [{IDT}+118], ax
 lidt [interrupts]
 mov cr3, edi
 mov eax, cr4
 or eax, 0x10
 mov cr4, eax
 mov eax, cr0
 or eax, 0x80000000
 mov cr0, eax
 mov esp, {STACK}
 mov ebx, 0x11111111
 mov eax, 0x10
 mov ss, ax
 mov ax, 0x18
 smsw [{UNMAPPED}]
 mov esp, {STACK}
handler:
 push eax
 mov eax, cr2
 mov [report], eax
 pop dword ptr [report+4]
 mov [report+8], ebx
"""


def _data(code: int) -> Assembly:
    return assemble(_DATA, 32, DATA, {"CODE": code})


def _elf(bits: int, parts: Mapping[int, bytes]) -> bytes:
    """Parts by address, behind a multiboot header."""
    content = bytearray(SIZE)
    for address, part in {BASE: multiboot1_header(), **parts}.items():
        content[address - BASE : address - BASE + len(part)] = part
    return elf(bits, (Load(BASE, BASE, bytes(content), SIZE, flags=7),), entry=ENTRY)


def kernel32() -> bytes:
    """i386: SS from a register and from memory, far jumps of both kinds, LSS, other calls between them."""
    data = _data(0x00CF9B000000FFFF)
    text = _NARROW + _SEND.replace("INDEX", "esi")
    code = assemble(text, 32, ENTRY, data.labels)
    pointer = (code.labels["through"] - SHIFT).to_bytes(4, "little") + b"\x20\0"
    return _elf(32, {ENTRY: code.code, DATA: data.code, POINTER: pointer})


def kernel64() -> bytes:
    """x86_64: the way into long mode, with SS loaded on it and a far jump to 64-bit code right behind."""
    data = _data(0x00AF9B000000FFFF)
    narrow = assemble(_ENTER_LONG, 32, ENTRY, data.labels).code
    wide = assemble(_IN_LONG + _SEND.replace("INDEX", "rsi"), 64, LONG, data.labels).code
    return _elf(64, {ENTRY: narrow, LONG: wide, DATA: data.code})


def faulting32() -> bytes:
    """i386 with 4 MiB pages: between the loads of SS and of the stack pointer a call stores where no page is.

    There is a stack, so the handler can tell what it found: the address, EAX and EBX.
    """
    data = _data(0x00CF9B000000FFFF)
    text = _FAULTING + _SEND.replace("INDEX", "esi")
    return _elf(32, {ENTRY: assemble(text, 32, ENTRY, data.labels).code, DATA: data.code})
