"""What recursion left over between known code: padding, unreferenced functions, or data."""

from __future__ import annotations

import re

import numpy as np
from numpy.typing import NDArray

from rewriter.scan.explore import Explorer
from rewriter.scan.space import Region

__all__ = ["gaps", "guess_gaps", "padding_end"]

MIN_GAP = 4
_ZEROS = re.compile(rb"\0+")
MAX_TRIES = 4096
"""Guesses per pass: bounds the work on regions that are mostly data."""

_NOPS = (
    b"\x66\x2e\x0f\x1f\x84\x00\x00\x00\x00\x00",
    b"\x2e\x0f\x1f\x84\x00\x00\x00\x00\x00",
    b"\x66\x0f\x1f\x84\x00\x00\x00\x00\x00",
    b"\x0f\x1f\x84\x00\x00\x00\x00\x00",
    b"\x0f\x1f\x80\x00\x00\x00\x00",
    b"\x66\x0f\x1f\x44\x00\x00",
    b"\x0f\x1f\x44\x00\x00",
    b"\x0f\x1f\x40\x00",
    b"\x0f\x1f\x00",
    b"\x2e\x8d\xb4\x26\x00\x00\x00\x00",
    b"\x8d\xb4\x26\x00\x00\x00\x00",
    b"\x8d\xbc\x27\x00\x00\x00\x00",
    b"\x8d\xb6\x00\x00\x00\x00",
    b"\x8d\xbf\x00\x00\x00\x00",
    b"\x2e\x8d\x74\x26\x00",
    b"\x8d\x74\x26\x00",
    b"\x8d\x76\x00",
    b"\x8d\x7f\x00",
    b"\x89\xf6",
    b"\x66\x90",
    b"\x90",
    b"\xcc",
)
"""Padding instructions that assemblers emit (binutils gas, alt_nops and 64-bit nops), longest first."""


def padding_end(code: bytes, at: int, end: int) -> int:
    """Offset of the first byte of [at, end) that is no padding."""
    while at < end:
        prefix = 0
        while at + prefix < end and code[at + prefix] == 0x66 and prefix < 9:
            prefix += 1
        match = next((n for n in range(prefix + 1) for nop in _NOPS if code.startswith(nop, at + n)), None)
        if match is None:
            zeros = _ZEROS.match(code, at, end)
            if zeros is None:
                return at
            at = zeros.end()
            continue
        at += match + next(len(nop) for nop in _NOPS if code.startswith(nop, at + match))
    return end


def gaps(taken: bytearray) -> list[tuple[int, int]]:
    """[start, end) of the runs of zeros that are long enough to hold something."""
    covered = np.frombuffer(bytes(taken), np.uint8)
    padded = np.ones(covered.size + 2, np.int8)
    padded[1:-1] = covered
    edges: NDArray[np.int8] = padded[1:] - padded[:-1]
    starts, ends = np.flatnonzero(edges == -1), np.flatnonzero(edges == 1)
    return [(int(a), int(b)) for a, b in zip(starts, ends, strict=True) if b - a >= MIN_GAP]


def guess_gaps(explorer: Explorer, width: int) -> int:
    """Try the starts of gaps, behind padding and at 16-byte boundaries; return how many were code.

    A boundary in the middle of a gap counts only if the bytes before agree that an instruction begins there.
    """
    found = 0
    for region in explorer.space.regions:
        found += _guess_region(explorer, region, width)
    return found


def _guess_region(explorer: Explorer, region: Region, width: int) -> int:
    covered = explorer.covered[region.index]
    if not region.code or not any(covered):
        return 0
    code = explorer.space.code(region).tobytes()
    found = tries = 0
    for start, end in gaps(covered):
        at = padding_end(code, start, end)
        blind = False
        while at < end and tries < MAX_TRIES and not explorer.exhausted:
            tries += 1
            if not explorer.near_code(region.vaddr + at):
                break
            doubtful = blind and not explorer.on_boundary(region, region.vaddr + at, width, aligned=False)
            if not doubtful and explorer.guess(region.vaddr + at, width):
                found += 1
                blind = False
                at = _next_uncovered(explorer.covered[region.index], at, end)
                at = padding_end(code, at, end)
            elif region.section:
                at = (at | 15) + 1
                blind = True
            else:
                break
    return found


def _next_uncovered(covered: bytearray, at: int, end: int) -> int:
    position = covered.find(0, at, end)
    return end if position < 0 else position
