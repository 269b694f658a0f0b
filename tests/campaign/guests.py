"""Hostile guests: random code, storms of faults, wild calls, each with and without handlers."""

from __future__ import annotations

import struct
from pathlib import Path
from random import Random

from pvpatch.abi.asm import AsmError, assemble
from tests.campaign.images import run_words
from tests.campaign.judge import twice
from tests.image.builders import Load, elf, multiboot1_header

__all__ = ["guest_case"]

BASE, CODE, TABLES, IDT, HANDLERS, STACK = 0x100000, 0x104000, 0x100100, 0x101000, 0x102000, 0x180000
_PIECES_32 = """
int3|int 0x80|int 0x82|int 0x1f|int 0x20|ud2|cli|sti|hlt|pushfd; popfd|mov eax, cr0|mov cr0, eax
mov cr3, eax|mov eax, cr3; mov cr3, eax|mov cr4, eax|mov dr7, eax|mov dr0, eax|lgdt [ebx]|lidt [ebx]
sgdt [ebx]|ltr ax|lldt ax|mov ds, ax|mov ss, ax|mov es, ax|invlpg [ebx]|wbinvd|rdmsr|wrmsr|rdtsc
cpuid|in al, dx|out dx, al|in eax, dx|out dx, eax|push eax; popfd|push eax; ret|call eax|jmp eax
mov [ebx], eax|mov eax, [ebx]|add [ebx], eax|rep movsb|rep stosd|iretd|clts|lmsw ax|xchg [ebx], eax
mov esp, ebx|mov [0xfee00300], eax|mov [0xfec00000], eax|fxsave [ebx]|fxrstor [ebx]|fninit|div ecx
str eax|sldt eax|smsw eax|mov byte ptr [edi], 0xc3; call edi
""".replace("\n", "|")
_PIECES_64 = """
int3|int 0x80|ud2|syscall|sysenter|cli|sti|hlt|pushfq; popfq|mov rax, cr0|mov cr0, rax|mov cr3, rax
mov rax, cr3; mov cr3, rax|mov cr4, rax|mov cr8, rax|mov dr7, rax|lgdt [rbx]|lidt [rbx]|sgdt [rbx]
ltr ax|mov ds, ax|mov ss, ax|invlpg [rbx]|wbinvd|rdmsr|wrmsr|rdtsc|rdtscp|cpuid|in al, dx|out dx, al
in eax, dx|out dx, eax|push rax; popfq|push rax; ret|call rax|jmp rax|mov [rbx], rax|mov rax, [rbx]
add [rbx], rax|rep movsb|rep stosq|iretq|swapgs|clts|xchg [rbx], rax|mov rsp, rbx|fxsave [rbx]
fxrstor [rbx]|div rcx|mov byte ptr [rdi], 0xc3; call rdi
""".replace("\n", "|")
_EXACT = (
    b"\x0f\x01\xc1",
    b"\x0f\x01\xd9",
    b"\xf1",
    b"\xd9\xfe",
    b"\xc4\xe2",
    b"\xea\0\0\0\0\x08\0",
    b"\x0f\xaa",
)
"""VMCALL, VMMCALL, ICEBP, FSIN, half a VEX prefix, a far jump, RSM."""
_NUMBERS = (
    *(0, 1, 2, 7, 0x10, 0x80, 0x3F8, 0x40, 0x43, 0xF4, 0x60, 0x64, 0x70, BASE, STACK, TABLES, IDT, CODE),
    *(0x1000000, 0x3FFFFFFF, 0x7FFFFFFF, 0x80000000, 0xC0000080, 0xFEE00000, 0xFEC00000, 0xFFFFFFFF),
)
_REGISTERS = ("ax", "bx", "cx", "dx", "si", "di", "bp")


def _load(random: Random, width: int) -> str:
    """A register gets a number that means something somewhere, or any."""
    name = ("r" if width == 64 else "e") + random.choice(_REGISTERS)
    value = random.choice((*_NUMBERS, random.getrandbits(32)))
    return f"mov {name}, {value}"


def _soup(random: Random, width: int) -> bytes:
    """Instructions at random, many of which fault or call."""
    pieces = [piece for piece in (_PIECES_64 if width == 64 else _PIECES_32).split("|") if piece]
    few = random.sample(pieces, random.choice((2, 6, len(pieces))))
    code = b""
    for _ in range(random.choice((3, 20, 80))):
        if random.random() < 0.1:
            code += random.choice(_EXACT)
            continue
        text = _load(random, width) if random.random() < 0.4 else random.choice(few)
        try:
            code += assemble("\n".join(text.split(";")), width, CODE).code
        except AsmError:
            code += b"\x90"
    return code


