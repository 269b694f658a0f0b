"""Small kernels whose boot headers say where they are loaded and entered, as multiboot files.

Each clears nothing itself: it looks whether its zero-filled memory is clear, may then take all memory behind
its end up to 4 MiB, says "ok" and writes 0 to the exit port; at 64 bits from long mode.
"""

from __future__ import annotations

import struct

from pvpatch.abi.asm import assemble
from tests.image.builders import Load, elf, multiboot1_header

__all__ = ["BASE", "BSS", "END", "OWNED", "STATED", "kernel", "multiboot1_fields", "multiboot2_tags"]

BASE = 0x100000
ENTRY = BASE + 0xC0
BSS = BASE + 0x800
"""What lies behind the bytes of the file that are meant to be loaded."""
END = BASE + 0x8000
OWNED = 0x400000
STATED = BSS - BASE
_STACK, _TABLES = END - 0x1000, BASE + 0x2000

_CHECK = f"""
 mov esp, {_STACK}
 cli
 mov ecx, {(END - 0x2000 - BSS) // 4}
 mov edi, {BSS}
clear:
 cmp dword ptr [edi], 0
 jne wrong
 add edi, 4
 sub ecx, 1
 jne clear
"""
_OWN = f"""
 mov edi, {END}
 mov ecx, {OWNED - END}
 mov al, 1
 cld
 rep stosb
"""
_LONG = f"""
 mov edi, {_TABLES}
 mov dword ptr [edi], {_TABLES + 0x1003}
 mov dword ptr [edi+0x1000], {_TABLES + 0x2003}
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
 lgdt [pseudo]
 ljmp 8, {BASE + 0x400}
"""
_END = """
 mov edx, 0x3f8
 mov al, 0x6f
 out dx, al
 mov al, 0x6b
 out dx, al
 mov eax, 0
 out 0xf4, al
stay:
 cli
 hlt
 jmp stay
wrong:
 mov al, 1
 out 0xf4, al
 jmp stay
pseudo:
 .word 15
 .long gdt
gdt:
 .quad 0
 .quad 0x00af9b000000ffff
"""


def multiboot1_fields(flags: int = 0x10000, *, load_end: int = BSS, bss_end: int = END) -> bytes:
    """A multiboot 1 header that gives the addresses."""
    return multiboot1_header(flags, (BASE, BASE, load_end, bss_end, ENTRY))


def multiboot2_tags(*tags: tuple[int, tuple[int, ...]]) -> bytes:
    """A multiboot 2 header of tags: number and u32 values; the addresses are those of the kernel."""
    body = b""
    for kind, values in (*tags, (0, ())):
        data = struct.pack(f"<HHI{len(values)}I", kind, 0, 8 + 4 * len(values), *values)
        body += data + bytes(-len(data) % 8)
    length = 16 + len(body)
    return struct.pack("<4I", 0xE85250D6, 0, length, -(0xE85250D6 + length) & 0xFFFFFFFF) + body


def kernel(header: bytes, bits: int = 32, *, owns: bool = False, name_address: int = 0) -> bytes:
    """An ELF file of one segment with `header` at its start, linked and entered at its physical address.

    With `owns` it fills the memory behind its end; `name_address` is a number that its code holds.
    """
    assert len(header) <= ENTRY - BASE
    text = _CHECK + (_OWN if owns else "") + (f" mov ebp, {name_address}\n" if name_address else "")
    if bits == 32:
        code = assemble(text + _END, 32, ENTRY).code
        content = header.ljust(ENTRY - BASE, b"\0") + code
    else:
        narrow = assemble(text + _LONG + _END, 32, ENTRY).code
        wide = assemble(" mov rax, cr0\n mov cr0, rax\n" + _END, 64, BASE + 0x400).code
        content = (header.ljust(ENTRY - BASE, b"\0") + narrow).ljust(0x400, b"\0") + wide
    assert len(content) <= STATED
    return elf(bits, (Load(BASE, BASE, content.ljust(STATED, b"\0"), END - BASE, 7),), entry=ENTRY)
