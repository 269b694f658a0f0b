"""Native kernels that fault on purpose, at sites and at what stands beside them, as multiboot ELF files.

A handler for every exception writes down what it was shown: which snippet runs, vector, error code, EIP,
CS, flags, all registers as they were, segment registers and CR2; then it goes on behind the snippet. The
words leave by the serial port at the end.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from functools import cache

from pvpatch.abi.asm import Assembly, assemble
from tests.image.builders import Load, elf, multiboot1_header, with_dynamic

__all__ = ["REGISTERS", "UNMAPPED", "fields", "kernel"]

BASE = 0x200000
ENTRY = BASE + 0x40
LONG = BASE + 0x1000
DATA = BASE + 0x6000
TABLES = BASE + 0x8000
IDT = BASE + 0xC000
STACK = BASE + 0xF000
LOG = BASE + 0x10000
POINTERS, DYNAMIC, RECORDS = DATA + 0x800, DATA + 0xF00, DATA + 0x1000
"""In files that say what they relocate."""
SIZE = 0x20000
UNMAPPED = 0xD0001000
"""No page is there."""

REGISTERS = {
    32: ("eax", "ecx", "edx", "ebx", "esp", "ebp", "esi", "edi"),
    64: ("rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", *(f"r{n}" for n in range(8, 16))),
}
_SEGMENTS = ("ds", "es", "fs", "gs", "ss")


def fields(bits: int) -> tuple[str, ...]:
    """What a record says, a word each."""
    return ("snippet", "vector", "error", "ip", "cs", "flags", *REGISTERS[bits], *_SEGMENTS, "cr2", "dr6")


def _tables(bits: int) -> str:
    code = 0x00CF9B000000FFFF if bits == 32 else 0x00AF9B000000FFFF
    return f"""
gdt:
 .quad 0
 .quad {code}
 .quad 0x00cf93000000ffff
 .quad 0x00cf13000000ffff
 .quad 0x00cf1b000000ffff
 .quad 0x00cffb000000ffff
 .quad 0x0000890000000067, 0
 .quad 0x0000820000000017, 0
 .quad 0x0000020000000017, 0
 .quad 0x0000090000000067, 0
pseudo:
 .word 111
 .long gdt, 0