def _noise(random: Random) -> bytes:
    return random.randbytes(random.choice((16, 256, 4096)))


def _storm(random: Random, width: int) -> bytes:
    """One or two instructions for ever."""
    body = _soup(random, width)[: random.choice((4, 8, 16))]
    return body + b"\xe9" + struct.pack("<i", -len(body) - 5)


def _setup(random: Random, width: int) -> bytes:
    """Registers, and mostly a table of handlers that return (past an error code, or past the instruction)."""
    a, sp = ("r", "rsp") if width == 64 else ("e", "esp")
    lines = [f"mov {sp}, {STACK}", f"mov {a}bx, {STACK + 0x1000}", f"mov {a}di, {STACK + 0x4000}"]
    if random.random() < 0.8:
        pointer = "lidt [rax]" if width == 64 else "lidt [eax]"
        lines += [f"mov eax, {TABLES + 0x40}", pointer]
        if width == 32:
            lines += [f"mov eax, {TABLES}", "lgdt [eax]"]
    if random.random() < 0.3:
        lines += ["sti"]
    return assemble("\n".join(lines), width, BASE + 0x20).code


def _handler(random: Random, width: int) -> bytes:
    a, sp, iret = ("add", "rsp", "iretq") if width == 64 else ("add", "esp", "iretd")
    size = "qword" if width == 64 else "dword"
    texts = (
        iret,
        f"{a} {size} ptr [{sp}], {random.randint(1, 3)}\n{iret}",
        f"add {sp}, {width // 8}\n{a} {size} ptr [{sp}], {random.randint(1, 3)}\n{iret}",
        f"mov {sp}, {STACK}\nmov eax, {CODE}\njmp {'rax' if width == 64 else 'eax'}",
        "ud2",
    )
    return assemble(random.choice(texts), width, HANDLERS).code


def _image(random: Random, width: int) -> bytes:
    code = random.choice(
        (lambda: _soup(random, width), lambda: _noise(random), lambda: _storm(random, width))
    )()
    content = bytearray(0x8000)
    start = _setup(random, width)
    start += b"\xe9" + struct.pack("<i", CODE - (BASE + 0x20 + len(start) + 5))
    if width == 32:
        content[: len(multiboot1_header())] = multiboot1_header()
    content[0x20 : 0x20 + len(start)] = start
    gate = 16 if width == 64 else 8
    content[TABLES - BASE : TABLES - BASE + 6] = struct.pack("<HI", 31, TABLES + 0x10)
    content[TABLES - BASE + 0x10 : TABLES - BASE + 0x30] = struct.pack(
        "<4Q", 0, 0x00CF9B000000FFFF, 0x00CF93000000FFFF, 0
    )
    content[TABLES - BASE + 0x40 : TABLES - BASE + 0x4A] = struct.pack("<HQ", gate * 256 - 1, IDT)
    for vector in range(256):
        entry = struct.pack(
            "<HHHH", HANDLERS & 0xFFFF, 8, 0x8E00 | random.choice((0, 0x6000)), HANDLERS >> 16
        )
        content[IDT - BASE + vector * gate : IDT - BASE + vector * gate + 8] = entry
    handler = _handler(random, width)
    content[HANDLERS - BASE : HANDLERS - BASE + len(handler)] = handler
    content[CODE - BASE : CODE - BASE + len(code)] = code[: 0x8000 - (CODE - BASE)]
    return elf(width, (Load(BASE, BASE, bytes(content), 0x20000, flags=7),), entry=BASE + 0x20)


def guest_case(random: Random, folder: Path) -> None:
    """As it is on a backend; patched, if that is possible, on another."""
    width = random.choice((32, 32, 64))
    backends = ("bare", "kvm", "xen") if width == 64 else ("bare", "kvm", "lguest", "vmi", "xen")
    path, patched = folder / "image", folder / "patched"
    path.write_bytes(_image(random, width))
    twice(folder, *run_words(path, random.choice(backends)))
    made = twice(folder, "patch", path, "-o", patched)
    if made.code == 0:
        patched.write_bytes(made.files["patched"])
        twice(folder, *run_words(patched, random.choice(backends)))
