"""The grant table of a domain that has nobody to grant to but itself (xen/common/grant_table.c).

Entries lie in frames that Xen owns and shares: {u16 flags, u16 domid, u32 frame} in version 1; 16 bytes in
version 2, whose in-use bits are in frames of their own, the status frames.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from runtime.backends.xen.frames import XEN, FrameTable
from runtime.backends.xen.layout import PAGE_SIZE

__all__ = ["GRANT_STATUS", "Entry", "GrantTable", "Mapping"]

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
    "eagain": -12,
}
"""GNTST_* of grant_table.h."""

ENTRY_SIZE = {1: 8, 2: 16}
STATUS_SIZE = 2
PERMIT_ACCESS, TRANSITIVE = 1, 3
TYPE_MASK = 3
READ_ONLY = 4
READING, WRITING = 8, 16
SUB_PAGE = 1 << 8
RESERVED_ENTRIES = 8
"""The toolstack's own (GNTTAB_NR_RESERVED_ENTRIES): kept when the version changes."""
DEVICE_MAP, HOST_MAP, MAP_READ_ONLY = 1, 2, 4
MAX_GRANT_FRAMES = 32
"""What the toolstack gives a domain unless told otherwise (xl.conf: max_grant_frames)."""
MAX_MAPPINGS = 1024 * 256
"""The same for mappings: frames (max_maptrack_frames) of 256."""


@dataclass(frozen=True)
class Entry:
    """A grant as its giver wrote it."""

    flags: int
    domid: int
    frame: int
    start: int = 0
    length: int = PAGE_SIZE
    """The part of the frame that a sub-page grant gives, in bytes."""
    through: tuple[int, int] | None = None
    """(domain, reference) that a transitive grant passes on."""

    @property
    def kind(self) -> int:
        """GTF_type_mask's part of the flags."""
        return self.flags & TYPE_MASK


@dataclass
class Mapping:
    """A granted frame that is mapped: what is left of its flags says in which ways."""

    reference: int
    mfn: int
    flags: int

    @property
    def read_only(self) -> bool:
        """May it only be read through this mapping?"""
        return bool(self.flags & MAP_READ_ONLY)

    @property
    def ways(self) -> int:
        """For the host, for a device, or both."""
        return self.flags & (DEVICE_MAP | HOST_MAP)


