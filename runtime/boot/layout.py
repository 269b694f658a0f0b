"""Where things are in guest-physical memory: the firmware's map, and room for what a loader adds.

The map is the one a PC's firmware reports (INT 15h, E820). A loader's small structures go to the
top of conventional memory, clear of the image; modules and ramdisks go above the image.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from pvpatch.abi.errors import ImageError, UsageError
from runtime.boot.model import BootSegment
from runtime.ports import PhysicalMemory

__all__ = ["CONVENTIONAL_END", "MIB", "PAGE", "Arena", "MapEntry", "MapType", "memory_map"]

PAGE = 4096
MIB = 1 << 20

CONVENTIONAL_END = 0x9FC00
"""End of conventional memory: the extended BIOS data area's kilobyte follows."""

_EBDA_END = 0xA0000
_ROM_START = 0xF0000
_LOW_START = 0x1000
"""The first page holds the real-mode vectors and the BIOS data area."""


class MapType(enum.IntEnum):
    """E820 address range types."""

    RAM = 1
    RESERVED = 2


@dataclass(frozen=True)
class MapEntry:
    """`length` bytes at guest-physical `base`."""

    base: int
    length: int
    type: MapType

    @property
    def end(self) -> int:
        """First address after the range."""
        return self.base + self.length


def memory_map(size: int) -> tuple[MapEntry, ...]:
    """The E820 map of a PC with `size` bytes of RAM."""
    return (
        MapEntry(0, CONVENTIONAL_END, MapType.RAM),
        MapEntry(CONVENTIONAL_END, _EBDA_END - CONVENTIONAL_END, MapType.RESERVED),
        MapEntry(_ROM_START, MIB - _ROM_START, MapType.RESERVED),
        MapEntry(MIB, size - MIB, MapType.RAM),
    )


class Arena:
    """Guest memory during loading: knows what is RAM and what is taken."""

    def __init__(self, memory: PhysicalMemory) -> None:
        self.memory = memory
        self.map = memory_map(memory.size)
        self._taken: list[tuple[int, int]] = [(0, _LOW_START)]

    def load_segments(self, segments: tuple[BootSegment, ...]) -> None:
        """Copy an image into memory. Raises ImageError for a segment that cannot be placed."""
        placed: list[tuple[int, int]] = []
        for segment in segments:
            start, end = segment.paddr, segment.paddr + segment.memsz
            if segment.memsz == 0 and not segment.data:
                continue
            where = f"segment at physical {start:#x}, {segment.memsz:#x} bytes"
            if len(segment.data) > segment.memsz:
                raise ImageError(f"{where}: holds more data ({len(segment.data):#x} bytes) than memory")
            if not self._is_ram(start, end):
                raise ImageError(
                    f"{where}: not within guest RAM", "give more with --memory, or the image is damaged"
                )
            if any(start < other_end and other_start < end for other_start, other_end in placed):
                raise ImageError(f"{where}: overlaps another segment")
            placed.append((start, end))
            self.memory.store(start, segment.data)
            _clear(self.memory, start + len(segment.data), end)
        if not placed:
            raise ImageError("the image has nothing to load")
        self._taken += placed

    def _is_ram(self, start: int, end: int) -> bool:
        return any(
            entry.type is MapType.RAM and entry.base <= start <= end <= entry.end for entry in self.map
        )

    @property
    def image_end(self) -> int:
        """First address after everything placed so far."""
        return max(end for _, end in self._taken)

    def place_low(self, data: bytes, align: int = 16) -> int:
        """Put a structure as high as possible in conventional memory: its address."""
        return self._place(data, align, _LOW_START, CONVENTIONAL_END)

    def place_high(self, data: bytes, limit: int) -> int:
        """Put data page aligned at the top of RAM, ending at or below `limit`: its address."""
        return self._place(data, PAGE, MIB, min(limit, self.memory.size))

    def place_after_image(self, data: bytes) -> int:
        """Put data page aligned after the image and earlier such data: its address."""
        start = -(-max(self.image_end, MIB) // PAGE) * PAGE
        if start + len(data) > self.memory.size:
            raise _no_room(len(data))
        return self._take(start, data)

    def _place(self, data: bytes, align: int, lowest: int, end: int) -> int:
        """First fit from the top of [lowest, end)."""
        length = max(len(data), 1)
        start = (end - length) // align * align
        while start >= lowest:
            below = [begin for begin, stop in self._taken if begin < start + length and start < stop]
            if not below:
                return self._take(start, data)
            start = (min(below) - length) // align * align
        raise _no_room(len(data))

    def _take(self, start: int, data: bytes) -> int:
        self.memory.store(start, data)
        self._taken.append((start, start + max(len(data), 1)))
        return start


def _no_room(length: int) -> UsageError:
    return UsageError(
        f"{length} bytes do not fit into guest memory beside the image", "give more with --memory"
    )


def _clear(memory: PhysicalMemory, start: int, end: int) -> None:
    """Zero-fill, in pieces so that a large bss needs no large buffer."""
    zeros = bytes(min(MIB, max(end - start, 0)))
    for address in range(start, end, MIB):
        memory.store(address, zeros[: end - address])
