"""The tables by which a Linux kernel patches, fixes up and unwinds its own code, as address windows.

Layouts (Linux 6.1 and 6.12 arch/x86/include/asm/alternative.h, paravirt_types.h, extable.h, bug.h,
jump_label.h, include/linux/static_call_types.h; older ones in parentheses where supported). Tables
with section headers are read where they are; jump labels, static calls and ftrace sites have none
in a stripped image and are found by their structure. Since Linux 6.8 there is no .parainstructions:
a paravirt call is an alternative whose record says that a direct call replaces an indirect one.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from rewriter.image import Image, Table
from rewriter.scan.codemap import Window
from rewriter.scan.pointers import stored_ranges
from rewriter.scan.space import Space

__all__ = ["Alternative", "KernelTables", "Paravirt", "patch_windows", "read_kernel_tables"]

SIGNED32 = np.dtype("<i4")
DIRECT_CALL = 2 << 16
"""ALT_FLAG_DIRECT_CALL in the 32-bit word of feature (low half) and flags (high half)."""
ByteRange = NDArray[np.uint8]

RELATIVE_LISTS = {
    ".retpoline_sites": ("retpoline", 6),
    ".return_sites": ("return_site", 5),
    ".smp_locks": ("smp_lock", 1),
    ".ibt_endbr_seal": ("endbr_seal", 4),
    ".call_sites": ("call_site", 5),
}
"""Lists of s32 self-relative addresses: window kind and the bytes the kernel may write."""


@dataclass(frozen=True, slots=True)
class Alternative:
    """One alternative: `length` bytes at `address` may be replaced by those at `replacement`."""

    address: int
    length: int
    replacement: int
    replacement_length: int
    feature: int
    negated: bool
    direct_call: bool = False
    """The kernel makes the indirect call at `address` a direct one (ALT_FLAG_DIRECT_CALL)."""


@dataclass(frozen=True, slots=True)
class Paravirt:
    """One paravirt call site: address, length in bytes, and slot number where the table has it."""

    address: int
    length: int
    slot: int | None


@dataclass(frozen=True)
class KernelTables:
    """What the tables of one image say; everything empty for a kernel that has none."""

    alternatives: tuple[Alternative, ...] = ()
    paravirt: tuple[Paravirt, ...] = ()
    exceptions: tuple[tuple[int, int], ...] = ()
    """(instruction, fixup) pairs of the exception table."""
    present: tuple[str, ...] = ()


def _relative(image: Image, table: Table, stride: int, column: int) -> list[int]:
    """Self-relative s32 fields at `column` of every `stride`-byte record."""
    data = image.data_of(table)
    count = len(data) // stride
    words = np.frombuffer(data, np.uint8, count * stride).reshape(count, stride)
    values = words[:, column : column + 4].copy().view(SIGNED32).reshape(-1).astype(np.int64)
    places = np.arange(count, dtype=np.int64) * stride + column
    mask = (1 << image.bits) - 1
    return [
        (table.address + place + value) & mask
        for place, value in zip(places.tolist(), values.tolist(), strict=True)
    ]


def _alternatives(image: Image, space: Space) -> tuple[Alternative, ...]:
    table = image.table(".altinstructions")
    if table is None:
        return ()
    data = image.data_of(table)
    mask = (1 << image.bits) - 1
    for form, self_relative in (("<iiHBB", True), ("<iiIBB", True), ("<IIBBBx", False)):
        size = struct.calcsize(form)
        if len(data) % size:
            continue
        result = []
        for index, row in enumerate(struct.iter_unpack(form, data)):
            place = table.address + index * size
            original, replacement, feature, length, new_length = row
            if self_relative:
                original, replacement = (original + place) & mask, (replacement + place + 4) & mask
            if space.find(original) is None or new_length > length:
                break
            flag = 1 << 15 if form == "<iiHBB" else 1 << 16
            result.append(
                Alternative(
                    original,
                    length,
                    replacement,
                    new_length,
                    feature & (flag - 1),
                    bool(feature & flag),
                    form == "<iiIBB" and bool(feature & DIRECT_CALL),
                )
            )
        else:
            return tuple(result)
    return ()


def _paravirt(image: Image, space: Space, alternatives: Iterable[Alternative]) -> tuple[Paravirt, ...]:
    table = image.table(".parainstructions")
    if table is None:
        calls = {row.address: row.length for row in alternatives if row.direct_call}
        return tuple(Paravirt(address, length, None) for address, length in sorted(calls.items()))
    data = image.data_of(table)
    form = "<QBB6x" if image.bits == 64 else "<IBB2x"
    size = struct.calcsize(form)
    rows = [
        Paravirt(ip, length, slot)
        for ip, slot, length in struct.iter_unpack(form, data[: len(data) // size * size])
    ]
    return tuple(row for row in rows if row.length and space.find(row.address) is not None)


def _exceptions(image: Image, space: Space) -> tuple[tuple[int, int], ...]:
    table = image.table("__ex_table")
    if table is None:
        return ()
    for stride in (12, 8):
        if table.size % stride:
            continue
        pairs = list(zip(_relative(image, table, stride, 0), _relative(image, table, stride, 4), strict=True))
        if all(space.find(at) is not None and space.find(fixup) is not None for at, fixup in pairs):
            return tuple(pairs)
    return ()


def _runs(positions: NDArray[np.int64], stride: int, minimum: int) -> list[tuple[int, int]]:
    """(first index, count) of runs in sorted `positions` whose neighbours are `stride` apart."""
    if not positions.size:
        return []
    breaks = np.flatnonzero(np.diff(positions) != stride) + 1
    bounds = [0, *breaks.tolist(), positions.size]
    return [(a, b - a) for a, b in pairwise(bounds) if b - a >= minimum]


class _StructureSearch:
    """Finds tables without section headers in the non-code bytes of an image."""

    MINIMUM = 16
    """Records in a row that make a table: shorter runs may be chance."""

    def __init__(self, image: Image, space: Space) -> None:
        self.image = image
        self.space = space

    def _code_bytes(self, addresses: NDArray[np.uint64]) -> tuple[NDArray[np.bool_], NDArray[np.uint8]]:
        """Whether each address lies in a region, and the bytes (first two) there."""
        inside = np.zeros(addresses.size, np.bool_)
        first = np.zeros((addresses.size, 2), np.uint8)
        for region in self.space.regions:
            offset = addresses - np.uint64(region.vaddr)
            here = offset < np.uint64(max(region.size - 5, 0))
            at = offset[here].astype(np.int64)
            code = self.space.code(region)
            inside |= here
            first[here, 0] = code[at]
            first[here, 1] = code[at + 1]
        return inside, first

    def search(self) -> tuple[list[Window], set[int]]:
        """Windows of jump labels, static calls and ftrace sites, and the targets of jump labels."""
        windows: list[Window] = []
        targets: set[int] = set()
        holes = [(table.address, table.address + table.size) for table in self.image.tables]
        holes += [(region.vaddr, region.end) for region in self.space.regions if region.code]
        for low, high in stored_ranges(self.image, sorted(holes)):
            offset = self.image.offset_of(low)
            if offset is not None and high - low >= 64:
                low, offset = (low + 7) & ~7, offset + (-low & 7)
                data = np.frombuffer(self.image.payload, np.uint8, (high - low) & ~7, offset)
                self._labels(data, low, windows, targets)
                self._ftrace(data, low, windows)
        return windows, targets

    def _labels(self, data: ByteRange, base: int, windows: list[Window], targets: set[int]) -> None:
        words = data.view(SIGNED32).astype(np.int64)
        where = np.arange(words.size, dtype=np.uint64) * np.uint64(4) + np.uint64(base)
        code = where + words.astype(np.uint64)
        if self.image.bits == 32:
            code &= np.uint64(0xFFFF_FFFF)
        hit = np.flatnonzero(words != 0)
        low = min(region.vaddr for region in self.space.regions)
        high = max(region.end for region in self.space.regions)
        hit = hit[(code[hit] - np.uint64(low)) < np.uint64(high - low)]
        inside, first = self._code_bytes(code[hit])
        patch = inside & _patchable(first)
        size = 16 if self.image.bits == 64 else 12
        goes = np.zeros(words.size, np.bool_)
        goes[hit[inside]] = True
        starts = hit[patch]
        starts = starts[(starts + 1 < words.size)]
        entry = starts[goes[np.minimum(starts + 1, words.size - 1)]]
        for phase in range(size // 4):
            chosen = entry[entry % (size // 4) == phase]
            for first_index, count in _runs(chosen, size // 4, self.MINIMUM):
                for at in chosen[first_index : first_index + count].tolist():
                    address = int(code[at])
                    windows.append(Window(address, address + 5, "jump_label"))
                    targets.add(int(code[at + 1]))
        calls = hit[inside & ((first[:, 0] == 0xE8) | (first[:, 0] == 0xE9))]
        labelled = set(entry.tolist())
        for phase in range(2):
            chosen = calls[calls % 2 == phase]
            for first_index, count in _runs(chosen, 2, self.MINIMUM):
                for at in chosen[first_index : first_index + count].tolist():
                    if at not in labelled:
                        address = int(code[at])
                        windows.append(Window(address, address + 5, "static_call"))

    def _ftrace(self, data: ByteRange, base: int, windows: list[Window]) -> None:
        size = self.image.bits // 8
        values = data[: data.size // size * size].view(np.dtype(f"<u{size}")).astype(np.uint64)
        low = min(region.vaddr for region in self.space.regions)
        high = max(region.end for region in self.space.regions)
        hit = np.flatnonzero((values - np.uint64(low)) < np.uint64(high - low))
        inside, first = self._code_bytes(values[hit])
        nop = (first[:, 0] == 0x0F) & (first[:, 1] == 0x1F)
        chosen = hit[inside & (nop | (first[:, 0] == 0xE8))]
        for first_index, count in _runs(chosen, 1, 64):
            for at in chosen[first_index : first_index + count].tolist():
                address = int(values[at])
                windows.append(Window(address, address + 5, "mcount"))


def _patchable(first: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """NOP5 (0F 1F 44), NOP2 (66 90; 3E 8D on i386), JMP rel32, JMP rel8: what a jump label starts out as."""
    a, b = first[:, 0], first[:, 1]
    result: NDArray[np.bool_] = (
        ((a == 0x0F) & (b == 0x1F))
        | ((a == 0x66) & (b == 0x90))
        | (a == 0xE9)
        | (a == 0xEB)
        | ((a == 0x3E) & (b == 0x8D))
    )
    return result


def read_kernel_tables(image: Image, space: Space) -> KernelTables:
    """The tables that say something of single sites."""
    if not space.regions or image.table(".altinstructions") is None:
        return KernelTables()
    alternatives = _alternatives(image, space)
    return KernelTables(
        alternatives,
        _paravirt(image, space, alternatives),
        _exceptions(image, space),
        tuple(sorted({table.name for table in image.tables})),
    )


def patch_windows(image: Image, space: Space, tables: KernelTables) -> tuple[list[Window], set[int]]:
    """All windows of a self-patching kernel, and the addresses to which its tables lead control."""
    if not tables.present:
        return [], set()
    windows = [Window(row.address, row.address + row.length, "alternative") for row in tables.alternatives]
    windows += [Window(row.address, row.address + row.length, "paravirt") for row in tables.paravirt]
    windows += [Window(at, at + 1, "ex_table") for at, _ in tables.exceptions]
    for name, (kind, length) in RELATIVE_LISTS.items():
        table = image.table(name)
        for address in _relative(image, table, 4, 0) if table is not None else ():
            if space.find(address) is not None:
                windows.append(Window(address, address + length, kind))
    bugs = image.table("__bug_table")
    for address in _relative(image, bugs, 12, 0) if bugs is not None else ():
        if space.find(address) is not None:
            windows.append(Window(address, address + 2, "bug"))
    found, targets = _StructureSearch(image, space).search()
    return windows + found, targets | {fixup for _, fixup in tables.exceptions}
