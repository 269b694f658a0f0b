"""Kernels that live by the addresses of their own instructions, and what a crash report names."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest

from pvpatch.bootimage import boot_image
from rewriter.emit.produce import patch_image
from rewriter.image import parse_image
from runtime.backends import backend_named
from runtime.machine import Machine, MachineConfig
from runtime.outcome import CrashReport, Outcome
from tests.unwind.kernels import UNMAPPED, fields, kernel
from tests.unwind.test_faults import OUTER, RING0, run

KINDS = [*RING0, *OUTER]

_AWAY = f"mov ebx, {UNMAPPED}\n cli\n"
_RETRY = {
    32: f"{_AWAY} mov [ebx], ecx\n clts\n cli\n{_AWAY} mov eax, [ebx]\n cli",
    64: f"{_AWAY} mov [rbx], rcx\n clts\n cli\n{_AWAY} mov rax, [rbx]\n cli",
}
"""The handler gives the instructions another address and returns to each, in the middle of a window."""
_COPY = f"mov esi, {UNMAPPED}\n mov edi, scratch\n mov ecx, 8\n cli\nhere:\n rep movsb\n nop\n nop\n nop"
"""A copy from where nothing is, as a kernel's recovery table names it: by the address of the instruction."""
_INTERRUPTS = ("int 0x10\n nop\n nop", "int 3\n nop", "cli\n int 0x13\n nop")
"""INT n is shown behind itself, also where the vector is that of a fault."""
_LOST = {
    32: "mov dword ptr [interrupts], 0\n lidt [interrupts]\n mov eax, 0x33\n mov ds, ax",
    64: "mov r8d, interrupts\n mov word ptr [r8], 0\n lidt [r8]\n mov eax, 0x33\n mov ds, ax",
}
"""A fault with no table of handlers."""


@cache
def image(kind: str, bits: int, *, patched: bool) -> bytes:
    made = {
        "retry": lambda: kernel(bits, (_RETRY[bits],), repairs=True),
        "lookup": lambda: kernel(bits, (_COPY,), looks_up="here0"),
        "interrupts": lambda: kernel(bits, _INTERRUPTS, repairs=True),
        "lost": lambda: kernel(bits, (_LOST[bits],)),
    }[kind]()
    return patch_image(parse_image(made, Path("kernel"))).file if patched else made


def seen(kind: str, bits: int, backend: str, *, patched: bool = True) -> list[dict[str, int]]:
    text, names, word = run(image(kind, bits, patched=patched), backend).transcript, fields(bits), bits // 8
    values = [int.from_bytes(text[at : at + word], "little") for at in range(0, len(text), word)]
    found = [dict(zip(names, values[at:], strict=False)) for at in range(0, len(values), len(names))]
    return [{name: record[name] for name in names if name not in ("flags", "cr2", "dr6")} for record in found]


@pytest.mark.parametrize("kind", ["retry", "lookup", "interrupts"])
@pytest.mark.parametrize(("bits", "backend"), KINDS)
def test_a_handler_may_return_to_what_faulted(bits: int, backend: str, kind: str) -> None:
    expected = seen(kind, bits, "bare", patched=False)
    assert len(expected) == {"retry": 2, "lookup": 1, "interrupts": 3}[kind]
    assert seen(kind, bits, backend) == expected


def crash(bits: int, *, patched: bool) -> CrashReport:
    loaded = boot_image(parse_image(image("lost", bits, patched=patched), Path("kernel")))
    result = Machine(MachineConfig(memory_mib=16, max_time_s=1.0), loaded, backend_named("bare")).run()
    assert result.outcome is Outcome.CRASHED
    assert result.crash is not None
    return result.crash


@pytest.mark.parametrize("bits", [32, 64])
def test_a_crash_report_names_the_site(bits: int) -> None:
    before, after = crash(bits, patched=False), crash(bits, patched=True)
    assert after.code_address == before.code_address
    assert after.registers | {"rflags": 0} == before.registers | {"rflags": 0}
