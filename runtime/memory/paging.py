"""Page-table walks for i386 (2 levels), PAE (3) and x86-64 (4).

Follows Intel SDM vol. 3 chapter 4: permissions are the AND over all levels, accessed and dirty
bits are set on success only, reserved bits fault with RSVD; a table outside memory is absent. Used
for exception delivery, reports and shadow memory; for the guest's own accesses the same rules are
in machine code (`runtime.cpu.walker_code`).
"""

from __future__ import annotations

import enum
from typing import NamedTuple

from runtime.memory.ram import MemoryRange

__all__ = ["PageFault", "PagingMode", "Translation", "paging_mode", "translate"]

CR0_WP = 1 << 16
CR0_PG = 1 << 31
CR4_PSE = 1 << 4
CR4_PAE = 1 << 5
CR4_SMEP = 1 << 20
EFER_LMA = 1 << 10
EFER_NXE = 1 << 11

PTE_PRESENT = 1
PTE_WRITE = 2
PTE_USER = 4
PTE_ACCESSED = 0x20
PTE_DIRTY = 0x40
PTE_LARGE = 0x80
PTE_NX = 1 << 63
PHYSICAL_RESERVED = 0x000F_FF00_0000_0000
"""Bits 40 to 51: physical addresses have 40 bits (CPUID 0x80000008)."""
_FRAME = 0x000F_FFFF_FFFF_F000

ERROR_PRESENT = 1
ERROR_WRITE = 2
ERROR_USER = 4
ERROR_RESERVED = 8
ERROR_FETCH = 16


class PagingMode(enum.Enum):
    """How linear addresses are translated."""

    NONE = 0
    LEVELS2 = 2
    PAE = 3
    LEVELS4 = 4


class Translation(NamedTuple):
    """Where a linear address leads, and what may be done there."""

    physical: int
    page_size: int
    writable: bool
    user: bool
    executable: bool


class PageFault(Exception):
    """The walk failed; `error_code` is what hardware would push."""

    def __init__(self, linear: int, error_code: int) -> None:
        super().__init__(f"page fault at {linear:#x}, error code {error_code:#x}")
        self.linear = linear
        self.error_code = error_code


def paging_mode(cr0: int, cr4: int, efer: int) -> PagingMode:
    """The paging mode that control registers select (SDM table 4-1)."""
    if not cr0 & CR0_PG:
        return PagingMode.NONE
    if efer & EFER_LMA:
        return PagingMode.LEVELS4
    return PagingMode.PAE if cr4 & CR4_PAE else PagingMode.LEVELS2


def _entries(mode: PagingMode, linear: int) -> tuple[tuple[int, int], ...]:
    """(byte offset in the table, page size if it is a leaf) per level, top first."""
    if mode is PagingMode.LEVELS4:
        return (
            ((linear >> 39 & 0x1FF) * 8, 0),
            ((linear >> 30 & 0x1FF) * 8, 1 << 30),
            ((linear >> 21 & 0x1FF) * 8, 1 << 21),
            ((linear >> 12 & 0x1FF) * 8, 1 << 12),
        )
    if mode is PagingMode.PAE:
        return (
            ((linear >> 30 & 3) * 8, 0),
            ((linear >> 21 & 0x1FF) * 8, 1 << 21),
            ((linear >> 12 & 0x1FF) * 8, 1 << 12),
        )
    return (((linear >> 22 & 0x3FF) * 4, 1 << 22), ((linear >> 12 & 0x3FF) * 4, 1 << 12))


def translate(
    memory: MemoryRange,
    linear: int,
    *,
    cr0: int,
    cr3: int,
    cr4: int,
    efer: int,
    write: bool = False,
    user: bool = False,
    fetch: bool = False,
    mark: bool = True,
) -> Translation:
    """Translate `linear` for an access; `mark` sets accessed and dirty bits as hardware does.

    Raises `PageFault` with the architectural error code.
    """
    mode = paging_mode(cr0, cr4, efer)
    if mode is PagingMode.NONE:
        return Translation(linear & 0xFFFFFFFF, 1 << 12, True, True, True)
    nx_on = bool(efer & EFER_NXE)
    access = (ERROR_WRITE if write else 0) | (ERROR_USER if user else 0)
    if fetch and ((nx_on and cr4 & CR4_PAE) or cr4 & CR4_SMEP):
        access |= ERROR_FETCH
    wide = mode is not PagingMode.LEVELS2
    load = memory.load_u64 if wide else memory.load_u32
    table = cr3 & (_FRAME if mode is PagingMode.LEVELS4 else 0xFFFFFFE0 if wide else 0xFFFFF000)
    writable = user_ok = executable = True
    visited: list[tuple[int, int]] = []
    for level, (offset, leaf_size) in enumerate(_entries(mode, linear)):
        address = table + offset
        entry = load(address) if address + 8 <= memory.size else 0
        if not entry & PTE_PRESENT:
            raise PageFault(linear, access)
        is_pdpte = mode is PagingMode.PAE and level == 0
        if wide and not is_pdpte and entry & (PHYSICAL_RESERVED if nx_on else PHYSICAL_RESERVED | PTE_NX):
            raise PageFault(linear, access | ERROR_PRESENT | ERROR_RESERVED)
        if not is_pdpte:
            writable = writable and bool(entry & PTE_WRITE)
            user_ok = user_ok and bool(entry & PTE_USER)
            executable = executable and not (wide and entry & PTE_NX)
            visited.append((address, entry))
        large_allowed = wide or bool(cr4 & CR4_PSE)
        is_leaf = leaf_size == 1 << 12 or (leaf_size and entry & PTE_LARGE and large_allowed)
        if is_leaf:
            if wide and entry & (leaf_size - 1) & ~0x1FFF:
                raise PageFault(linear, access | ERROR_PRESENT | ERROR_RESERVED)
            break
        table = entry & (_FRAME if wide else 0xFFFFF000)
    if user:
        allowed = user_ok and (writable or not write) and (executable or not fetch)
    else:
        allowed = (writable or not write or not cr0 & CR0_WP) and (executable or not fetch)
        allowed = allowed and not (fetch and cr4 & CR4_SMEP and user_ok)
    if not allowed:
        raise PageFault(linear, access | ERROR_PRESENT)
    if mark:
        _mark(memory, visited, write, wide)
    frame = entry & _FRAME if wide else entry & 0xFFFFF000
    if leaf_size == 1 << 22:  # PSE-36: bits 13..20 of the entry are bits 32..39 of the address
        frame = entry & 0xFFC00000 | (entry >> 13 & 0xFF) << 32
    return Translation(
        (frame & ~(leaf_size - 1)) | (linear & (leaf_size - 1)), leaf_size, writable, user_ok, executable
    )


def _mark(memory: MemoryRange, visited: list[tuple[int, int]], write: bool, wide: bool) -> None:
    """Set accessed on every level and dirty on the leaf."""
    store = memory.store_u64 if wide else memory.store_u32
    for position, (address, entry) in enumerate(visited):
        wanted = entry | PTE_ACCESSED
        if write and position == len(visited) - 1:
            wanted |= PTE_DIRTY
        if wanted != entry:
            store(address, wanted)
