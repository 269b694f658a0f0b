"""Shadow paging of a translated domain: four levels, one set of tables per mode of the guest.

The guest's tables hold guest-physical frames and are walked on a fault; the result is cached in tables
of Xen's own, as a TLB would. Guest kernel and guest user both run at privilege 3, so there are two
caches: in the kernel's every page is open to privilege 3, in the user's only what the guest's tables
give to user mode. Xen's own pages of the domain (`map_host`) lie in the kernel's cache alone, except
where the CPU itself needs them.
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

__all__ = ["PAGE", "SHADOW_PAGES", "ShadowMmu"]

SHADOW_PAGES = 1536
"""Private pages for tables: those of Xen's own pages, and the two caches."""
_CR0_PG_PE = 0x8000_0001
_CR0_WP = 1 << 16
_CR4_PAE_PSE = 0x30
_EFER_LMA_NXE = 0xC00
_OPEN_BUS = 1 << 36
"""Physical addresses from here on answer with all ones and ignore writes."""
_SHIFTS = (39, 30, 21)


class _Cache:
    """The tables of one mode."""

    def __init__(self, top: int) -> None:
        self.top = top
        self.guest_root = 0
        self.used: list[int] = []
        self.host_paths: dict[tuple[int, int], int] = {}
        """(level shift, linear >> shift) to a table that holds pages of Xen's own."""
        self.own: dict[int, bytes] = {}
        """Those tables with nothing else in them, by physical address; empty until they are wanted."""


