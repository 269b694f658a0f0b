"""Machine memory as the model uses it, and the page tables of the hypervisor's own hole."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from runtime.backends.xen.layout import PAGE_SIZE
from runtime.memory import MemoryRange

__all__ = ["Hole", "MachineMemory", "build_hole"]

PRESENT, WRITE, USER, LARGE = 1, 2, 4, 0x80
TABLE = PRESENT | WRITE | USER
GDT_PAGES = 16


class MachineMemory:
    """All of machine memory, guest RAM and the hypervisor's part alike."""

    def __init__(self, memory: MemoryRange) -> None:
        self._memory = memory
        self.frames = memory.size // PAGE_SIZE
        words = np.frombuffer(memory.view[: self.frames * PAGE_SIZE], np.uint64)
        self._tables: npt.NDArray[np.uint64] = words.reshape(self.frames, 512)

    def load(self, address: int, length: int) -> bytes:
        """`length` bytes at a machine address."""
        return self._memory.load(address, length)

    def store(self, address: int, data: bytes) -> None:
        """Write bytes at a machine address."""
        self._memory.store(address, data)

    def entries(self, mfn: int) -> npt.NDArray[np.uint64]:
        """A frame as 512 table entries, writable in place."""
        table: npt.NDArray[np.uint64] = self._tables[mfn]
        return table


@dataclass(frozen=True)
class Hole:
    """Where Xen lives in every address space: first and last virtual address, and what it maps there."""

    first: int
    last: int
    m2p: int
    """Machine address of the machine-to-phys table, mapped read-only at `first`."""
    gdt: int
    """Virtual address of the 16 GDT pages."""
    gdt_table: int
    """Machine address of the L1 entries for them."""
    slot: int
    """First table slot of the hole (of the L4, or of a pv32 guest's last L2)."""
    values: tuple[int, ...]


def build_hole(memory: MachineMemory, width: int, first_frame: int, m2p_frame: int, m2p_frames: int) -> Hole:
    """Lay the hole's tables out in frames from `first_frame` on.

    pv64: M2P at 0xffff800000000000 (slot 256), per-domain area with the GDT in slot 260, as in
    asm-x86/config.h. pv32: M2P at 0xf5800000, the GDT in the last 2 MiB below 0xffe00000.
    """
    return (_hole64 if width == 64 else _hole32)(memory, first_frame, m2p_frame, m2p_frames)


def _fill(memory: MachineMemory, table: int, first: int, frames: range, flags: int) -> None:
    memory.entries(table)[first : first + len(frames)] = (
        np.arange(frames.start, frames.stop, dtype=np.uint64) << np.uint64(12)
    ) | np.uint64(flags)


def _hole64(memory: MachineMemory, frame: int, m2p_frame: int, m2p_frames: int) -> Hole:
    l3_m2p, l2_m2p, l3_domain, l2_domain, l1_domain = range(frame, frame + 5)
    l1_first = frame + 5
    tables = -(-m2p_frames // 512)
    for index in range(tables):
        count = min(512, m2p_frames - 512 * index)
        start = m2p_frame + 512 * index
        _fill(memory, l1_first + index, 0, range(start, start + count), PRESENT | USER)
        memory.entries(l2_m2p)[index] = (l1_first + index) << 12 | TABLE
    memory.entries(l3_m2p)[0] = l2_m2p << 12 | TABLE
    memory.entries(l2_domain)[0] = l1_domain << 12 | TABLE
    memory.entries(l3_domain)[0] = l2_domain << 12 | TABLE
    values = [0] * 16
    values[0] = l3_m2p << 12 | TABLE
    values[4] = l3_domain << 12 | TABLE
    return Hole(
        0xFFFF_8000_0000_0000,
        0xFFFF_87FF_FFFF_FFFF,
        m2p_frame * PAGE_SIZE,
        0xFFFF_8200_0000_0000,
        l1_domain * PAGE_SIZE,
        256,
        tuple(values),
    )


def _hole32(memory: MachineMemory, frame: int, m2p_frame: int, m2p_frames: int) -> Hole:
    l1_domain, l1_first = frame, frame + 1
    slot = 0xF580_0000 >> 21 & 511
    values = [0] * (512 - slot)
    for index in range(-(-m2p_frames // 512)):
        count = min(512, m2p_frames - 512 * index)
        start = m2p_frame + 512 * index
        _fill(memory, l1_first + index, 0, range(start, start + count), PRESENT | USER)
        values[index] = (l1_first + index) << 12 | TABLE
    values[-1] = l1_domain << 12 | TABLE
    return Hole(
        0xF580_0000,
        0xFFFF_FFFF,
        m2p_frame * PAGE_SIZE,
        0xFFE0_0000,
        l1_domain * PAGE_SIZE,
        slot,
        tuple(values),
    )
