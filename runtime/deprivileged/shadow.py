"""Shadow paging as a virtual TLB: the guest's tables are walked on a fault, the result is cached.

The real tables are three-level (PAE; Intel SDM vol. 3, 4.4) whatever the guest's format is, and start empty
after every flush.
"""

from __future__ import annotations

from collections.abc import Callable

from runtime.deprivileged.shadowtables import (
    FRAME,
    LARGE,
    LARGE_SIZE,
    NX,
    PAGE,
    PRESENT,
    TABLE,
    USER,
    WRITE,
    ShadowTables,
)
from runtime.memory import GuestMemory, MemoryRange, PageFault, Translation, translate

__all__ = ["PAGE", "ShadowMmu"]

_CR0_PG_PE = 0x8000_0001
_CR0_WP = 1 << 16
_CR4_PSE, _CR4_PAE = 1 << 4, 1 << 5
_OPEN_BUS = 1 << 32
"""Physical addresses from here on answer with all ones and ignore writes."""


class ShadowMmu(ShadowTables):
    """The tables that the CPU walks while a guest runs on ours.

    `host_base` and `host_pages` delimit the private memory for tables (6 pages at least);
    `guest` is the guest-physical memory that the guest may map. Frames beyond it become an open
    bus, as on a PC. `flush_tlb` makes the CPU forget its translations.
    """

    def __init__(
        self,
        memory: GuestMemory,
        guest: MemoryRange,
        host_base: int,
        host_pages: int,
        flush_tlb: Callable[[], None],
    ) -> None:
        super().__init__(memory, guest, _OPEN_BUS, flush_tlb)
        self.pointer_table = host_base
        self._directory = host_base + PAGE
        self._pool = range(host_base + 5 * PAGE, host_base + host_pages * PAGE, PAGE)
        self._reserved = 0
        self._used = 0
        self._host_tables: dict[int, int] = {}
        self.root = 0
        self.cr4 = _CR4_PSE
        for index in range(4):
            self._words[(self.pointer_table >> 3) + index] = (self._directory + index * PAGE) | PRESENT
        self.flush()

    # -- the guest's side --------------------------------------------------------------------

    @property
    def cr0(self) -> int:
        """CR0 as the walk of the guest's tables sees it."""
        return _CR0_PG_PE | (_CR0_WP if self.write_protect else 0)

    def walk(
        self, linear: int, *, write: bool = False, user: bool = False, fetch: bool = False
    ) -> Translation:
        """Walk the guest's tables. Raises `PageFault` with the guest's error code."""
        return translate(
            self._guest,
            linear,
            cr0=self.cr0,
            cr3=self.root,
            cr4=self.cr4,
            efer=0,
            write=write,
            user=user,
            fetch=fetch,
        )

    def set_root(self, root: int) -> None:
        """A new top page table (guest-physical): nothing cached holds any more."""
        self.root = root
        self.flush()

    def set_format(self, *, pae: bool, write_protect: bool) -> None:
        """How the guest's tables are to be read from now on."""
        cr4 = _CR4_PSE | (_CR4_PAE if pae else 0)
        if (cr4, write_protect) != (self.cr4, self.write_protect):
            self.cr4, self.write_protect = cr4, write_protect
            self.flush()

    def fill(self, linear: int, *, write: bool, user: bool, fetch: bool) -> None:
        """Answer a fault of the CPU from the guest's tables. Raises `PageFault` if it is the guest's."""
        slot = linear >> 21
        if slot in self._host_tables:
            raise PageFault(linear, (WRITE if write else 0) | (USER if user else 0))
        found = self.walk(linear, write=write, user=user, fetch=fetch)
        self.fills += 1
        frame = found.physical & ~(PAGE - 1)
        flags = PRESENT | (WRITE if write else 0)
        if found.user and not (write and not user and not found.writable):
            flags |= USER  # a write that only CR0.WP=0 allows must not be open to user mode
        if fetch:
            self._note_code(frame)
        if found.page_size >= LARGE_SIZE:
            entry = (self._directory >> 3) + slot
            if self._fill_large(entry, frame & ~(LARGE_SIZE - 1), flags):
                return
        self._fill_small(self._table(slot), linear, frame, flags)

    # -- the CPU's side ----------------------------------------------------------------------

    def _table(self, slot: int) -> int:
        """The 4 KiB table of a slot, made (or split off a large entry) if need be."""
        host = self._host_tables.get(slot)
        if host is not None:
            return host
        position = (self._directory >> 3) + slot
        entry = self._words[position]
        if entry & PRESENT and not entry & LARGE:
            return entry & FRAME
        if self._used >= len(self._pool):
            self.flush()
            entry = 0
        table = self._pool[self._used]
        self._used += 1
        self._clear(table)
        if entry & PRESENT:
            self._split(entry, table)
        self._words[position] = table | TABLE
        if entry & PRESENT:
            self._flush_tlb()
        return table

    def reserve_slot(self, linear: int) -> None:
        """The 2 MiB around `linear` are the host's: the guest's tables do not count there."""
        slot = linear >> 21
        if slot in self._host_tables:
            return
        table = self._pool[self._used]
        self._reserved += 1
        self._used += 1
        self._clear(table)
        self._host_tables[slot] = table
        self._words[(self._directory >> 3) + slot] = table | TABLE

    def map_host(self, linear: int, physical: int, *, writable: bool, executable: bool) -> None:
        """A page of the host in every address space; survives every flush."""
        self.reserve_slot(linear)
        slot = linear >> 21
        entry = physical | PRESENT | (WRITE if writable else 0) | (0 if executable else NX)
        self._words[(self._host_tables[slot] >> 3) + (linear >> 12 & 0x1FF)] = entry

    def is_host(self, linear: int) -> bool:
        """True if the address belongs to a slot of the host's."""
        return linear >> 21 in self._host_tables

    def host_physical(self, linear: int) -> int | None:
        """Physical address behind a page of the host, None if there is none."""
        table = self._host_tables.get(linear >> 21)
        if table is None:
            return None
        entry = self._words[(table >> 3) + (linear >> 12 & 0x1FF)]
        return (entry & FRAME) | (linear & (PAGE - 1)) if entry & PRESENT else None

    def flush(self) -> None:
        """Forget every translation of the guest's."""
        self.flushes += 1
        start = self._directory
        self._view[start : start + 4 * PAGE] = bytes(4 * PAGE)
        for slot, table in self._host_tables.items():
            self._words[(start >> 3) + slot] = table | TABLE
        self._used = self._reserved
        self._flush_tlb()

    def invalidate(self, linear: int) -> None:
        """Forget the translation of one linear address (all of a large page)."""
        slot = linear >> 21
        if slot in self._host_tables:
            return
        position = (self._directory >> 3) + slot
        entry = self._words[position]
        if not entry & PRESENT:
            return
        if entry & LARGE:
            self._words[position] = 0
        else:
            self._words[((entry & FRAME) >> 3) + (linear >> 12 & 0x1FF)] = 0
        self._flush_tlb()
