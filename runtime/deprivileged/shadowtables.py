"""What shadow page tables of any depth have in common: the lowest entries, and where frames lead.

The real tables lie in memory that no guest-physical address names. A page is mapped no-execute until it is
fetched from (the emulated CPU stores to such pages at full speed, to executable ones slowly) and read-only
until it is written to, so accessed and dirty bits appear in the guest's tables as hardware would set them.
Intel SDM vol. 3, 4.8 and 4.10 (what a TLB may cache).
"""

from __future__ import annotations

from collections.abc import Callable

from runtime.memory import GuestMemory, MemoryRange

__all__ = ["FRAME", "LARGE", "LARGE_SIZE", "NX", "PAGE", "PRESENT", "TABLE", "USER", "WRITE", "ShadowTables"]

PAGE = 4096
PRESENT, WRITE, USER, LARGE = 1, 2, 4, 0x80
TABLE = PRESENT | WRITE | USER
NX = 1 << 63
FRAME = 0x000F_FFFF_FFFF_F000
LARGE_SIZE = 1 << 21


class ShadowTables:
    """`guest` is guest-physical memory that the guest may map; frames beyond it lead to `open_bus` and up.

    Reads there give all ones and writes are ignored. `flush_tlb` makes the CPU forget its translations.
    """

    def __init__(
        self, memory: GuestMemory, guest: MemoryRange, open_bus: int, flush_tlb: Callable[[], None]
    ) -> None:
        self._words = memory.view[: memory.total & ~7].cast("Q")
        self._view = memory.view
        self._ram = memory.size
        self._guest = guest
        self._open_bus = open_bus
        self._flush_tlb = flush_tlb
        self._code_frames: set[int] = set()
        self._code_regions: set[int] = set()
        self.write_protect = True
        self.fills = 0
        self.flushes = 0

    def _clear(self, table: int) -> None:
        self._view[table : table + PAGE] = bytes(PAGE)

    def _note_code(self, frame: int) -> None:
        """A page of code: executable from now on, and never again part of a large entry."""
        self._code_frames.add(frame)
        self._code_regions.add(frame // LARGE_SIZE)

    def _fill_small(self, table: int, linear: int, frame: int, flags: int) -> None:
        """The entry of 4 KiB; one that could be written to stays so."""
        position = (table >> 3) + (linear >> 12 & 0x1FF)
        old = self._words[position]
        if old & PRESENT and old & FRAME == frame:
            flags |= old & WRITE
        nx = 0 if frame in self._code_frames else NX
        where = frame
        if not self._guest.contains(frame, PAGE):
            where = self._open_bus | (frame & (self._open_bus - PAGE))
        self._words[position] = where | flags | nx

    def _fill_large(self, position: int, start: int, flags: int) -> bool:
        """Map 2 MiB at once by the entry at `position`; False if part of it needs 4 KiB care."""
        if start + LARGE_SIZE > self._ram or start // LARGE_SIZE in self._code_regions:
            return False
        old = self._words[position]
        if old & PRESENT and not old & LARGE:
            return False
        if old & FRAME == start:
            flags |= old & WRITE
        self._words[position] = start | flags | LARGE | NX
        return True

    def _split(self, entry: int, table: int) -> None:
        """Fill `table` with what a large entry maps."""
        first, leaf = table >> 3, entry & ~LARGE
        for index in range(512):
            self._words[first + index] = leaf + index * PAGE
