"""Interrupts after a kernel's switch to real mode: through its own vectors, or a sentence about the BIOS."""

from __future__ import annotations

import struct

import pytest

from runtime.boot.model import BootSegment
from runtime.outcome import Outcome
from tests.cpu.world import World

SEGMENT = 0x2000
CODE16 = SEGMENT << 4
TO_CODE16 = """
    mov eax, 0x00009a02; push eax; mov eax, 0xffff; push eax; push 0; push 0
    mov ebx, esp; push ebx; sub esp, 2; mov word ptr [esp], 15; lgdt [esp]
    .byte 0xea, 0, 0, 0, 0, 8, 0
"""
"""A GDT on the stack with a 16-bit code segment at CODE16, and a far jump to its start."""
CLEAR_PE = bytes.fromhex("0f20c0 6683e0fe 0f22c0 ea 0f00 0020")
"""mov eax, cr0; and eax, -2; mov cr0, eax; jmp 2000:000f, which is behind it."""


def run(code: bytes, *extra: BootSegment) -> World:
    body = CLEAR_PE + code
    segment = BootSegment(CODE16, CODE16, body, len(body))
    return World(32, TO_CODE16, extra=(segment, *extra)).run()


@pytest.mark.parametrize(
    ("vector", "ax", "says"),
    [(0x15, 0xE820, "system services"), (0x12, 0, "memory size"), (0x11, 0, "equipment")],
)
def test_a_call_of_the_bios_ends_with_a_sentence(vector: int, ax: int, says: str) -> None:
    load_idt = bytes.fromhex("2e0f011e4000")
    code = load_idt + b"\xb8" + struct.pack("<H", ax) + bytes([0xCD, vector])
    idt = BootSegment(CODE16 + 0x40, CODE16 + 0x40, struct.pack("<HI", 0x3FF, 0), 6)
    world = run(code, idt)
    assert world.result.outcome is Outcome.CRASHED
    assert world.result.detail.startswith("the guest calls the BIOS in real mode")
    assert says in world.result.detail and f"AX {ax:04X}" in world.result.detail


def test_a_vector_of_the_guest_is_taken_and_returns() -> None:
    load_idt = bytes.fromhex("2e0f011e4000")
    set_stack = bytes.fromhex("b80030 8ed0 bc0010")  # ss 3000, sp 1000
    code = load_idt + set_stack + bytes.fromhex("f8 bb0000 cd60 83c301 b0 00 e6f4 f4")
    handler = bytes.fromhex("bb2211 8bec 8b7e04 cf")  # mov bx, 1122; mov bp, sp; mov di, [bp+4]; iret
    tables = struct.pack("<HI", 0x3FF, 0).ljust(0x10, b"\0") + handler
    world = run(
        code,
        BootSegment(CODE16 + 0x40, CODE16 + 0x40, tables, len(tables)),
        BootSegment(0x60 * 4, 0x60 * 4, struct.pack("<HH", 0x50, SEGMENT), 4),
    )
    gpr = world.machine.cpu.state.gpr
    assert world.result.outcome is Outcome.EXITED, world.result.detail
    assert gpr[3] & 0xFFFF == 0x1123
    assert gpr[4] & 0xFFFF == 0x1000
    assert gpr[7] & 0x202 == 0x002  # the flags that were pushed
