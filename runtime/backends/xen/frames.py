"""Machine frames: who owns each, what it is used as, and how often (Xen's page_info, xen/arch/x86/mm.c).

At any time a frame has at most one type: a page table of one level, a segment descriptor page, or a
writable page. A type is held by counted references and can change only when no reference is left; that
is why a frame in use as a page table can be mapped read-only, and nothing else.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable
from enum import IntEnum
from typing import Protocol

import numpy as np
import numpy.typing as npt

from runtime.backends.xen.layout import ERRNO, PAGE_SIZE

__all__ = ["DOMAIN", "FREE", "XEN", "FrameTable", "PageType", "PhysicalMemory", "XenError"]

FREE, DOMAIN, XEN = 0, 1, 2
"""Owners of a frame: nobody (the heap), the guest domain, the hypervisor itself."""


class XenError(Exception):
    """A hypercall fails with one of Xen's error codes; the guest sees the negative number."""

    def __init__(self, errno: ERRNO, why: str) -> None:
        super().__init__(f"-{errno.name}: {why}")
        self.errno = errno
        self.why = why


class PageType(IntEnum):
    """PGT_* of Xen: what a frame is used as while its type count is not zero."""

    NONE = 0
    L1 = 1
    L2 = 2
    L3 = 3
    L4 = 4
    SEGMENT = 5
    WRITABLE = 6


class PhysicalMemory(Protocol):
    """What the model needs of machine memory: bytes by machine address."""

    words: memoryview[int]
    """All of it as 64-bit numbers, by machine address divided by 8."""

    def load(self, address: int, length: int) -> bytes: ...
    def store(self, address: int, data: bytes) -> None: ...
    def entries(self, mfn: int) -> npt.NDArray[np.uint64]: ...


_NONE, _WRITABLE = int(PageType.NONE), int(PageType.WRITABLE)


class _Columns:
    """The columns that whole page tables are checked against, as numpy arrays over the same memory."""

    def __init__(self, table: FrameTable) -> None:
        self.owner: npt.NDArray[np.uint8] = np.frombuffer(table.owner, np.uint8)
        self.kind: npt.NDArray[np.uint8] = np.frombuffer(table.kind, np.uint8)
        self.type_count: npt.NDArray[np.int64] = np.frombuffer(table.type_count, np.int64)
        self.references: npt.NDArray[np.int64] = np.frombuffer(table.references, np.int64)


