"""Bytes that LGDT and LIDT prove to be data: kernels keep first tables between their first instructions.

The operand is a pseudo-descriptor, limit and base (SDM vol. 3, 3.5.1); at the base lie descriptors of 8 bytes
(SDM vol. 3, 3.4.5 and 3.5). A limit may be larger than the table, so a table ends at the first entry
that is neither null nor a present descriptor of a type that exists.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable

from rewriter.scan.space import Space

__all__ = ["DataRanges", "descriptor_data"]

_MAX_ENTRIES = 8192
_SYSTEM_TYPES = frozenset((1, 2, 3, 4, 5, 6, 7, 9, 11, 12, 14, 15))
"""Types of system descriptors that exist; 0, 8, 10 and 13 are reserved (SDM vol. 3, table 3-2)."""


class DataRanges:
    """A set of addresses, as ranges; asked for single addresses."""

    def __init__(self, ranges: Iterable[tuple[int, int]] = ()) -> None:
        merged: list[tuple[int, int]] = []
        for start, end in sorted(ranges):
            if merged and start <= merged[-1][1]:
                merged[-1] = merged[-1][0], max(end, merged[-1][1])
            else:
                merged.append((start, end))
        self.ranges = tuple(merged)
        self._starts = [start for start, _ in merged]

    def __contains__(self, address: object) -> bool:
        if not isinstance(address, int):
            return False
        index = bisect_right(self._starts, address) - 1
        return index >= 0 and address < self.ranges[index][1]


def descriptor_data(space: Space, gdt_pointers: Iterable[int], idt_pointers: Iterable[int]) -> DataRanges:
    """What the pseudo-descriptors at these addresses occupy and describe, inside the regions of code."""
    found: list[tuple[int, int]] = []
    size = 10 if space.image.bits == 64 else 6
    for pointers, table in ((gdt_pointers, True), (idt_pointers, False)):
        for pointer in sorted(pointers):
            start = space.resolve(pointer)
            if start is not None:
                found.append((start, start + 6))
            head = space.read_static(pointer, size) or space.read_static(pointer, 6)
            if table and head is not None:
                found.extend(_table(space, head))
    return DataRanges(found)


def _table(space: Space, pseudo_descriptor: bytes) -> list[tuple[int, int]]:
    """The range of the GDT that a pseudo-descriptor names; none where the file does not hold it."""
    limit = int.from_bytes(pseudo_descriptor[:2], "little")
    for width in (8, 4):
        start = space.resolve(int.from_bytes(pseudo_descriptor[2 : 2 + width], "little"))
        if start is None:
            continue
        count = 0
        while count < min((limit + 1) // 8, _MAX_ENTRIES):
            entry = space.read_static(start + 8 * count, 8)
            if entry is None or not _is_descriptor(entry):
                break
            count += 1
        return [(start, start + 8 * count)]
    return []


def _is_descriptor(entry: bytes) -> bool:
    """Null, or present and of a type that exists."""
    if not any(entry):
        return True
    access, flags = entry[5], entry[6]
    if not access & 0x80:
        return False
    if not access & 0x10:
        return access & 0xF in _SYSTEM_TYPES
    return flags & 0x60 != 0x60
