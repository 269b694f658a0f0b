"""The address space of a translated domain: Xen walks the guest's own tables, frames are guest-physical.

XENFEAT_auto_translated_physmap, as Xen's shadow-translate domains had it: tables need not be announced,
pinned or read-only, and only changes of the base and flushes are told. Stands in for `PageTables`.
"""

from __future__ import annotations

from runtime.backends.xen.frames import FrameTable, PageType, XenError
from runtime.backends.xen.layout import ERRNO
from runtime.backends.xen.paging import HoleEntries, PageTables, Translation
from runtime.deprivileged.shadow import PAGE, ShadowMmu
from runtime.memory import PageFault

__all__ = ["TranslatedTables"]


class TranslatedTables(PageTables):
    """Frames that need only be the domain's; descriptor pages keep their type."""

    def __init__(self, frames: FrameTable, shadow: ShadowMmu, guest_limit: int) -> None:
        super().__init__(frames, 32, HoleEntries(512, ()))
        self._shadow = shadow
        self._guest_limit = guest_limit

    def get_type(self, mfn: int, kind: PageType, with_hole: bool = False) -> None:
        """Raises XenError(EINVAL) for a frame that is not the domain's, or is not a descriptor page."""
        if not self.frames.owned(mfn):
            raise XenError(ERRNO.EINVAL, f"frame {mfn:#x} is not the domain's")
        if kind == PageType.SEGMENT and self.frames.kind[mfn] != PageType.SEGMENT:
            raise XenError(ERRNO.EINVAL, f"frame {mfn:#x} can be mapped by the guest: no descriptors there")

    def put_type(self, mfn: int) -> None:
        """No references are counted."""

    def pin(self, mfn: int, level: int) -> None:
        """Ignored, as Xen ignores it where it does not count references."""

    def unpin(self, mfn: int) -> None:
        """Ignored."""

    def write_entry(self, address: int, value: int, preserve_ad: bool = False) -> None:
        """mmu_update is for direct paging. Raises XenError(EINVAL)."""
        raise XenError(ERRNO.EINVAL, "page-table updates of a translated domain")

    def leaf_entry(self, root: int, address: int) -> int | None:
        """No entry can be named."""
        return None

    def walk(self, root: int, address: int) -> Translation | None:
        """Where a guest linear address leads, a page that Xen keeps mapped for the guest included."""
        if self._shadow.is_host(address):
            physical = self._shadow.host_physical(address)
            return None if physical is None else Translation(physical, 0, 0, True, False)
        try:
            found = self._shadow.walk(address)
        except PageFault:
            return None
        if found.physical + PAGE > self._guest_limit:
            return None
        return Translation(found.physical, 0, 0, found.writable or not self._shadow.write_protect, found.user)