class ShadowMmu(ShadowTables):
    """The tables that the CPU walks while a native guest runs.

    `guest` is what the guest may map; frames beyond it become an open bus, as on a PC. `host_base` and
    `host_pages` delimit the private memory for tables.
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
        self._free = [host_base + index * PAGE for index in range(host_pages - 1, -1, -1)]
        self._kernel = _Cache(self._new_table())
        self._user = _Cache(self._new_table())
        self._host: dict[int, int] = {}
        self._protected: frozenset[int] = frozenset()

    def _new_table(self) -> int:
        table = self._free.pop()
        self._clear(table)
        return table

    # -- the guest's side --------------------------------------------------------------------

    def walk(
        self, root: int, linear: int, *, write: bool = False, user: bool = False, fetch: bool = False
    ) -> Translation:
        """Walk the guest's tables from frame `root`. Raises `PageFault` with the guest's error code."""
        return translate(
            self._guest,
            linear,
            cr0=_CR0_PG_PE | (_CR0_WP if self.write_protect else 0),
            cr3=root * PAGE,
            cr4=_CR4_PAE_PSE,
            efer=_EFER_LMA_NXE,
            write=write,
            user=user,
            fetch=fetch,
        )

    def top_for(self, kernel_mode: bool, root: int) -> int:
        """Physical address of the top table for a mode whose tables start at frame `root`; a change of
        root forgets what was cached for that mode."""
        cache = self._kernel if kernel_mode else self._user
        if cache.guest_root != root:
            cache.guest_root = root
            self._empty(cache)
        return cache.top

    def set_write_protect(self, on: bool) -> None:
        """CR0.WP as the guest has it."""
        if on != self.write_protect:
            self.write_protect = on
            self.flush()

    def protect(self, frames: frozenset[int]) -> None:
        """Physical addresses of pages that the guest may only read, whatever its tables say: those that the
        CPU takes descriptors from."""
        if frames != self._protected:
            self._protected = frames
            self.flush()

    def is_protected(self, physical: int) -> bool:
        """True for an address in such a page."""
        return physical & ~(PAGE - 1) in self._protected

    def fill(self, linear: int, *, kernel_mode: bool, write: bool, fetch: bool) -> None:
        """Answer a fault of the CPU from the guest's tables. Raises `PageFault` if it is the guest's."""
        if linear & ~(PAGE - 1) in self._host and kernel_mode:
            raise PageFault(linear, 1 | (WRITE if write else 0))
        cache = self._kernel if kernel_mode else self._user
        found = self.walk(cache.guest_root, linear, write=write, user=not kernel_mode, fetch=fetch)
        self.fills += 1
        frame = found.physical & ~(PAGE - 1)
        if write and frame in self._protected:
            raise PageFault(linear, 3 | (0 if kernel_mode else USER))
        flags = PRESENT | USER | (WRITE if write else 0)
        if fetch:
            self._note_code(frame)
        directory = self._table(cache, linear, 30)
        if found.page_size >= LARGE_SIZE and self._is_free(cache, linear, frame & ~(LARGE_SIZE - 1)):
            entry = (directory >> 3) + (linear >> 21 & 0x1FF)
            if self._fill_large(entry, frame & ~(LARGE_SIZE - 1), flags):
                return
        self._fill_small(self._table(cache, linear, 21), linear, frame, flags)

    # -- the CPU's side ----------------------------------------------------------------------

    def _is_free(self, cache: _Cache, linear: int, start: int) -> bool:
        """True if neither a page of Xen's own nor a protected one lies in these 2 MiB."""
        if (21, linear >> 21) in cache.host_paths:
            return False
        return not any(start <= page < start + LARGE_SIZE for page in self._protected)

    def _table(self, cache: _Cache, linear: int, last: int) -> int:
        """The table below the entry of level `last` (a shift) for `linear`, made where it is missing."""
        table = cache.top
        for shift in _SHIFTS:
            position = (table >> 3) + (linear >> shift & 0x1FF)
            entry = self._words[position]
            if entry & PRESENT and not entry & LARGE:
                table = entry & FRAME
            else:
                table = self._add_table(cache, position, entry)
                if table == 0:
                    return self._table(cache, linear, last)
            if shift == last:
                break
        return table

    def _add_table(self, cache: _Cache, position: int, entry: int) -> int:
        """A table for an empty entry, or for a large one, which is split; 0 when everything was forgotten
        to make room."""
        if not self._free:
            self.flush()
            return 0
        table = self._new_table()
        cache.used.append(table)
        if entry & PRESENT:
            self._split(entry, table)
            self._flush_tlb()
        self._words[position] = table | TABLE
        return table

    # -- Xen's own pages -----------------------------------------------------------------------

    def map_host(
        self, linear: int, physical: int, *, writable: bool, executable: bool, guest: bool = True
    ) -> None:
        """A page of Xen's at `linear`: `guest` ones are open to the guest's kernel, others to the CPU alone
        and in both modes. Survives every flush."""
        entry = physical | PRESENT | (WRITE if writable else 0) | (0 if executable else NX)
        if guest:
            self._host[linear] = physical
            self._place(self._kernel, linear, entry | USER)
        else:
            self._place(self._kernel, linear, entry)
            self._place(self._user, linear, entry)

    def _place(self, cache: _Cache, linear: int, entry: int) -> None:
        cache.own.clear()
        table = cache.top
        for shift in _SHIFTS:
            key = (shift, linear >> shift)
            position = (table >> 3) + (linear >> shift & 0x1FF)
            if key not in cache.host_paths:
                cache.host_paths[key] = self._new_table()
            table = cache.host_paths[key]
            self._words[position] = table | TABLE
        self._words[(table >> 3) + (linear >> 12 & 0x1FF)] = entry

    def host_physical(self, linear: int) -> int | None:
        """Physical address behind a page of the domain's that Xen keeps mapped, None if there is none."""
        page = self._host.get(linear & ~(PAGE - 1))
        return None if page is None else page | (linear & (PAGE - 1))

    # -- forgetting ----------------------------------------------------------------------------

    def flush(self) -> None:
        """Forget every translation of the guest's, in both modes."""
        self._empty(self._kernel)
        self._empty(self._user)

    def _empty(self, cache: _Cache) -> None:
        self.flushes += 1
        if cache.used:
            self._free += cache.used
            cache.used.clear()
            self._rebuild(cache)
        self._flush_tlb()

    def _rebuild(self, cache: _Cache) -> None:
        """Leave only the entries that lead to Xen's own pages."""
        if not cache.own:
            tables = self._strip(cache)
            cache.own = {table: bytes(self._view[table : table + PAGE]) for table in tables}
        for table, content in cache.own.items():
            self._view[table : table + PAGE] = content

    def _strip(self, cache: _Cache) -> list[int]:
        """Take the guest's entries out of the tables that Xen's pages need; their physical addresses."""
        tables = {cache.top: 39}
        tables |= {table: {39: 30, 30: 21, 21: 12}[shift] for (shift, _), table in cache.host_paths.items()}
        kept = set(cache.host_paths.values())
        for table, shift in tables.items():
            if shift == 12:
                self._clear_guest_leaves(table, cache)
                continue
            words = self._words[table >> 3 : (table >> 3) + 512].tolist()
            for index, word in enumerate(words):
                if word and word & FRAME not in kept:
                    self._words[(table >> 3) + index] = 0
        return list(tables)

    def _clear_guest_leaves(self, table: int, cache: _Cache) -> None:
        """A lowest table that Xen's pages share with the guest's."""
        paths = cache.host_paths.items()
        first = next(number for (shift, number), found in paths if found == table and shift == 21)
        for index in range(512):
            linear = (first << 21) + index * PAGE
            word = self._words[(table >> 3) + index]
            if word & USER and linear not in self._host:
                self._words[(table >> 3) + index] = 0

    def invalidate(self, linear: int) -> None:
        """Forget the translation of one linear address (all of a large page) in both modes."""
        for cache in (self._kernel, self._user):
            table = cache.top
            for shift in (*_SHIFTS, 12):
                position = (table >> 3) + (linear >> shift & 0x1FF)
                entry = self._words[position]
                if not entry & PRESENT:
                    break
                if shift == 12 or entry & LARGE:
                    if linear & ~(PAGE - 1) not in self._host:
                        self._words[position] = 0
                    break
                table = entry & FRAME
        self._flush_tlb()
