"""The origin table of a patched image: from an address in its resident block to the piece of code."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass

from pvpatch.abi.layout import Origin, slot_offset
from runtime.callpages import PatchedImage

__all__ = ["LONGEST", "Origins", "Spot"]

LONGEST = 15
"""Bytes of an instruction."""


@dataclass(frozen=True)
class Spot:
    """An address in the resident block: `offset` from its start, and the address `base` of that start, both
    as the running code counts (RIP, not linear)."""

    base: int
    offset: int
    piece: Origin | None
    """The piece of a thunk that it lies in, or None (a slot, or what is no code)."""

    @property
    def begins(self) -> bool:
        """Nothing of the piece has run."""
        return self.piece is not None and self.piece.offset == self.offset


class Origins:
    """What the resident block's code stands for. `load` reads guest-physical memory."""

    def __init__(self, patched: PatchedImage, load: Callable[[int, int], bytes]) -> None:
        locator = patched.locator
        self._load = load
        self._origins = patched.origins
        self._offsets = [origin.offset for origin in patched.origins]
        self._physical, self._size = locator.resident_phys, locator.resident_size
        self._starts = (locator.resident_phys, locator.resident_virt)
        self._end = locator.off_cells or locator.off_origins
        self._pages = {page.width: page.physical - locator.resident_phys for page in patched.pages}
        self._page_sizes = {page.width: page.header.page_size for page in patched.pages}

    @property
    def pieces(self) -> tuple[Origin, ...]:
        """All records."""
        return self._origins

    def spot(self, rip: int, code_base: int, bits: int) -> Spot | None:
        """Where RIP stands in the resident block or in a cave; None anywhere else."""
        mask = (1 << bits) - 1
        linear = rip + code_base & mask
        for start in self._starts:
            offset = _signed(linear - start & mask, bits)
            if 0 <= offset < self._end:
                return Spot(rip - offset & mask, offset, self._piece(offset))
            if (exact := self._exact(offset)) is not None:
                return Spot(rip - offset & mask, offset, exact)
        return None

    def _piece(self, offset: int) -> Origin | None:
        index = bisect_right(self._offsets, offset) - 1
        return self._origins[index] if index >= 0 and self._offsets[index] >= 0 else None

    def _exact(self, offset: int) -> Origin | None:
        """A cave: one jump."""
        index = bisect_right(self._offsets, offset) - 1
        return self._origins[index] if index >= 0 and self._offsets[index] == offset else None

    def fetch(self, base: int, bits: int) -> Callable[[int], bytes]:
        """Reads the block's code by the addresses that it runs at, none outside of it."""
        mask = (1 << bits) - 1

        def read(rip: int) -> bytes:
            offset = _signed(rip - base & mask, bits)
            if not 0 <= offset < self._end:
                return b""
            return self._load(self._physical + offset, min(LONGEST, self._end - offset))

        return read

    def in_call_page(self, spot: Spot, bits: int) -> bool:
        """Slots and their bodies."""
        start = self._pages.get(bits)
        return start is not None and start <= spot.offset < start + self._page_sizes[bits]

    def slot(self, number: int, base: int, bits: int) -> int | None:
        """Address of a slot, for code of the block that runs at `base`; None without a page of that width."""
        start = self._pages.get(bits)
        return None if start is None else base + start + slot_offset(number) & (1 << bits) - 1


def _signed(value: int, bits: int) -> int:
    return value - (1 << bits) if value >> bits - 1 else value
