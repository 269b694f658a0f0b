"""Direct paging: the guest's own tables are the hardware's, so every entry is checked before it counts.

Follows xen/arch/x86/mm.c (get_page_from_lNe, alloc_lN_table, mod_lN_entry, get_page_type) and
arch/x86/pv/mm.h (adjust_guest_lNe). Two formats: four levels for pv64, three for pv32, which a 64-bit Xen
runs in compatibility mode. Entries hold machine frames. Bits are named as in SDM volume 3, section 4.5.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from runtime.backends.xen.descriptors import checked_descriptor
from runtime.backends.xen.frames import DOMAIN, FrameTable, PageType, XenError
from runtime.backends.xen.layout import ERRNO, PAGE_SIZE

__all__ = ["FRAME_MASK", "HoleEntries", "PageTables", "Translation"]

PRESENT, WRITE, USER, ACCESSED, DIRTY, PSE, GLOBAL = 1, 2, 4, 0x20, 0x40, 0x80, 0x100
NX = 1 << 63
GUEST_KERNEL = 1 << 52
"""The available bit by which Xen remembers that a pv64 entry was a kernel one (_PAGE_GUEST_KERNEL)."""
AVAILABLE, AVAILABLE_HIGH = 0xE00, 0x7FF << 52
FRAME_MASK = 0x000F_FFFF_FFFF_F000
ALLOWED = PRESENT | WRITE | USER | ACCESSED | DIRTY | AVAILABLE | AVAILABLE_HIGH | NX
"""Flag bits a guest may set at every level (the complement of base_disallow_mask)."""
ALLOWED_L1 = ALLOWED | GLOBAL
ALLOWED_PAE_L3 = PRESENT | WRITE | USER | ACCESSED | DIRTY | AVAILABLE
"""The complement of COMPAT_L3_DISALLOW_MASK: a 64-bit Xen gives pv32 guests these, unlike PAE hardware."""
FREELY_CHANGED = NX | AVAILABLE_HIGH | AVAILABLE | GLOBAL | DIRTY | ACCESSED | USER
"""Bits in which an entry may change without being looked at again (FASTPATH_FLAG_WHITELIST)."""
SHIFT = {1: 12, 2: 21, 3: 30, 4: 39}
ENTRIES = 512
LAST_GIGABYTE = 3
NO_FRAME = FRAME_MASK >> 12
_DISALLOWED = {
    width: {
        level: (1 << 64) - 1
        & ~FRAME_MASK
        & ~(ALLOWED_L1 if level == 1 else ALLOWED_PAE_L3 if (width, level) == (32, 3) else ALLOWED)
        for level in SHIFT
    }
    for width in (32, 64)
}
"""Bits that an entry of a level must not have set, by guest width."""
_L1, _L4, _SEGMENT, _WRITABLE = (
    int(kind) for kind in (PageType.L1, PageType.L4, PageType.SEGMENT, PageType.WRITABLE)
)


@dataclass(frozen=True)
class HoleEntries:
    """The table slots that belong to Xen (of the L4, or of a pv32 guest's last L2), and their content."""

    first: int
    values: tuple[int, ...]

    def owns(self, index: int) -> bool:
        """Is this slot of the top-level table Xen's?"""
        return self.first <= index < self.first + len(self.values)


class Translation(NamedTuple):
    """Where a guest virtual address leads, and the leaf entry: machine addresses, and its value."""

    address: int
    entry_address: int
    entry: int
    writable: bool
    user: bool


class PageTables:
    """The page-table rules over a FrameTable for one guest width (32: three levels, 64: four)."""

    def __init__(self, frames: FrameTable, width: int, hole: HoleEntries) -> None:
        self.frames = frames
        self.width = width
        self.top_level = 4 if width == 64 else 3
        self.hole = hole
        self._disallowed = _DISALLOWED[width]
        self._steps = tuple((SHIFT[level], self._last_index(level)) for level in range(self.top_level, 0, -1))
        self.on_descriptors_unmapped: Callable[[], None] = lambda: None
        """A mapping of a descriptor page goes: it may be wanted for something else soon."""
        self.flush: Callable[[], None] = lambda: None
        """Has the CPU forget its translations."""
        self.stale = False
        """A present entry has changed and the CPU may have a translation by the old one. The guest flushes
        when it cares; Xen does before a frame gets another use (tlbflush_filter)."""

    # -- types of frames ---------------------------------------------------------------------

    def get_type(self, mfn: int, kind: PageType, with_hole: bool = False) -> None:
        """Take a reference and a type reference, validating the frame's content on the first one.

        `with_hole` asks for a pv32 guest's last L2, which carries Xen's mappings (PGT_pae_xen_l2).
        Raises XenError: EINVAL for a frame that is not the domain's or has another type, else what
        is wrong with its content.
        """
        frames = self.frames
        frames.get(mfn)
        if frames.type_count[mfn]:
            if frames.kind[mfn] != kind or frames.with_hole[mfn] != with_hole or not frames.validated[mfn]:
                frames.put(mfn)
                raise XenError(
                    ERRNO.EINVAL,
                    f"frame {mfn:#x} is in use as {PageType(frames.kind[mfn]).name}, not {kind.name}",
                )
            frames.type_count[mfn] += 1
            return
        self.settle()
        frames.set_type(mfn, kind, with_hole)
        try:
            self._validate(mfn, kind)
        except XenError:
            frames.clear_type(mfn)
            frames.put(mfn)
            raise
        frames.validated[mfn] = 1

    def settle(self) -> None:
        """A frame gets another use: no stale translation may reach it any more."""
        if self.stale:
            self.stale = False
            self.flush()

    def put_type(self, mfn: int) -> None:
        """Drop a type reference and its general one; the last one gives up what the table referred to."""
        frames = self.frames
        if frames.type_count[mfn] == 1:
            kind = frames.kind[mfn]
            frames.validated[mfn] = 0
            if _L1 <= kind <= _L4:
                self.stale = True
                self._release_entries(mfn, kind, self._present(mfn, kind))
            frames.clear_type(mfn)
        else:
            frames.type_count[mfn] -= 1
        frames.put(mfn)

    def _present(self, mfn: int, level: int) -> list[int]:
        """Indices of the present entries that the guest owns."""
        entries = self.frames.memory.entries(mfn)
        found: list[int] = np.nonzero(entries[: self._last_index(level) + 1] & np.uint64(PRESENT))[0].tolist()
        if self._holds_hole(mfn, level):
            return [index for index in found if not self.hole.owns(index)]
        return found

    def _holds_hole(self, mfn: int, level: int) -> bool:
        """Has this table Xen's own slots: the L4 of a pv64 guest, the L2 of a pv32 guest's last gigabyte?"""
        return level == 4 if self.width == 64 else bool(self.frames.with_hole[mfn])

    def _validate(self, mfn: int, kind: PageType) -> None:
        """Check every entry of a frame that is about to be a table, taking what each refers to."""
        if kind == PageType.L1:
            self._validate_l1(mfn)
        elif kind == PageType.SEGMENT:
            self._validate_descriptors(mfn)
        elif kind in (PageType.L2, PageType.L3, PageType.L4):
            self._validate_table(mfn, int(kind))

    def _validate_descriptors(self, mfn: int) -> None:
        """Descriptors are mended where they stand (validate_segdesc_page)."""
        table = self.frames.memory.entries(mfn)
        for index in np.nonzero(table)[0]:
            table[index] = checked_descriptor(int(table[index]), self.width)

    def _validate_table(self, mfn: int, level: int) -> None:
        entries = self.frames.memory.entries(mfn)
        taken: list[int] = []
        try:
            if level == 3 and self.width == 32 and not int(entries[LAST_GIGABYTE]) & PRESENT:
                raise XenError(
                    ERRNO.EINVAL, "the last L2 of a pv32 guest, which holds Xen's part, is missing"
                )
            for index in self._present(mfn, level):
                self._take(int(entries[index]), level, mfn, index)
                taken.append(index)
                entries[index] = self._adjusted(int(entries[index]), level)
        except XenError:
            self._release_entries(mfn, level, taken)
            raise
        if self._holds_hole(mfn, level):
            start = self.hole.first
            entries[start : start + len(self.hole.values)] = np.array(self.hole.values, np.uint64)

    def _validate_l1(self, mfn: int) -> None:
        """All 512 entries at once; a wrong table is looked at again, entry by entry, for the first error."""
        frames, columns = self.frames, self.frames.columns
        entries = frames.memory.entries(mfn)
        index = np.nonzero(entries & np.uint64(PRESENT))[0]
        values = entries[index]
        targets = ((values & np.uint64(FRAME_MASK)) >> np.uint64(12)).astype(np.int64)
        wrong = bool(np.any(values & np.uint64(self._disallowed[1])))
        if wrong or bool(np.any(targets >= frames.frames)):
            self._report_l1(values)
        shared = frames.shared_with_guest(targets)
        written = targets[((values & np.uint64(WRITE)) != 0) & ~shared]
        if np.any((columns.owner[targets] != DOMAIN) & ~shared) or np.any(
            (columns.type_count[written] != 0) & (columns.kind[written] != _WRITABLE)
        ):
            self._report_l1(values)
        columns.kind[written] = _WRITABLE
        np.add.at(columns.type_count, written, 1)
        np.add.at(columns.references, targets, 1)
        if self.width == 64:
            entries[index] = self._adjust_l1_array(values)

    def _report_l1(self, values: npt.NDArray[np.uint64]) -> None:
        for value in values:
            self._check_l1(int(value))

    @staticmethod
    def _adjust_l1_array(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
        kernel = (values & np.uint64(USER)) == 0
        values = np.where(kernel, values | np.uint64(GUEST_KERNEL | USER), values)
        return np.where((values & np.uint64(GUEST_KERNEL)) == 0, values | np.uint64(GLOBAL | USER), values)

    def _release_entries(self, mfn: int, level: int, indices: list[int]) -> None:
        words, table = self.frames.memory.words, mfn * ENTRIES
        for index in indices:
            self._drop(words[table + index], level, mfn)

    # -- one entry ---------------------------------------------------------------------------

    def _check_l1(self, value: int) -> None:
        """get_page_from_l1e's verdict on a present entry. Raises XenError."""
        frames = self.frames
        mfn = (value & FRAME_MASK) >> 12
        self._check_bits(value, 1)
        if not frames.valid(mfn):
            raise XenError(ERRNO.EINVAL if mfn == NO_FRAME else ERRNO.EPERM, f"frame {mfn:#x} is I/O memory")
        if frames.is_shared(mfn):
            return
        if not frames.owned(mfn):
            raise XenError(ERRNO.EBUSY, f"frame {mfn:#x} is not the domain's")
        if value & WRITE and frames.type_count[mfn] and frames.kind[mfn] != _WRITABLE:
            raise XenError(ERRNO.EBUSY, f"frame {mfn:#x} is a {PageType(frames.kind[mfn]).name} page")

    def _check_bits(self, value: int, level: int) -> None:
        if value & self._disallowed[level]:
            raise XenError(ERRNO.EINVAL, f"L{level} entry {value:#x} has bits that a guest may not set")

    def _take(self, value: int, level: int, table: int, index: int) -> None:
        """Take what a present entry refers to. Raises XenError with the code that Xen gives."""
        frames = self.frames
        mfn = (value & FRAME_MASK) >> 12
        if level == 1:
            self._check_l1(value)
            if value & WRITE and not frames.is_shared(mfn):
                frames.get_writable(mfn)
            frames.references[mfn] += 1
            return
        self._check_bits(value, level)
        last = self.width == 32 and level == 3 and index == LAST_GIGABYTE
        try:
            self.get_type(mfn, PageType(level - 1), with_hole=last)
        except XenError as error:
            if error.errno != ERRNO.EINVAL or not self._take_linear(value, mfn, level, table):
                raise

    def _take_linear(self, value: int, mfn: int, level: int, table: int) -> bool:
        """A table of the same level below this one, read-only (get_lN_linear_pagetable): may it be?

        A table used so may not itself use another so: loops would keep each other for ever. A pv32 guest's
        top-level table, whose entries Xen makes writable, may not be used so at all.
        """
        frames = self.frames
        if value & WRITE or (self.width == 32 and level == 3):
            return False
        if mfn == table:
            return True
        if not frames.owned(mfn) or frames.kind[mfn] != level or not frames.validated[mfn]:
            return False
        if frames.linear[table] < 0 or frames.linear[mfn] > 0:
            return False
        frames.linear[table] += 1
        frames.linear[mfn] -= 1
        frames.get(mfn)
        frames.type_count[mfn] += 1
        return True

    def _drop(self, value: int, level: int, table: int) -> None:
        """Give up what a present entry referred to (put_page_from_lNe)."""
        frames = self.frames
        mfn = (value & FRAME_MASK) >> 12
        if level > 1:
            if mfn == table:
                return
            if frames.kind[mfn] == level:
                frames.linear[table] -= 1
                frames.linear[mfn] += 1
            self.put_type(mfn)
            return
        if frames.is_shared(mfn):
            frames.references[mfn] -= 1
            return
        if value & WRITE:
            frames.put_writable(mfn)
        elif frames.kind[mfn] == _SEGMENT:
            self.on_descriptors_unmapped()
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
        kind = frames.kind[mfn] if frames.type_count[mfn] else 0
        if _L1 <= kind <= _L4:
            self._modify(mfn, offset // 8, value, kind, preserve_ad)
        elif kind in (0, _WRITABLE):
            frames.memory.words[address >> 3] = value
        else:
            raise XenError(ERRNO.EINVAL, f"frame {mfn:#x} holds segment descriptors")

    def _modify(self, mfn: int, index: int, value: int, level: int, preserve_ad: bool) -> None:
        """mod_lN_entry."""
        if self._holds_hole(mfn, level) and self.hole.owns(index):
            raise XenError(ERRNO.EINVAL, f"slot {index} of this table belongs to Xen")
        if level == 3 and self.width == 32 and index >= LAST_GIGABYTE:
            raise XenError(ERRNO.EINVAL, f"slot {index} of a pv32 guest's L3 cannot change")
        words, place = self.frames.memory.words, mfn * ENTRIES + index
        old = words[place]
        drop = bool(old & PRESENT)
        if value & PRESENT:
            self._check_bits(value, level)
            if drop and not (old ^ self._adjusted(value, level)) & ~FREELY_CHANGED:
                drop = False
            else:
                self._take(value, level, mfn, index)
            value = self._adjusted(value, level)
        if preserve_ad:
            value |= words[place] & (ACCESSED | DIRTY)
        words[place] = value
        self.stale = self.stale or bool(old & PRESENT)
        if drop:
            self._drop(old, level, mfn)

    def move_entry(self, source: int, target: int) -> None:
        """The L1 entry at machine address `source` takes the place of the one at `target`, with what it
        holds."""
        words = self.frames.memory.words
        old, words[target >> 3], words[source >> 3] = words[target >> 3], words[source >> 3], 0
        self.stale = True
        if old & PRESENT:
            self._drop(old, 1, target >> 12)

    # -- the tree ----------------------------------------------------------------------------

    def pin(self, mfn: int, level: int) -> None:
        """MMUEXT_PIN_Ln_TABLE: hold the type until it is unpinned. Raises XenError."""
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
        """Take a frame as a top-level table. Raises XenError."""
        self.get_type(mfn, PageType(self.top_level))

    def leaf_entry(self, root: int, address: int) -> int | None:
        """Machine address of the L1 entry for a virtual address, present or not; None without an L1 table."""
        words, table = self.frames.memory.words, root
        for shift, last in self._steps[:-1]:
            entry = words[table * ENTRIES + (address >> shift & last)]
            table = (entry & FRAME_MASK) >> 12
            if not entry & PRESENT or entry & PSE or not self.frames.owned(table):
                return None
        if self.frames.kind[table] != _L1 or not self.frames.type_count[table]:
            return None
        return table * PAGE_SIZE + (address >> SHIFT[1] & 511) * 8

    def _last_index(self, level: int) -> int:
        return 3 if level == 3 and self.width == 32 else 511

    def walk(self, root: int, address: int) -> Translation | None:
        """The leaf that maps a guest virtual address under the top-level frame `root`, or None."""
        words, limit = self.frames.memory.words, self.frames.frames
        mfn, rights, place, entry = root, WRITE | USER, 0, 0
        for shift, last in self._steps:
            place = mfn * ENTRIES + (address >> shift & last)
            entry = words[place]
            mfn = (entry & FRAME_MASK) >> 12
            if not entry & PRESENT or mfn >= limit:
                return None
            rights &= entry
        return Translation(
            mfn * PAGE_SIZE + address % PAGE_SIZE, place * 8, entry, bool(rights & WRITE), bool(rights & USER)
        )
