"""Grant table version 1 of a domain that has nobody to grant to but itself (xen/common/grant_table.c).

The table is an array of 8-byte entries {u16 flags, u16 domid, u32 frame} in frames that Xen owns and shares.
"""

from __future__ import annotations

from dataclasses import dataclass

from runtime.backends.xen.frames import XEN, FrameTable
from runtime.backends.xen.layout import PAGE_SIZE

__all__ = ["GRANT_STATUS", "GrantTable", "Mapping"]

GRANT_STATUS = {
    "okay": 0,
    "general_error": -1,
    "bad_domain": -2,
    "bad_gntref": -3,
    "bad_handle": -4,
    "bad_virt_addr": -5,
    "bad_dev_addr": -6,
    "no_device_space": -7,
    "permission_denied": -8,
    "bad_page": -9,
    "bad_copy_arg": -10,
    "address_too_big": -11,
}
"""GNTST_* of grant_table.h."""

ENTRY_SIZE = 8
PERMIT_ACCESS = 1
TYPE_MASK = 3
READ_ONLY = 4
READING, WRITING = 8, 16


@dataclass(frozen=True)
class Mapping:
    """A granted frame that is mapped: its reference, frame, and whether it is read-only."""

    reference: int
    mfn: int
    read_only: bool
    address: int


MAX_GRANT_FRAMES = 32
"""What the toolstack gives a domain unless told otherwise (xl.conf: max_grant_frames)."""


class GrantTable:
    """The shared frames and the open mappings of one domain."""

    def __init__(self, frames: FrameTable, limit: int = MAX_GRANT_FRAMES) -> None:
        self.frames = frames
        self.limit = limit
        self.shared: list[int] = []
        self.mappings: dict[int, Mapping] = {}
        self._next_handle = 1

    def grow(self, count: int) -> bool:
        """Have at least `count` shared frames; False where that is over the limit."""
        if count > self.limit:
            return False
        while len(self.shared) < count:
            mfn = self.frames.allocate(XEN)
            self.frames.share(mfn)
            self.shared.append(mfn)
        return True

    def entry_address(self, reference: int) -> int | None:
        """Machine address of an entry, None where the table does not reach."""
        frame, index = divmod(reference, PAGE_SIZE // ENTRY_SIZE)
        if reference < 0 or frame >= len(self.shared):
            return None
        return self.shared[frame] * PAGE_SIZE + index * ENTRY_SIZE

    def entry(self, reference: int) -> tuple[int, int, int] | None:
        """(flags, domid, frame) of an entry."""
        address = self.entry_address(reference)
        if address is None:
            return None
        data = self.frames.memory.load(address, ENTRY_SIZE)
        return (
            int.from_bytes(data[0:2], "little"),
            int.from_bytes(data[2:4], "little"),
            int.from_bytes(data[4:8], "little"),
        )

    def mark(self, reference: int, bits: int, value: bool) -> None:
        """Set or clear the in-use bits of an entry's flags."""
        address = self.entry_address(reference)
        found = self.entry(reference)
        if address is not None and found is not None:
            flags = found[0] | bits if value else found[0] & ~bits
            self.frames.memory.store(address, flags.to_bytes(2, "little"))

    def add(self, mapping: Mapping) -> int:
        """Remember a mapping; its handle."""
        handle = self._next_handle
        self._next_handle += 1
        self.mappings[handle] = mapping
        self.mark(mapping.reference, READING if mapping.read_only else READING | WRITING, True)
        return handle

    def remove(self, handle: int) -> Mapping | None:
        """Forget a mapping; None for a handle that is not one."""
        mapping = self.mappings.pop(handle, None)
        if mapping is not None and not any(m.reference == mapping.reference for m in self.mappings.values()):
            self.mark(mapping.reference, READING | WRITING, False)
        return mapping
