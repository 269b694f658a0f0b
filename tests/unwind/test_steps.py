"""Single steps through patched code: the addresses, registers and stack pointers that hardware shows."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest

from rewriter.emit.produce import Produced, patch_image
from rewriter.image import parse_image
from tests.unwind.kernels import kernel
from tests.unwind.test_faults import OUTER, RING0, Record, records, run, text_of

SNIPPETS32 = {
    "cli": "cli\n nop\n nop\n nop\n nop",
    "cr0": "mov eax, cr0\n mov ecx, eax\n and ecx, 1",
    "cr2": "mov esi, 0x1234\n mov cr2, esi\n mov edi, cr2",
    "segments": "mov ecx, ds\n mov es, cx\n push fs\n pop gs",
    "sgdt": "sgdt [scratch]\n mov eax, [scratch+2]\n lgdt [pseudo]",
    "str": "str ecx\n sldt edx\n nop\n nop",
    "out": "mov edx, 0x80\n out dx, al\n in al, dx\n nop",
    "jumps": "mov ecx, 2\nhere:\n cli\n dec ecx\n jne here\n cli\n jmp over_here\n nop\nover_here:\n nop",
    "call": "call sub_here\n jmp over_here\nsub_here:\n cli\n nop\n nop\n nop\n nop\n ret\nover_here:\n nop",
    "string": "mov esi, scratch\n mov edi, scratch+16\n mov ecx, 3\n cli\n rep movsb\n nop\n nop",
    "pushfd": "pushfd\n pop eax\n and eax, 0x100\n nop",
    "far jump": "ljmp 8, here\nhere:\n cli\n nop\n nop\n nop\n nop",
    "mov ss": "mov eax, ss\n mov ss, ax\n nop\n nop\n nop",
    "iretd": "pushfd\n push cs\n push here\n iretd\nhere:\n nop",
    "popfd": "pushfd\n popfd\n nop\n nop\n nop",
}
SNIPPETS64 = {
    "cli": "cli\n nop\n nop\n nop\n nop",
    "cr0": "mov rax, cr0\n mov ecx, eax\n and ecx, 1",
    "cr2": "mov esi, 0x1234\n mov cr2, rsi\n mov rdi, cr2",
    "segments": "mov ecx, ds\n mov es, cx\n push fs\n pop gs",
    "sgdt": "mov r8d, scratch\n sgdt [r8]\n mov eax, [r8+2]\n mov r9d, pseudo\n lgdt [r9]",
    "str": "str ecx\n sldt edx\n nop\n nop",
    "out": "mov edx, 0x80\n out dx, al\n in al, dx\n nop",
    "jumps": "mov ecx, 2\nhere:\n cli\n dec ecx\n jne here\n cli\n jmp over_here\n nop\nover_here:\n nop",
    "string": "mov esi, scratch\n mov edi, scratch+16\n mov ecx, 3\n cli\n rep movsb\n nop\n nop",
    "pushfq": "pushfq\n pop rax\n and eax, 0x100\n nop",
    "mov ss": "mov eax, ss\n mov ss, ax\n nop\n nop\n nop",
    "iretq": "mov rax, rsp\n push 0x10\n push rax\n pushfq\n push 8\n push here\n iretq\nhere:\n nop",
    "popfq": "pushfq\n popfq\n nop\n nop\n nop",
}
SNIPPETS = {32: SNIPPETS32, 64: SNIPPETS64}
NO_STEP = {(64, "xen", "iretq"), *((bits, backend, "mov ss") for bits, backend in OUTER)}
"""Xen's IRET is a hypercall: no step comes right behind it. Below privilege 0 a load of SS is none, so a step
comes behind it too, and it keeps registers in those that nobody reads any more (docs/patch.md)."""
CASES = [
    (bits, backend, name)
    for bits, backend in (*RING0, *OUTER)
    for name in SNIPPETS[bits]
    if (bits, backend, name) not in NO_STEP
]


@cache
def original(bits: int) -> bytes:
    return kernel(bits, tuple(SNIPPETS[bits].values()), stepped=True)


@cache
def patched(bits: int) -> Produced:
    return patch_image(parse_image(original(bits), Path("kernel")))


@cache
def seen(bits: int, backend: str, *, unpatched: bool = False) -> dict[int, list[Record]]:
    data = original(bits) if unpatched else patched(bits).file
    return records(run(data, backend).transcript, bits)


@pytest.mark.parametrize("bits", [32, 64])
def test_every_snippet_is_stepped_through(bits: int) -> None:
    plain = seen(bits, "bare", unpatched=True)
    assert sorted(plain) == list(range(len(SNIPPETS[bits])))
    assert all(record["vector"] == 1 for steps in plain.values() for record in steps)
    assert all(len(steps) > 4 for steps in plain.values())


@pytest.mark.parametrize(("bits", "backend", "name"), CASES)
def test_each_instruction_is_one_step(bits: int, backend: str, name: str) -> None:
    number = list(SNIPPETS[bits]).index(name)
    expected = [text_of(record) for record in seen(bits, "bare", unpatched=True)[number]]
    assert [text_of(record) for record in seen(bits, backend).get(number, ())] == expected
