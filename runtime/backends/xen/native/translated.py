"""The page-table rules of a translated domain: there are none, Xen walks the guest's tables itself.

XENFEAT_auto_translated_physmap, as old Xen's shadow-translate domains: frame numbers in hypercalls are
guest-physical, tables need not be announced, pinned or read-only, and only changes of the base and
flushes are told (mmuext_op). Everything here stands in for `PageTables` of direct paging.
"""

from __future__ import annotations

from collections import Counter

from runtime.backends.xen.frames import FrameTable, PageType, XenError
from runtime.backends.xen.layout import ERRNO
from runtime.backends.xen.native.shadow import PAGE, ShadowMmu
from runtime.backends.xen.paging import HoleEntries, PageTables, Translation
from runtime.memory import PageFault

__all__ = ["TranslatedTables"]


class TranslatedTables(PageTables):
    """Frames without types: a frame need only be the domain's."""

    def __init__(self, frames: FrameTable, shadow: ShadowMmu) -> None:
        super().__init__(frames, 64, HoleEntries(256, (0,) * 16))
        self._shadow = shadow
        self._bases: Counter[int] = Counter()

    def _check(self, mfn: int) -> None:
        if not self.frames.owned(mfn):
            raise XenError(ERRNO.EINVAL, f"frame {mfn:#x} is not the domain's")

    def get_type(self, mfn: int, kind: PageType, with_hole: bool = False) -> None:
        """Only pages of descriptors have a type, and keep it: the CPU does use them as they are. Raises
        XenError(EINVAL) for a frame that is not the domain's, is a base, or holds what Xen does not allow."""
        self._check(mfn)
        if kind == PageType.SEGMENT:
            if self._bases[mfn]:
                raise XenError(ERRNO.EINVAL, f"frame {mfn:#x} is in use as a page table")
            super().get_type(mfn, kind)

    def put_type(self, mfn: int) -> None:
        """Drop the use of a frame as a base, or for descriptors; other frames have no type."""
        if self._bases[mfn]:
            self._bases[mfn] -= 1
        elif self.frames.type_count[mfn]:
            super().put_type(mfn)

    def get_root(self, mfn: int) -> None:
        """A frame becomes a base. Raises XenError(EINVAL) if it is not the domain's or holds descriptors."""
        self._check(mfn)
        if self.frames.type_count[mfn]:
            raise XenError(ERRNO.EINVAL, f"frame {mfn:#x} holds descriptors")
        self._bases[mfn] += 1

    def pin(self, mfn: int, level: int) -> None:
        """Nothing to pin; the frame is checked."""
        self._check(mfn)

    def unpin(self, mfn: int) -> None:
        """Nothing to unpin; the frame is checked."""
        self._check(mfn)

    def write_entry(self, address: int, value: int, preserve_ad: bool = False) -> None:
        """mmu_update: an entry of the guest's own table, at a guest-physical address."""
        self._check(address // PAGE)
        if self._shadow.is_protected(address):
            raise XenError(ERRNO.EINVAL, f"frame {address // PAGE:#x} holds descriptors")
        self.frames.memory.store(address & ~7, value.to_bytes(8, "little"))
        self.flush()

    def leaf_entry(self, root: int, address: int) -> int | None:
        """update_va_mapping is for direct paging: no entry is found."""
        return None

    def walk(self, root: int, address: int) -> Translation | None:
        """Where a guest virtual address leads; the guest's pages that Xen keeps mapped come first."""
        physical = self._shadow.host_physical(address)
        if physical is not None:
            return Translation(physical, 0, 0, writable=self._writable(physical), user=False)
        try:
            found = self._shadow.walk(root, address)
        except PageFault:
            return None
        if not self.frames.owned(found.physical // PAGE):
            return None
        writable = found.writable and self._writable(found.physical)
        return Translation(found.physical, 0, 0, writable, found.user)

    def _writable(self, physical: int) -> bool:
        return self.frames.owned(physical // PAGE) and not self._shadow.is_protected(physical)
