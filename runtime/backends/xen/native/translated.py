"""The page-table rules of a translated domain: there are none, Xen walks the guest's tables itself.

XENFEAT_auto_translated_physmap, as old Xen's shadow-translate domains: frame numbers in hypercalls are
guest-physical, tables need not be announced, pinned or read-only, and only changes of the base and
flushes are told (mmuext_op). Everything here stands in for `PageTables` of direct paging.
"""

from __future__ import annotations

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

    def _check(self, mfn: int) -> None:
        if not self.frames.owned(mfn):
            raise XenError(ERRNO.EINVAL, f"frame {mfn:#x} is not the domain's")

    def get_type(self, mfn: int, kind: PageType, with_hole: bool = False) -> None:
        """Raises XenError(EINVAL) for a frame that is not the domain's."""
        self._check(mfn)

    def put_type(self, mfn: int) -> None:
        """No references are kept."""

    def get_root(self, mfn: int) -> None:
        """As `get_type`."""
        self._check(mfn)

    def pin(self, mfn: int, level: int) -> None:
        """Nothing to pin; the frame is checked."""
        self._check(mfn)

    def unpin(self, mfn: int) -> None:
        """Nothing to unpin; the frame is checked."""
        self._check(mfn)

    def write_entry(self, address: int, value: int, preserve_ad: bool = False) -> None:
        """mmu_update: an entry of the guest's own table, at a guest-physical address."""
        self._check(address // PAGE)
        self.frames.memory.store(address & ~7, value.to_bytes(8, "little"))

    def leaf_entry(self, root: int, address: int) -> int | None:
        """update_va_mapping is for direct paging: no entry is found."""
        return None

    def walk(self, root: int, address: int) -> Translation | None:
        """Where a guest virtual address leads; the guest's pages that Xen keeps mapped come first."""
        physical = self._shadow.host_physical(address)
        if physical is not None:
            return Translation(physical, 0, 0, writable=self.frames.owned(physical // PAGE), user=False)
        try:
            found = self._shadow.walk(root, address)
        except PageFault:
            return None
        if not self.frames.owned(found.physical // PAGE):
            return None
        return Translation(found.physical, 0, 0, found.writable, found.user)