interrupts:
 .word {256 * bits // 4 - 1}
 .long {IDT}, 0
resume:
 .quad 0
snippet:
 .quad 0
cursor:
 .quad {LOG}
scratch:
 .quad 0, 0, 0, 0
"""


@cache
def data(bits: int) -> Assembly:
    """The kernel's tables and variables.

    Selector 0x18 is data and 0x20 code that is not present, 0x28 code of user mode; 0x30 is a task's, 0x40 a
    local descriptor table's, 0x50 and 0x60 are such a table's and a task's that are not present.
    """
    return assemble(_tables(bits), 32, DATA)


def symbols(bits: int) -> dict[str, int]:
    """What snippets may name, besides their own labels."""
    return dict(data(bits).labels) | {"UNMAPPED": UNMAPPED, "STACK": STACK, "DATA": DATA}


_START = f"""
 mov edi, {TABLES}
 mov ecx, 0x1000
 mov eax, 0
clear:
 mov [edi+ecx], eax
 sub ecx, 4
 jne clear
 lgdt [pseudo]
 mov eax, 0x10
 mov ds, eax
 mov es, eax
 mov fs, eax
 mov gs, eax
 mov ss, eax
 mov esp, {STACK}
"""
_PAGING32 = f"""
 ljmp 8, flat
flat:
 mov dword ptr [{TABLES}], 0x83
 mov eax, {TABLES}
 mov cr3, eax
 mov eax, cr4
 or eax, 0x10
 mov cr4, eax
 mov eax, cr0
 or eax, 0x80000000
 mov cr0, eax
"""
_PAGING64 = f"""
 mov dword ptr [{TABLES}], {TABLES + 0x1003}
 mov dword ptr [{TABLES}+0x1000], {TABLES + 0x2003}
 mov dword ptr [{TABLES}+0x2000], 0x83
 mov dword ptr [{TABLES}+0x2008], 0x200083
 mov eax, {TABLES}
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
 ljmp 8, {LONG}
"""
_CODES = frozenset({8, 10, 11, 12, 13, 14, 17})


def _stubs(bits: int) -> str:
    """A stub per exception, 16 bytes each, and the gates made of them."""
    text = " .align 16\nstubs:\n"
    for vector in range(32):
        text += f" .align 16\nstub{vector}:\n"
        text += "" if vector in _CODES else " push 0\n"
        text += f" push {vector}\n jmp caught\n"
    return text


def _gates(bits: int) -> str:
    size, last = bits // 4, 32
    load = " lidt [interrupts]" if bits == 32 else " mov edi, interrupts\n lidt [rdi]"
    at = "edi" if bits == 32 else "rdi"
    return f"""
 mov edi, {IDT}
 mov eax, stubs
 mov ecx, {last}
gate:
 mov [{at}], ax
 mov word ptr [{at}+2], 8
 mov word ptr [{at}+4], 0x8e00
 mov ebx, eax
 shr ebx, 16
 mov [{at}+6], bx
 add eax, 16
 add edi, {size}
 dec ecx
 jne gate
{load}
"""


_CAUGHT32 = """
caught:
 pushad
 mov ebx, [cursor]
 mov eax, [snippet]
 mov [ebx], eax
 mov eax, [esp+32]
 mov [ebx+4], eax
 mov eax, [esp+36]
 mov [ebx+8], eax
 mov eax, [esp+40]
 mov [ebx+12], eax
 mov eax, [esp+44]
 mov [ebx+16], eax
 mov eax, [esp+48]
 mov [ebx+20], eax
 mov eax, [esp+28]
 mov [ebx+24], eax
 mov eax, [esp+24]
 mov [ebx+28], eax
 mov eax, [esp+20]
 mov [ebx+32], eax
 mov eax, [esp+16]
 mov [ebx+36], eax
 lea eax, [esp+52]
 mov [ebx+40], eax
 mov eax, [esp+8]
 mov [ebx+44], eax
 mov eax, [esp+4]
 mov [ebx+48], eax
 mov eax, [esp]
 mov [ebx+52], eax
 mov eax, ds
 mov [ebx+56], eax
 mov eax, es
 mov [ebx+60], eax
 mov eax, fs
 mov [ebx+64], eax
 mov eax, gs
 mov [ebx+68], eax
 mov eax, ss
 mov [ebx+72], eax
 mov eax, cr2
 mov [ebx+76], eax
 mov eax, dr6
 mov [ebx+80], eax
 lea ebx, [ebx+84]
 mov [cursor], ebx
EXTRA
 mov eax, [resume]
 cmp eax, 0
 je again
 mov [esp+40], eax
again:
 popad
 lea esp, [esp+8]
 iretd
"""


def _caught64() -> str:
    lines = ["caught:", " push rax", " push rbx", " mov ebx, cursor", " mov rbx, [rbx]"]

    def keep(index: int, source: str) -> None:
        if source != "rax":
            lines.append(f" mov rax, {source}")
        lines.append(f" mov [rbx+{8 * index}], rax")

    lines.append(" mov eax, snippet")
    keep(0, "[rax]")
    for index, offset in enumerate((16, 24, 32, 40, 48), 1):
        keep(index, f"[rsp+{offset}]")
    for index, name in enumerate(REGISTERS[64], 6):
        keep(index, {"rax": "[rsp+8]", "rbx": "[rsp]", "rsp": "[rsp+56]"}.get(name, name))
    for index, name in enumerate(_SEGMENTS, 22):
        keep(index, name)
    keep(27, "cr2")
    keep(28, "dr6")
    lines += [
        " lea rbx, [rbx+232]", " mov eax, cursor", " mov [rax], rbx", "EXTRA", " mov eax, resume",
        " mov rax, [rax]",
        " cmp rax, 0", " je again",
        " mov [rsp+32], rax", "again:", " pop rbx", " pop rax", " lea rsp, [rsp+16]", " iretq",
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def _snippets(bits: int, texts: tuple[str, ...], returns: bool, stepped: bool) -> str:
    """Each with known registers, and with a place to go on at unless the handler `returns`."""
    small, a, b = ("e", "eax", "ebx") if bits == 32 else ("r", "rax", "rbx")
    out = ""
    for number, text in enumerate(texts):
        out += f" mov {small}sp, {STACK - 0x100}\n"
        for name, value in (("resume", 0 if returns else f"after{number}"), ("snippet", number)):
            out += f" mov eax, {value}\n mov ebx, {name}\n mov [{b}], {a}\n"
        for index, name in enumerate(REGISTERS[bits]):
            if name[1:] != "sp":
                out += f" mov {name}, {0x01010101 * (index + 1)}\n"
        text = text.replace("here", f"here{number}").strip("\n") + "\n nop\n nop\n"
        out += _flag(bits, True) + text + _flag(bits, False) if stepped else text
        out += f"after{number}:\n"
    return out


def _flag(bits: int, on: bool) -> str:
    """TF set or clear."""
    push, pop, sp = ("pushfd", "popfd", "esp") if bits == 32 else ("pushfq", "popfq", "rsp")
    change = "or dword ptr [{}], 0x100" if on else "and dword ptr [{}], 0xfffffeff"
    return f" {push}\n {change.format(sp)}\n {pop}\n"


def _send(bits: int) -> str:
    c, si = ("ecx", "esi") if bits == 32 else ("rcx", "rsi")
    return f"""
 mov {si}, {LOG}
 mov ecx, cursor
 mov {c}, [{c}]
send:
 cmp {si}, {c}
 je sent
 mov al, [{si}]
 mov edx, 0x3f8
 out dx, al
 inc {si}
 jmp send
sent:
 mov al, 0
 out 0xf4, al
stay:
 jmp stay
"""


def _extra(bits: int, repairs: bool, looks_up: str) -> str:
    """What the handler does besides: EBX is given another address, or EIP is looked up."""
    if repairs:
        return " mov dword ptr [esp+16], scratch" if bits == 32 else " mov eax, scratch\n mov [rsp], rax"
    if not looks_up:
        return ""
    a, at = ("eax", "[esp+40]") if bits == 32 else ("rax", "[rsp+32]")
    return f" mov {a}, {at}\n cmp {a}, {looks_up}\n je known\n mov al, 1\n out 0xf4, al\nknown:"


def _relocations(labels: Mapping[str, int]) -> dict[int, bytes]:
    """Words that hold addresses of code, a relocation record for each, and a dynamic section that says so."""
    wanted = [value for name, value in labels.items() if name.startswith(("after", "caught", "stub"))]
    records = b"".join(struct.pack("<II", POINTERS + 4 * index, 8) for index in range(len(wanted)))
    tags = struct.pack("<8I", 17, RECORDS, 18, len(records), 19, 8, 0, 0)
    return {POINTERS: struct.pack(f"<{len(wanted)}I", *wanted), RECORDS: records, DYNAMIC: tags}


def kernel(
    bits: int,
    texts: tuple[str, ...],
    *,
    stepped: bool = False,
    moves: bool = False,
    repairs: bool = False,
    looks_up: str = "",
) -> bytes:
    """A kernel that runs the snippets one after the other, in single steps if wanted.

    A snippet may end in a fault or not. `here` is a label of its own. `moves`: the file says that its code
    may be loaded anywhere (32 bits only). `repairs`: the handler puts a good address into EBX and returns to
    the instruction. `looks_up`: it knows this one address to go on from, and gives up at any other.
    """
    extra = _extra(bits, repairs, looks_up)
    known = symbols(bits)
    work = _gates(bits) + _snippets(bits, texts, stepped or repairs, stepped) + _send(bits)
    parts = {BASE: multiboot1_header(), DATA: data(bits).code}
    if bits == 32:
        work += _CAUGHT32.replace("EXTRA", extra) + _stubs(bits)
        code = assemble(_START + _PAGING32 + work, 32, ENTRY, known)
        parts[ENTRY] = code.code
        parts |= _relocations(code.labels) if moves else {}
    else:
        parts[ENTRY] = assemble(_START + _PAGING64, 32, ENTRY, known).code
        work += _caught64().replace("EXTRA", extra) + _stubs(bits)
        parts[LONG] = assemble(work, 64, LONG, known).code
    content = bytearray(SIZE)
    for address, part in parts.items():
        content[address - BASE : address - BASE + len(part)] = part
    load = Load(BASE, BASE, bytes(content), SIZE, flags=7)
    if not moves:
        return elf(bits, (load,), entry=ENTRY)
    made = elf(32, (load,), entry=ENTRY, kind=3)
    return with_dynamic(made, DYNAMIC, len(parts[DYNAMIC]), 0x1000 + DYNAMIC - BASE)
