"""Direct paging: the guest's own tables are the hardware's, so every entry is checked before it counts.

Follows xen/arch/x86/mm.c (get_page_from_lNe, alloc_lN_table, mod_lN_entry, do_mmuext_op) and
arch/x86/pv/mm.h (adjust_guest_lNe). Two formats: four levels for pv64, PAE's three for pv32.
Entries hold machine frames. Bits are named as in SDM volume 3, section 4.5.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from runtime.backends.xen.frames import DOMAIN, FrameTable, PageType, XenError
from runtime.backends.xen.layout import ERRNO, PAGE_SIZE

__all__ = ["FRAME_MASK", "HoleEntries", "PageTables", "Translation"]

PRESENT, WRITE, USER, ACCESSED, DIRTY, PSE, GLOBAL = 1, 2, 4, 0x20, 0x40, 0x80, 0x100
NX = 1 << 63
GUEST_KERNEL = 1 << 52
"""The available bit by which Xen remembers that a pv64 entry was a kernel one (_PAGE_GUEST_KERNEL)."""
AVAILABLE_HIGH = 0x7FF << 52
FRAME_MASK = 0x000F_FFFF_FFFF_F000
ALLOWED = PRESENT | WRITE | USER | ACCESSED | DIRTY | 0xE00 | AVAILABLE_HIGH | NX
"""Flag bits a guest may set at every level (the complement of base_disallow_mask)."""
ALLOWED_L1 = ALLOWED | GLOBAL
ALLOWED_PAE_L3 = PRESENT | WRITE | USER | ACCESSED | DIRTY | 0xE00
"""The complement of COMPAT_L3_DISALLOW_MASK: a 64-bit Xen gives pv32 guests these, unlike PAE hardware."""
SHIFT = {1: 12, 2: 21, 3: 30, 4: 39}


@dataclass(frozen=True)
class HoleEntries:
    """The table slots that belong to Xen (of the L4, or of a pv32 guest's last L2), and their content."""

    first: int
    values: tuple[int, ...]

    def owns(self, index: int) -> bool:
        """Is this slot of the top-level table Xen's?"""
        return self.first <= index < self.first + len(self.values)


@dataclass(frozen=True)
class Translation:
    """Where a guest virtual address leads, and the leaf entry: machine addresses, and its value."""

    address: int
    entry_address: int
    entry: int
    writable: bool
    user: bool


class PageTables:
    """The page-table rules over a FrameTable for one guest width (32: PAE, 64: four levels)."""

    def __init__(self, frames: FrameTable, width: int, hole: HoleEntries) -> None:
        self.frames = frames
        self.width = width
        self.top_level = 4 if width == 64 else 3
        self.hole = hole
        self._last_gigabyte: set[int] = set()

    # -- types of frames ---------------------------------------------------------------------

    def get_type(self, mfn: int, kind: PageType) -> None:
        """Take a reference and a type reference, validating the frame's content on the first one.

        Raises XenError: EINVAL for a frame that is not the domain's or holds another type or bad entries.
        """
        frames = self.frames
        frames.get(mfn)
        try:
            if frames.type_count[mfn] and frames.kind[mfn] != kind:
                raise XenError(
                    ERRNO.EINVAL,
                    f"frame {mfn:#x} is in use as {PageType(frames.kind[mfn]).name}, not {kind.name}",
                )
            if not frames.type_count[mfn] and kind in (PageType.L1, PageType.L2, PageType.L3, PageType.L4):
                self._validate(mfn, int(kind))
            frames.kind[mfn] = kind
            frames.type_count[mfn] += 1
        except XenError:
            frames.put(mfn)
            raise

    def put_type(self, mfn: int) -> None:
        """Drop a type reference and its general one; the last one gives up what the table referred to."""
        frames = self.frames
        frames.type_count[mfn] -= 1
        if frames.type_count[mfn] == 0 and PageType.L1 <= frames.kind[mfn] <= PageType.L4:
            level = int(frames.kind[mfn])
            self._release_entries(mfn, level, self._present(mfn, level))
        frames.put(mfn)

    def _present(self, mfn: int, level: int) -> list[int]:
        """Indices of the present entries that the guest owns."""
        entries = self.frames.memory.entries(mfn)
        count = 4 if level == 3 and self.width == 32 else 512
        found = np.nonzero(entries[:count] & np.uint64(PRESENT))[0]
        if self._holds_hole(mfn, level):
            return [int(i) for i in found if not self.hole.owns(int(i))]
        return [int(i) for i in found]

    def _holds_hole(self, mfn: int, level: int) -> bool:
        """Has this table Xen's own slots: the L4 of a pv64 guest, the L2 of a pv32 guest's last gigabyte?"""
        return level == 4 if self.width == 64 else level == 2 and mfn in self._last_gigabyte

    def _install_hole(self, mfn: int) -> None:
        entries = self.frames.memory.entries(mfn)
        start = self.hole.first
        entries[start : start + len(self.hole.values)] = np.array(self.hole.values, np.uint64)

    def _validate(self, mfn: int, level: int) -> None:
        """Check every entry of a table that is about to be one, taking what each refers to."""
        if level == 1:
            self._validate_l1(mfn)
            return
        entries = self.frames.memory.entries(mfn)
        taken: list[int] = []
        # A linear mapping of the table itself must find it typed already.
        try:
            for index in self._present(mfn, level):
                value = int(entries[index])
                self._take(value, level, mfn)
                taken.append(index)
                entries[index] = self._adjusted(value, level)
        except XenError:
            self._release_entries(mfn, level, taken)
            raise
        if self._holds_hole(mfn, level):
            self._install_hole(mfn)
        if level == 3 and self.width == 32:
            self._adopt_last_gigabyte(int(entries[3]))

    def _adopt_last_gigabyte(self, entry: int) -> None:
        """A pv32 guest's fourth L2 table carries Xen's mappings (PGT_pae_xen_l2)."""
        if entry & PRESENT:
            table = (entry & FRAME_MASK) >> 12
            self._last_gigabyte.add(table)
            self._install_hole(table)

    def _validate_l1(self, mfn: int) -> None:
        frames = self.frames
        entries = frames.memory.entries(mfn)
        index = np.nonzero(entries & np.uint64(PRESENT))[0]
        values = entries[index]
        if np.any(values & np.uint64(~(ALLOWED_L1 | FRAME_MASK) & (1 << 64) - 1)):
            raise XenError(ERRNO.EINVAL, f"L1 table {mfn:#x} has flag bits that a guest may not set")
        targets = ((values & np.uint64(FRAME_MASK)) >> np.uint64(12)).astype(np.int64)
        if np.any(targets >= frames.frames):
            raise XenError(ERRNO.EPERM, f"L1 table {mfn:#x} maps frames outside machine memory")
        shared = frames.shared_with_guest(targets)
        if np.any((frames.owner[targets] != DOMAIN) & ~shared):
            raise XenError(ERRNO.EBUSY, f"L1 table {mfn:#x} maps frames that are not the domain's")
        written = targets[((values & np.uint64(WRITE)) != 0) & ~shared]
        if np.any((frames.type_count[written] != 0) & (frames.kind[written] != PageType.WRITABLE)) or (
            mfn in written
        ):
            raise XenError(ERRNO.EBUSY, f"L1 table {mfn:#x} maps a table or descriptor page writable")
        frames.kind[written] = PageType.WRITABLE
        np.add.at(frames.type_count, written, 1)
        np.add.at(frames.references, targets[~shared], 1)
        if self.width == 64:
            entries[index] = self._adjust_l1_array(values)

    @staticmethod
    def _adjust_l1_array(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
        kernel = (values & np.uint64(USER)) == 0
        values = np.where(kernel, values | np.uint64(GUEST_KERNEL | USER), values)
        return np.where((values & np.uint64(GUEST_KERNEL)) == 0, values | np.uint64(GLOBAL | USER), values)

    def _release_entries(self, mfn: int, level: int, indices: list[int]) -> None:
        entries = self.frames.memory.entries(mfn)
        for index in indices:
            self._drop(int(entries[index]), level)

    # -- one entry ---------------------------------------------------------------------------

    def _take(self, value: int, level: int, table: int) -> None:
        """Take what a present entry refers to. Raises XenError with the code that Xen gives."""
        frames = self.frames
        mfn = (value & FRAME_MASK) >> 12
        if level == 1:
            if value & ~(ALLOWED_L1 | FRAME_MASK):
                raise XenError(ERRNO.EINVAL, f"L1 entry {value:#x} has bits that a guest may not set")
            if not frames.valid(mfn):
                raise XenError(ERRNO.EPERM if mfn != FRAME_MASK >> 12 else ERRNO.EINVAL, "I/O memory")
            if bool(frames.shared_with_guest(np.array([mfn]))[0]):
                return
            if not frames.owned(mfn):
                raise XenError(ERRNO.EBUSY, f"frame {mfn:#x} is not the domain's")
            if value & WRITE:
                frames.get_writable(mfn)
            frames.references[mfn] += 1
            return
        allowed = ALLOWED_PAE_L3 if level == 3 and self.width == 32 else ALLOWED
        if value & ~(allowed | FRAME_MASK):
            raise XenError(ERRNO.EINVAL, f"L{level} entry {value:#x} has bits that a guest may not set")
        if mfn == table or (
            frames.owned(mfn) and frames.type_count[mfn] and frames.kind[mfn] == level and not value & WRITE
        ):
            self._take_linear(value, mfn, level, table)
            return
        self.get_type(mfn, PageType(level - 1))

    def _take_linear(self, value: int, mfn: int, level: int, table: int) -> None:
        """A table entry that leads to a table of the same level: only read-only (get_lN_linear_pagetable)."""
        if value & WRITE:
            raise XenError(ERRNO.EINVAL, f"linear L{level} mapping of {mfn:#x} is writable")
        if mfn != table:
            self.frames.references[mfn] += 1
            self.frames.type_count[mfn] += 1

    def _drop(self, value: int, level: int) -> None:
        frames = self.frames
        mfn = (value & FRAME_MASK) >> 12
        if level > 1:
            if frames.kind[mfn] == level:
                if frames.type_count[mfn] > 1:
                    frames.type_count[mfn] -= 1
                    frames.put(mfn)
                return
            self.put_type(mfn)
            return
        if not frames.owned(mfn):
            return
        if value & WRITE and frames.kind[mfn] == PageType.WRITABLE and frames.type_count[mfn]:
            frames.put_writable(mfn)
        frames.put(mfn)

    def _adjusted(self, value: int, level: int) -> int:
        """The entry as Xen stores it: a pv64 kernel runs at CPL 3, so every entry is a user one."""
        if not value & PRESENT:
            return value
        if self.width == 32:
            return value | WRITE | USER if level == 3 else value
        if level > 1:
            return value | USER
        if not value & USER:
            value |= GUEST_KERNEL | USER
        if not value & GUEST_KERNEL:
            value |= GLOBAL | USER
        return value

    def write_entry(self, address: int, value: int, preserve_ad: bool = False) -> None:
        """Update one entry at a machine address, whatever the frame is used as (do_mmu_update, normal).

        Raises XenError as Xen does; the entry is unchanged then.
        """
        mfn, offset = address >> 12, address & (PAGE_SIZE - 1)
        frames = self.frames
        if not frames.owned(mfn):
            raise XenError(ERRNO.EINVAL, f"frame {mfn:#x} is not the domain's")
        kind = int(frames.kind[mfn]) if frames.type_count[mfn] else 0
        if PageType.L1 <= kind <= PageType.L4:
            self._modify(mfn, offset // 8, value, kind, preserve_ad)
        elif kind in (PageType.NONE, PageType.WRITABLE):
            frames.memory.store(address & ~7, value.to_bytes(8, "little"))
        else:
            raise XenError(ERRNO.EINVAL, f"frame {mfn:#x} holds segment descriptors")

    def _modify(self, mfn: int, index: int, value: int, level: int, preserve_ad: bool) -> None:
        if self._holds_hole(mfn, level) and self.hole.owns(index):
            raise XenError(ERRNO.EINVAL, f"slot {index} of this table belongs to Xen")
        if level == 3 and self.width == 32 and index >= 4:
            raise XenError(ERRNO.EINVAL, f"PAE has 4 top-level entries, not {index + 1}")
        entries = self.frames.memory.entries(mfn)
        old = int(entries[index])
        if value & PRESENT:
            same = PRESENT | USER | WRITE if level == 1 else PRESENT
            if not (
                old & PRESENT
                and (old ^ value) & (FRAME_MASK | same) == 0
                and not value & ~ALLOWED_L1 & ~FRAME_MASK
            ):
                self._take(value, level, mfn)
            else:
                old &= ~PRESENT
            value = self._adjusted(value, level)
        if preserve_ad:
            value |= int(entries[index]) & (ACCESSED | DIRTY)
        entries[index] = value
        if level == 3 and self.width == 32 and index == 3:
            self._adopt_last_gigabyte(value)
        if old & PRESENT:
            self._drop(old, level)

    # -- the tree ----------------------------------------------------------------------------

    def pin(self, mfn: int, level: int) -> None:
        """MMUEXT_PIN_Ln_TABLE: hold the type until it is unpinned. Raises XenError(EINVAL)."""
        self.get_type(mfn, PageType(level))
        if self.frames.pinned[mfn]:
            self.put_type(mfn)
            raise XenError(ERRNO.EINVAL, f"frame {mfn:#x} is pinned already")
        self.frames.pinned[mfn] = level

    def unpin(self, mfn: int) -> None:
        """MMUEXT_UNPIN_TABLE. Raises XenError(EINVAL) where there is no pin."""
        if not self.frames.owned(mfn) or not self.frames.pinned[mfn]:
            raise XenError(ERRNO.EINVAL, f"frame {mfn:#x} is not pinned")
        self.frames.pinned[mfn] = 0
        self.put_type(mfn)

    def get_root(self, mfn: int) -> None:
        """Take a frame as a top-level table. Raises XenError(EINVAL)."""
        if not self.frames.owned(mfn):
            raise XenError(ERRNO.EINVAL, f"frame {mfn:#x} is not the domain's")
        self.get_type(mfn, PageType(self.top_level))

    def leaf_entry(self, root: int, address: int) -> int | None:
        """Machine address of the L1 entry for a virtual address, present or not; None without an L1 table."""
        table = root
        for level in range(self.top_level, 1, -1):
            entry = int(self.frames.memory.entries(table)[self._index(address, level)])
            table = (entry & FRAME_MASK) >> 12
            if not entry & PRESENT or entry & PSE or not self.frames.owned(table):
                return None
        return table * PAGE_SIZE + self._index(address, 1) * 8

    def _index(self, address: int, level: int) -> int:
        return (address >> SHIFT[level]) & (3 if level == 3 and self.width == 32 else 511)

    def walk(self, root: int, address: int) -> Translation | None:
        """The leaf that maps a guest virtual address under the top-level frame `root`, or None."""
        table, writable, user = root, True, True
        for level in range(self.top_level, 0, -1):
            index = self._index(address, level)
            entry = int(self.frames.memory.entries(table)[index])
            if not entry & PRESENT:
                return None
            if not (level == 3 and self.width == 32):
                writable = writable and bool(entry & WRITE)
                user = user and bool(entry & USER)
            mfn = (entry & FRAME_MASK) >> 12
            if not self.frames.valid(mfn):
                return None
            if level == 1 or (entry & PSE and level == 2):
                mask = (1 << SHIFT[level]) - 1
                return Translation(
                    (entry & FRAME_MASK & ~mask) | (address & mask),
                    table * PAGE_SIZE + index * 8,
                    entry,
                    writable,
                    user,
                )
            table = mfn
        return None
