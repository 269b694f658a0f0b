"""What the dearest guests cost the host: seconds of its processor time for one second of theirs."""

from __future__ import annotations

import struct
import time

from pvpatch.abi.errors import PvpatchError
from tests.backends.images import DATA, descriptors, run_text

__all__ = ["GOAL", "STORMS", "cost"]

GOAL = 60
_LIMIT_S = 0.02
_STACK, _IDT, _TABLES, _DIRECTORY = DATA + 0x3000, DATA + 0x1000, DATA + 0x100, 0x300000
_GDT = descriptors((0, 0x00CF9B000000FFFF, 0x00CF93000000FFFF))
_SETUP = f"""
 mov esp, {_STACK}
 lgdt [{_TABLES}]
 .byte 0xea
 .long flat
 .word 8
flat:
 mov eax, 0x10
 mov ss, ax
 mov ds, ax
 mov eax, handler
 mov [{_IDT} + VECTOR * 8], ax
 mov word ptr [{_IDT} + VECTOR * 8 + 2], 8
 mov word ptr [{_IDT} + VECTOR * 8 + 4], 0x8e00
 shr eax, 16
 mov [{_IDT} + VECTOR * 8 + 6], ax
 lidt [{_TABLES + 8}]
"""
_PAGING = f"""
 mov dword ptr [{_DIRECTORY}], 0x83
 mov eax, {_DIRECTORY}
 mov cr3, eax
 mov eax, cr4
 or eax, 0x10
 mov cr4, eax
 mov eax, cr0
 or eax, 0x80000000
 mov cr0, eax
"""
_UNUSED = "handler: hlt"
STORMS = {
    "zeroed memory": (0, f"mov eax, 0x400000\n jmp eax\n{_UNUSED}"),
    "functions called once": (
        0,
        f"start: mov edi, 0x400000\n next: mov dword ptr [edi], 0x00c34090\n call edi\n add edi, 16\n"
        f" cmp edi, 0xf00000\n jb next\n jmp start\n{_UNUSED}",
    ),
    "a changing immediate": (0, f"again: mov eax, 1\n inc dword ptr [again + 1]\n jmp again\n{_UNUSED}"),
    "int3": (3, "again: int3\n jmp again\nhandler: iretd"),
    "invalid opcode": (6, "again: ud2\nhandler: iretd"),
    "page fault": (14, f"{_PAGING} again: mov eax, [0xd0000000]\nhandler: add esp, 4\n iretd"),
    "CR3 reload": (14, f"{_PAGING} mov eax, cr3\n again: mov cr3, eax\n jmp again\n{_UNUSED}"),
    "single step": (
        1,
        "pushfd\n or dword ptr [esp], 0x100\n popfd\n again: nop\n nop\n jmp again\nhandler: iretd",
    ),
    "STR, not patched": (6, f"again: str eax\n jmp again\n{_UNUSED}"),
    "OUT to the console": (6, f"mov dx, 0x3f8\n again: mov al, 0x41\n out dx, al\n jmp again\n{_UNUSED}"),
    "CPUID": (6, f"again: cpuid\n jmp again\n{_UNUSED}"),
}
"""Name -> vector that `handler` answers, and 32-bit text."""


def _seconds(text: str, backend: str, limit_s: float) -> tuple[float, float]:
    data = _GDT.ljust(_TABLES - DATA, b"\0") + struct.pack("<HIxxHI", len(_GDT) - 1, DATA, 0x7FF, _IDT)
    started = time.process_time()
    ran = run_text(text, backend, patched=True, data=data, max_time_s=limit_s)
    return time.process_time() - started, ran.result.guest_ns / 1e9


def cost(name: str, backend: str) -> float | None:
    """Host seconds for a guest second, without building the machine; None where it does not run."""
    vector, loop = STORMS[name]
    text = (_SETUP + loop).replace("VECTOR", str(vector))
    try:
        idle = min(_seconds("again: jmp again", backend, 1e-6)[0] for _ in range(2))  # the first fills caches
        taken, guest = _seconds(text, backend, _LIMIT_S)
    except PvpatchError:
        return None
    return (taken - idle) / guest
