"""Discovery by linear sweep, where the bytes themselves prove that a region is nothing but code.

Evidence: a sweep over pure code meets hardly any invalid instruction, and the direct calls
it decodes land on the boundaries it decoded. Data in between breaks both at once. Sections of
the same image that are too small to show a rate of their own need a spotless sweep.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from rewriter.decode import LengthMap, instruction_lengths, sweep
from rewriter.decode.opcode_tables import ByteArray
from rewriter.decode.sweep import Marks
from rewriter.scan.block import XEN_EMULATE
from rewriter.scan.space import Region, Space

__all__ = ["Sweep", "sweep_region"]

MIN_CALLS = 20_000
"""Direct calls that a region must have before a rate means something."""
MAX_FAULT_RATE = 1e-4
"""Invalid instructions and stray calls per direct call; kernels of pure code stay below 3e-5."""
MIN_SIZE = 1 << 20
"""Bytes below which a region cannot hold MIN_CALLS calls, so that sweeping it to see is no use."""


@dataclass(frozen=True)
class Sweep:
    """A swept region."""

    region: Region
    code: ByteArray
    map: LengthMap
    marks: Marks
    invalid: int
    """Marked offsets that no instruction starts at."""
    calls: int
    stray: int
    """Direct calls that land outside every region or off a boundary."""
    emulated: tuple[int, ...] = ()
    """Offsets of Xen's forced emulation prefix, which is one with the instruction behind it."""

    @property
    def pure(self) -> bool:
        """The rate of faults proves that there is no data."""
        return self.calls >= MIN_CALLS and self.invalid + self.stray <= self.calls * MAX_FAULT_RATE

    @property
    def spotless(self) -> bool:
        """Without a fault: enough where the image's main region is pure."""
        return not self.invalid and not self.stray

    @property
    def evidence(self) -> str:
        """The figures in words."""
        return f"{self.calls} direct calls, {self.stray} stray, {self.invalid} invalid bytes"

    @cached_property
    def lengths(self) -> ByteArray:
        """Lengths at the boundaries, 0 elsewhere."""
        result: ByteArray = self.map.lengths * self.marks
        return result


def sweep_region(space: Space, region: Region, width: int) -> Sweep:
    """Sweep one region and gather the evidence."""
    code = space.code(region)
    lengths = instruction_lengths(code, width)
    marks = sweep(lengths.lengths)
    emulated = _join_emulated(code, lengths, marks) if space.image.xen else ()
    invalid = int(np.count_nonzero(marks & (lengths.lengths == 0)))
    calls, stray = _call_evidence(space, region, code, lengths, marks)
    return Sweep(region, code, lengths, marks, invalid, calls, stray, emulated)


def _join_emulated(code: ByteArray, lengths: LengthMap, marks: Marks) -> tuple[int, ...]:
    """Make Xen's forced emulation prefix one with the instruction behind it: in between nothing is run."""
    joined: list[int] = []
    for match in re.finditer(re.escape(XEN_EMULATE), code.tobytes()):
        at, behind = match.span()
        if marks[at] and behind < code.size and marks[behind] and lengths.lengths[behind]:
            marks[at + 1 : behind + 1] = False
            lengths.lengths[at] = len(XEN_EMULATE) + lengths.lengths[behind]
            joined.append(at)
    return tuple(joined)


def _call_evidence(
    space: Space, region: Region, code: ByteArray, lengths: LengthMap, marks: Marks
) -> tuple[int, int]:
    at = np.flatnonzero(marks & (code == 0xE8) & (lengths.lengths == 5))
    targets = at + 5 + displacements(code, at + 1)
    inside = (targets >= 0) & (targets < region.size)
    stray = int(np.count_nonzero(~marks[targets[inside]]))
    for target in np.unique(targets[~inside]).tolist():
        if space.find((region.vaddr + target) & ((1 << lengths.width) - 1)) is None:
            stray += 1
    return int(at.size), stray


def displacements(code: ByteArray, at: NDArray[np.int64]) -> NDArray[np.int64]:
    """The signed 32-bit little-endian numbers at the given offsets."""
    value = code[at].astype(np.uint32)
    for byte in (1, 2, 3):
        value |= code[at + byte].astype(np.uint32) << np.uint32(8 * byte)
    return value.view(np.int32).astype(np.int64)
