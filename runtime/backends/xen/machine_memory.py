"""Machine memory as the model uses it, and the page tables of the hypervisor's own hole."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from runtime.backends.xen.layout import PAGE_SIZE
from runtime.memory import MemoryRange

__all__ = ["GDT_PAGES", "HOLE_TABLES", "LDT_PAGES", "TABLE", "Hole", "MachineMemory", "build_hole"]

PRESENT, WRITE, USER = 1, 2, 4
TABLE = PRESENT | WRITE | USER
GDT_PAGES = LDT_PAGES = 16
HOLE_TABLES = 6
"""Frames of the hole's page tables besides those of the M2P table's lowest level."""
M2P_64, M2P_32 = 0xFFFF_8000_0000_0000, 0xF580_0000
HOLE_64 = (M2P_64, 0xFFFF_87FF_FFFF_FFFF)
HOLE_32 = (M2P_32, 0xFFFF_FFFF)
FIRST_HOLE_SLOT, PER_DOMAIN_SLOT, HOLE_SLOTS = 256, 260, 16
PER_DOMAIN = 0xFFFF_8200_0000_0000
LDT_OFFSET = GDT_PAGES * PAGE_SIZE


class MachineMemory:
    """All of machine memory, guest RAM and the hypervisor's part alike."""

    def __init__(self, memory: MemoryRange) -> None:
        self.load, self.store = memory.load, memory.store
        """Bytes at a machine address."""
        self.frames = memory.size // PAGE_SIZE
        whole = memory.view[: self.frames * PAGE_SIZE]
        self.words: memoryview[int] = whole.cast("Q")
        """All of it as 64-bit numbers, by machine address divided by 8."""
        self._tables: npt.NDArray[np.uint64] = np.frombuffer(whole, np.uint64).reshape(self.frames, 512)

    def entries(self, mfn: int) -> npt.NDArray[np.uint64]:
        """A frame as 512 table entries, writable in place."""
        table: npt.NDArray[np.uint64] = self._tables[mfn]
        return table


@dataclass(frozen=True)
class Hole:
    """Where Xen lives in every address space: what the guest sees of it, and the per-domain area."""

    extent: tuple[int, int]
    """First and last virtual address that the guest cannot use."""
    m2p: int
    """Machine address of the machine-to-phys table, mapped read-only at the hole's start."""
    slot: int
    """First table slot of the hole in the guest's tables: of the L4, or of a pv32 guest's last L2."""
    values: tuple[int, ...]
    """What those slots hold."""
    per_domain_table: int
    """Machine address of the L1 entries of the per-domain area: 16 for the GDT, then 16 for the LDT."""
    monitor: int
    """pv32: the L4 frame of Xen's own, whose first entry is the guest's L3; 0 for pv64."""

    @property
    def gdt(self) -> int:
        """Virtual address of the 16 GDT pages."""
        return PER_DOMAIN

    @property
    def ldt(self) -> int:
        """Virtual address of the 16 LDT pages."""
        return PER_DOMAIN + LDT_OFFSET


def build_hole(memory: MachineMemory, width: int, first_frame: int, m2p_frame: int, m2p_frames: int) -> Hole:
    """Lay the hole's tables out in frames from `first_frame` on.

    pv64: M2P in L4 slot 256, the per-domain area in slot 260, as in asm-x86/config.h. pv32: M2P at 0xf5800000
    in the guest's last L2; the CPU runs in compatibility mode under an L4 of Xen's own, so the per-domain
    area is out of the guest's 32-bit reach.
    """
    monitor, l3_domain, l2_domain, l1_domain, l3_m2p, l2_m2p = range(first_frame, first_frame + HOLE_TABLES)
    memory.entries(l2_domain)[0] = l1_domain << 12 | TABLE
    memory.entries(l3_domain)[0] = l2_domain << 12 | TABLE
    leaves = _m2p_leaves(memory, first_frame + HOLE_TABLES, m2p_frame, m2p_frames)
    values = [0] * HOLE_SLOTS
    values[PER_DOMAIN_SLOT - FIRST_HOLE_SLOT] = l3_domain << 12 | TABLE
    if width == 64:
        memory.entries(l2_m2p)[: len(leaves)] = leaves
        memory.entries(l3_m2p)[0] = l2_m2p << 12 | TABLE
        values[0] = l3_m2p << 12 | TABLE
        return Hole(HOLE_64, m2p_frame * PAGE_SIZE, FIRST_HOLE_SLOT, tuple(values), l1_domain * PAGE_SIZE, 0)
    memory.entries(monitor)[FIRST_HOLE_SLOT : FIRST_HOLE_SLOT + HOLE_SLOTS] = values
    slot = M2P_32 >> 21 & 511
    guest_values = leaves + [0] * (512 - slot - len(leaves))
    return Hole(HOLE_32, m2p_frame * PAGE_SIZE, slot, tuple(guest_values), l1_domain * PAGE_SIZE, monitor)


def _m2p_leaves(memory: MachineMemory, first_table: int, m2p_frame: int, m2p_frames: int) -> list[int]:
    """L1 tables that map the M2P table read-only; the L2 entries for them."""
    leaves = []
    for index in range(-(-m2p_frames // 512)):
        start = m2p_frame + 512 * index
        count = min(512, m2p_frames - 512 * index)
        memory.entries(first_table + index)[:count] = (
            np.arange(start, start + count, dtype=np.uint64) << np.uint64(12)
        ) | np.uint64(PRESENT | USER)
        leaves.append((first_table + index) << 12 | TABLE)
    return leaves
