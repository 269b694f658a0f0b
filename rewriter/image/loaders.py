"""A file as each boot loader sees it: what it would put where in memory, and where it would enter.

Nothing here is taken from `Image`: the bytes are read anew, by the rules of the loaders themselves, so that
what a patch wrote is judged by somebody else. Sources: Multiboot 0.6.96 and 2.0, and where they leave it
open GRUB (grub-core/loader) and QEMU (hw/i386/multiboot.c, include/hw/elf_ops.h); Linux boot.rst;
Xen's public/elfnote.h; System V ABI, chapter 5.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from rewriter.image.elf_notes import read_notes
from rewriter.image.model import LoadRange
from rewriter.image.multiboot import find_multiboot, load_range

__all__ = ["BootPlan", "boot_plans"]

_PT_LOAD, _PT_NOTE = 1, 4
_PVH_NOTE = ("Xen", 18)
_HEADER, _SIGNATURE = 0x1F1, 0x202
_XLF_KERNEL_64 = 1
_PROGRAM = {1: struct.Struct("<8I"), 2: struct.Struct("<2I6Q")}


@dataclass(frozen=True)
class BootPlan:
    """One way to boot a file: its loader, the ranges that are loaded, and the physical entry address.

    ``virtual`` are the ranges' virtual addresses where the loader reads ELF tables, else empty.
    """

    loader: str
    ranges: tuple[LoadRange, ...]
    entry: int
    virtual: tuple[int, ...] = ()

    def holder(self, address: int, size: int) -> LoadRange | None:
        """The range whose memory holds [address, address + size)."""
        for item in self.ranges:
            if item.address <= address and address + size <= item.address + item.mem_size:
                return item
        return None


@dataclass(frozen=True)
class _Row:
    kind: int
    offset: int
    vaddr: int
    paddr: int
    file_size: int
    mem_size: int
    align: int


def boot_plans(payload: bytes) -> tuple[BootPlan, ...]:
    """Every way in which a loader could boot a payload; ImageError for address fields that contradict it."""
    plans = [*_linux(payload)]
    rows = _program_headers(payload)
    loads = [row for row in rows if row.kind == _PT_LOAD and row.mem_size]
    ranges = tuple(LoadRange(row.offset, row.file_size, row.paddr, row.mem_size) for row in loads)
    virtual = tuple(row.vaddr for row in loads)
    start = _elf_entry(payload, loads)
    if start is not None:
        plans.append(BootPlan("elf", ranges, start, virtual))
    for header in find_multiboot(payload):
        span = load_range(header, len(payload))
        entry = header.entry if header.entry is not None else start
        if span is not None and entry is not None:
            plans.append(BootPlan(f"{header.protocol}, address fields", (span,), entry))
        elif loads and entry is not None:
            plans.append(BootPlan(f"{header.protocol}, ELF", ranges, entry, virtual))
    for note in read_notes(payload, [(r.offset, r.file_size, r.align) for r in rows if r.kind == _PT_NOTE]):
        if (note.owner, note.type) == _PVH_NOTE:
            entry = int.from_bytes(note.description[:8], "little")
            plans.append(BootPlan("pvh", ranges, entry, virtual))
    return tuple(plans)


def _program_headers(payload: bytes) -> list[_Row]:
    if payload[:4] != b"\x7fELF" or payload[4] not in _PROGRAM:
        return []
    wide = payload[4] == 2
    form = _PROGRAM[payload[4]]
    (table,) = struct.unpack_from("<Q" if wide else "<I", payload, 32 if wide else 28)
    (count,) = struct.unpack_from("<H", payload, 56 if wide else 44)
    rows = []
    for index in range(count):
        values = form.unpack_from(payload, table + index * form.size)
        if wide:
            kind, _, offset, vaddr, paddr, file_size, mem_size, align = values
        else:
            kind, offset, vaddr, paddr, file_size, mem_size, _, align = values
        rows.append(_Row(kind, offset, vaddr, paddr, file_size, mem_size, align))
    return rows


def _elf_entry(payload: bytes, loads: list[_Row]) -> int | None:
    """The physical place of e_entry: a virtual address of a segment, else a physical one."""
    if not loads:
        return None
    entry = int.from_bytes(payload[24 : 32 if payload[4] == 2 else 28], "little")
    for row in loads:
        if row.vaddr <= entry < row.vaddr + row.mem_size:
            return entry - row.vaddr + row.paddr
    return entry


def _linux(payload: bytes) -> list[BootPlan]:
    """The 32-bit entry of the code behind the setup sectors, and the 64-bit one that xloadflags promise."""
    if payload[_SIGNATURE : _SIGNATURE + 4] != b"HdrS" or len(payload) < 0x268:
        return []
    (version,) = struct.unpack_from("<H", payload, 0x206)
    start = ((payload[_HEADER] or 4) + 1) * 512
    (base,) = struct.unpack_from("<I", payload, 0x214)
    size = len(payload) - start  # GRUB and QEMU read all of the file into init_size bytes of memory
    memory = struct.unpack_from("<I", payload, 0x260)[0] if version >= 0x20A else 0
    ranges = (LoadRange(start, size, base, memory or size),)
    plans = [BootPlan("linux, 32 bits", ranges, base)]
    if version >= 0x20C and struct.unpack_from("<H", payload, 0x236)[0] & _XLF_KERNEL_64:
        plans.append(BootPlan("linux, 64 bits", ranges, base + 0x200))
    return plans
