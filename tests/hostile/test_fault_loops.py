"""Guests that fault without end: the limit of guest time ends them, because every fault costs time."""

from __future__ import annotations

from typing import Any

import pytest

from runtime.outcome import Outcome
from tests.backends.images import DATA, Ran, descriptors, run_text

LIMIT_S = 0.004
DEAREST_NS = 250
"""At most one event for so much guest time."""
GDT = descriptors((0, 0x00CF9B000000FFFF, 0x00CF93000000FFFF))
STACK = DATA + 0x3000
IDT = DATA + 0x1000
TABLES = DATA + 0x100
NOWHERE = 0xD0000000
"""No memory is there: frames that are pushed are lost, and what is popped is all ones."""

_SETUP = f"""
 mov esp, {STACK}
 lgdt [{TABLES}]
 .byte 0xea
 .long flat
 .word 8
flat:
 mov eax, 0x10
 mov ss, ax
 mov eax, handler
 mov [{IDT} + VECTOR * 8], ax
 mov word ptr [{IDT} + VECTOR * 8 + 2], 8
 mov word ptr [{IDT} + VECTOR * 8 + 4], 0x8e00
 shr eax, 16
 mov [{IDT} + VECTOR * 8 + 6], ax
 lidt [{TABLES + 8}]
"""
_LOOPS = {
    "handler that faults": (6, "ud2\nhandler:\n mov esp, STACK\n ud2"),
    "handler that returns to the fault": (6, "again:\n ud2\nhandler:\n iretd"),
    "privileged instruction": (13, "again:\n mov eax, cr0\n jmp again\nhandler:\n jmp handler"),
    "missed site": (13, "again:\n str eax\n jmp again\nhandler:\n jmp handler"),
    "system call": (6, "again:\n .byte 0x0f, 0x05\n jmp again\nhandler:\n add dword ptr [esp], 2\n iretd"),
    "page given back": (13, f"again:\n invlpg [{DATA}]\n mov eax, [{DATA}]\n jmp again\nhandler:\n ud2"),
}


def run(text: str, backend: str) -> Ran:
    data = GDT.ljust(TABLES - DATA, b"\0") + (len(GDT) - 1).to_bytes(2, "little") + DATA.to_bytes(6, "little")
    data += (0x7FF).to_bytes(2, "little") + IDT.to_bytes(4, "little")
    return run_text(text, backend, patched=True, data=data, max_time_s=LIMIT_S)


def events(ran: Ran) -> int:
    stats: Any = ran.result.stats
    return int(sum(stats["exceptions"].values()) + sum(stats["exits"].values()))


@pytest.mark.parametrize("backend", ["bare", "kvm", "lguest", "vmi", "xen"])
@pytest.mark.parametrize("name", _LOOPS)
def test_a_loop_of_faults_is_ended_by_the_limit(name: str, backend: str) -> None:
    vector, loop = _LOOPS[name]
    text = (_SETUP + loop).replace("VECTOR", str(vector)).replace("STACK", str(STACK))
    ran = run(text, backend)
    assert ran.result.outcome is Outcome.TIME_LIMIT, ran.result.detail
    assert events(ran) < LIMIT_S * 1e9 / DEAREST_NS


@pytest.mark.parametrize("backend", ["bare", "kvm", "lguest", "vmi", "xen"])
def test_faults_without_a_stack_end_by_themselves_or_by_the_limit(backend: str) -> None:
    ran = run(f"mov esp, {NOWHERE}\n ud2", backend)
    assert ran.result.outcome in (Outcome.TIME_LIMIT, Outcome.CRASHED)
    assert events(ran) < LIMIT_S * 1e9 / DEAREST_NS
