"""Prices are the same wherever the emulator's code lies, and in every engine of a process."""

from __future__ import annotations

import mmap

import pytest

from tests.backends.images import Ran, run_text

BOTH = pytest.mark.parametrize("width", [32, 64])
TEXT = """
    mov ecx, 200
again:
    mov eax, cr3
    mov cr3, eax
    push ecx
    pop ecx
    fninit
    loop again
    mov al, 0
    out 0xf4, al
"""


def run(width: int) -> Ran:
    text = TEXT.replace("eax", "rax").replace("ecx", "rcx") if width == 64 else TEXT
    return run_text(text, "bare", width=width)


@BOTH
def test_far_from_the_library(width: int) -> None:
    """The emulator calls what is more than 2 GiB away in another form."""
    near = run(width)
    gap = [mmap.mmap(-1, 3 << 30, prot=0, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) for _ in range(2)]
    far = run(width)
    assert near.result.guest_ns == far.result.guest_ns
    for one in gap:
        one.close()


def test_routines_and_accesses_cost() -> None:
    costs = {}
    for name, body in (("nothing", "nop"), ("access", "mov eax, [DATA]"), ("routine", "mov cr3, eax")):
        text = f"mov eax, cr3\n mov ecx, 1000\nagain:\n {body}\n loop again\n mov al, 0\n out 0xf4, al"
        costs[name] = run_text(text, "bare").result.guest_ns
    assert costs["nothing"] + 1000 <= costs["access"] < costs["routine"] - 30_000