class FrameTable:
    """Owner, type, type count, reference count and pin of every machine frame.

    A column is an array over the frame number; `columns` are the same for many frames at once.
    """

    def __init__(self, memory: PhysicalMemory, frames: int) -> None:
        self.memory = memory
        self.frames = frames
        self.owner = array("B", bytes(frames))
        self.kind = array("B", bytes(frames))
        self.type_count = array("q", bytes(8 * frames))
        self.references = array("q", bytes(8 * frames))
        self.pinned = array("B", bytes(frames))
        self.validated = array("B", bytes(frames))
        self.with_hole = array("B", bytes(frames))
        self.linear = array("i", bytes(4 * frames))
        """Linear mappings in this table (positive), or of it (negative)."""
        self.released = array("B", bytes(frames))
        self.columns = _Columns(self)
        self._free: list[int] = []
        self.on_free: Callable[[int], None] = lambda _mfn: None

    # -- ownership ---------------------------------------------------------------------------

    def give(self, mfn: int, owner: int) -> None:
        """Make `owner` hold the frame, with the one reference that allocation itself is."""
        self.owner[mfn] = owner
        self.references[mfn] = 1
        self.clear_type(mfn)
        self.linear[mfn] = 0
        self.pinned[mfn] = 0
        self.released[mfn] = 0

    def give_first(self, count: int, owner: int) -> None:
        """Make `owner` hold frames 0 to `count` - 1 of a new table."""
        self.columns.owner[:count] = owner
        self.columns.references[:count] = 1

    def owned_count(self) -> int:
        """Frames that the domain holds."""
        return int(np.count_nonzero(self.columns.owner == DOMAIN))

    def stock(self, mfns: list[int]) -> None:
        """Put frames into the heap."""
        self._free.extend(mfns)

    def allocate(self, owner: int, order: int = 0) -> int:
        """2**order zeroed frames in a row out of the heap, aligned to their size. Raises XenError(ENOMEM)."""
        mfns = [self._free.pop()] if order == 0 and self._free else self._contiguous(order)
        for mfn in mfns:
            self.give(mfn, owner)
            self.memory.store(mfn * PAGE_SIZE, bytes(PAGE_SIZE))
        return mfns[0]

    def _contiguous(self, order: int) -> list[int]:
        size = 1 << order
        free = set(self._free)
        for first in sorted(free):
            run = range(first, first + size)
            if first % size == 0 and free.issuperset(run):
                self._free = [mfn for mfn in self._free if mfn not in run]
                return list(run)
        raise XenError(ERRNO.ENOMEM, f"no {size} machine frames left in a row")

    def valid(self, mfn: int) -> bool:
        """Does machine memory have this frame at all?"""
        return 0 <= mfn < self.frames

    def owned(self, mfn: int) -> bool:
        """Does the guest domain own it?"""
        return 0 <= mfn < self.frames and self.owner[mfn] == DOMAIN

    def shared_with_guest(self, mfns: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Which of these frames are Xen's own but shared with the domain (shared_info, grant frames)?"""
        owner, kind = self.columns.owner[mfns], self.columns.kind[mfns]
        found: npt.NDArray[np.bool_] = (owner == XEN) & (kind == _WRITABLE)
        return found

    def share(self, mfn: int) -> None:
        """Let the guest map one of Xen's own frames."""
        self.kind[mfn] = _WRITABLE

    # -- general references ------------------------------------------------------------------

    def get(self, mfn: int) -> None:
        """Take a reference to a frame of the domain. Raises XenError(EINVAL) for any other frame."""
        if not self.owned(mfn):
            raise XenError(ERRNO.EINVAL, f"frame {mfn:#x} is not the domain's")
        self.references[mfn] += 1

    def put(self, mfn: int) -> None:
        """Drop a reference; the last one returns the frame to the heap."""
        self.references[mfn] -= 1
        if self.references[mfn] == 0:
            self.owner[mfn] = FREE
            self.clear_type(mfn)
            self._free.append(mfn)
            self.on_free(mfn)

    def is_shared(self, mfn: int) -> bool:
        """Is this one of Xen's own frames that the domain may map (shared_info, grant frames)?"""
        return self.owner[mfn] == XEN and self.kind[mfn] == _WRITABLE

    # -- types -------------------------------------------------------------------------------

    def set_type(self, mfn: int, kind: PageType, with_hole: bool = False) -> None:
        """Give an unused frame a type, held once and not validated yet."""
        self.kind[mfn] = kind
        self.with_hole[mfn] = with_hole
        self.type_count[mfn] = 1
        self.validated[mfn] = 0

    def clear_type(self, mfn: int) -> None:
        """No type reference is left."""
        self.kind[mfn] = _NONE
        self.with_hole[mfn] = 0
        self.type_count[mfn] = 0
        self.validated[mfn] = 0

    # -- the writable type, which needs no validation ------------------------------------------

    def can_be(self, mfn: int, kind: PageType) -> bool:
        """May the frame take (another reference of) this type now?"""
        return self.type_count[mfn] == 0 or self.kind[mfn] == kind

    def get_writable(self, mfn: int) -> None:
        """Take a writable-type reference. Raises XenError(EBUSY) while it is a table or a descriptor page."""
        if self.type_count[mfn] and self.kind[mfn] != _WRITABLE:
            raise XenError(ERRNO.EBUSY, f"frame {mfn:#x} is a {PageType(self.kind[mfn]).name} page")
        self.kind[mfn] = _WRITABLE
        self.type_count[mfn] += 1

    def put_writable(self, mfn: int) -> None:
        """Drop a writable-type reference."""
        self.type_count[mfn] -= 1
        if self.type_count[mfn] == 0:
            self.clear_type(mfn)