class GrantTable:
    """The shared frames and the open mappings of one domain."""

    def __init__(self, frames: FrameTable, limit: int = MAX_GRANT_FRAMES) -> None:
        self.frames = frames
        self.limit = limit
        self.version = 1
        self.shared: list[int] = []
        self.status: list[int] = []
        self.mappings: dict[int, Mapping] = {}
        self._next_handle = 0
        self._users: Counter[int] = Counter()
        self._writers: Counter[int] = Counter()

    # -- frames --------------------------------------------------------------------------------------

    def grow(self, count: int) -> bool:
        """Have at least `count` shared frames; False where that is over the limit."""
        if count > self.limit:
            return False
        while len(self.shared) < count:
            self.shared.append(self._share())
        self._grow_status()
        return True

    def _share(self) -> int:
        mfn = self.frames.allocate(XEN)
        self.frames.share(mfn)
        return mfn

    def _grow_status(self) -> None:
        per_frame, per_status = PAGE_SIZE // ENTRY_SIZE[2], PAGE_SIZE // STATUS_SIZE
        wanted = -(-len(self.shared) * per_frame // per_status) if self.version == 2 else 0
        while len(self.status) < wanted:
            self.status.append(self._share())

    @property
    def entries(self) -> int:
        """How many entries the table has."""
        return len(self.shared) * PAGE_SIZE // ENTRY_SIZE[self.version]

    # -- entries -------------------------------------------------------------------------------------

    def entry_address(self, reference: int) -> int | None:
        """Machine address of an entry, None where the table does not reach."""
        if not 0 <= reference < self.entries:
            return None
        size = ENTRY_SIZE[self.version]
        frame, index = divmod(reference, PAGE_SIZE // size)
        return self.shared[frame] * PAGE_SIZE + index * size

    def entry(self, reference: int) -> Entry | None:
        """What the giver wrote."""
        address = self.entry_address(reference)
        if address is None:
            return None
        data = self.frames.memory.load(address, ENTRY_SIZE[self.version])

        def number(at: int, size: int) -> int:
            return int.from_bytes(data[at : at + size], "little")

        flags, domid = number(0, 2), number(2, 2)
        if self.version == 1:
            return Entry(flags, domid, number(4, 4))
        if flags & TYPE_MASK == TRANSITIVE:
            return Entry(flags, domid, 0, through=(number(4, 2), number(8, 4)))
        if flags & SUB_PAGE:
            return Entry(flags, domid, number(8, 8), number(4, 2), number(6, 2))
        return Entry(flags, domid, number(8, 8))

    def write_v1(self, reference: int, flags: int, domid: int, frame: int) -> None:
        """Write an entry of version 1, as the toolstack does for the pages it shares with a new domain."""
        address = self.entry_address(reference)
        assert address is not None
        number = flags | domid << 16 | frame << 32
        self.frames.memory.store(address, number.to_bytes(8, "little"))

    def _status_address(self, reference: int) -> int | None:
        """Where the in-use bits of an entry are: in its flags, or in the status frames."""
        if self.version == 1 or self.entry_address(reference) is None:
            return self.entry_address(reference)
        frame, index = divmod(reference, PAGE_SIZE // STATUS_SIZE)
        return self.status[frame] * PAGE_SIZE + index * STATUS_SIZE

    def mark(self, reference: int, bits: int, value: bool) -> None:
        """Set or clear the in-use bits of an entry."""
        address = self._status_address(reference)
        if address is not None:
            flags = int.from_bytes(self.frames.memory.load(address, 2), "little")
            flags = flags | bits if value else flags & ~bits
            self.frames.memory.store(address, flags.to_bytes(2, "little"))

    def swap(self, first: int, second: int) -> str:
        """GNTTABOP_swap_grant_ref; its GNTST name."""
        places = [self.entry_address(reference) for reference in (first, second)]
        if places[0] is None or places[1] is None:
            return "bad_gntref"
        if first == second:
            return "okay"
        if self.pinned(first) or self.pinned(second):
            return "eagain"
        memory, size = self.frames.memory, ENTRY_SIZE[self.version]
        contents = [memory.load(place, size) for place in places if place is not None]
        memory.store(places[0], contents[1])
        memory.store(places[1], contents[0])
        return "okay"

    def change_version(self, version: int) -> bool:
        """All entries but the toolstack's are cleared. False while one of the others is in use, or a status
        frame that has to go is mapped."""
        if any(mapping.reference >= RESERVED_ENTRIES for mapping in self.mappings.values()):
            return False
        if any(self.frames.references[mfn] > 1 for mfn in self.status):
            return False
        kept = [self.entry(reference) for reference in range(RESERVED_ENTRIES)]
        memory = self.frames.memory
        for mfn in self.shared:
            memory.store(mfn * PAGE_SIZE, bytes(PAGE_SIZE))
        for mfn in self.status:
            self.frames.put(mfn)
        self.status.clear()
        self.version = version
        self._grow_status()
        for reference, entry in enumerate(kept):
            address = self.entry_address(reference)
            if entry is not None and address is not None:
                head = entry.flags | entry.domid << 16
                number = head | (entry.frame << 32 if version == 1 else entry.frame << 64)
                memory.store(address, number.to_bytes(ENTRY_SIZE[version], "little"))
        return True

    # -- mappings ------------------------------------------------------------------------------------

    def pinned(self, reference: int, writing: bool = False) -> bool:
        """Is the grant mapped (for writing)?"""
        return bool((self._writers if writing else self._users)[reference])

    def add(self, mapping: Mapping) -> int:
        """Remember a mapping; its handle."""
        handle = self._next_handle
        self._next_handle += 1
        self.mappings[handle] = mapping
        self._users[mapping.reference] += 1
        self._writers[mapping.reference] += not mapping.read_only
        self.mark(mapping.reference, READING if mapping.read_only else READING | WRITING, True)
        return handle

    def settle(self, handle: int) -> None:
        """Forget a mapping of which nothing is left, and say so in the entry."""
        mapping = self.mappings[handle]
        if mapping.ways:
            return
        del self.mappings[handle]
        self._users[mapping.reference] -= 1
        self._writers[mapping.reference] -= not mapping.read_only
        if not self.pinned(mapping.reference, writing=True):
            self.mark(mapping.reference, WRITING, False)
        if not self.pinned(mapping.reference):
            self.mark(mapping.reference, READING, False)
