"""The executable bytes of an image as a sorted set of regions, and how addresses lead into them."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from rewriter.decode.opcode_tables import ByteArray
from rewriter.image import Image

__all__ = ["Region", "Space"]


@dataclass(frozen=True, slots=True)
class Region:
    """One executable section, or segment where an image has no sections. Sizes in bytes."""

    index: int
    name: str
    vaddr: int
    file_offset: int
    size: int
    section: bool
    """True when a section header vouches for the name and the bounds."""
    code: bool = True
    """False where no header says that there is code: only what sure code leads to is, and no guess counts."""

    @property
    def end(self) -> int:
        """First address behind the region."""
        return self.vaddr + self.size


class Space:
    """Regions of an image, none overlapping another, by address."""

    def __init__(self, image: Image, reached: Iterable[int] = ()) -> None:
        """`reached` are addresses outside all code to which code leads: what holds them is a region too."""
        self.image = image
        self.regions = _regions(image, frozenset(reached))
        self._keys = [region.vaddr for region in self.regions]

    @cached_property
    def payload(self) -> ByteArray:
        """The payload as an array of bytes (no copy)."""
        return np.frombuffer(self.image.payload, np.uint8)

    def find(self, address: int) -> Region | None:
        """The region that holds a virtual address."""
        index = bisect_right(self._keys, address) - 1
        if index >= 0 and address < self.regions[index].end:
            return self.regions[index]
        return None

    def code(self, region: Region) -> ByteArray:
        """The bytes of a region (no copy)."""
        return self.payload[region.file_offset : region.file_offset + region.size]

    def resolve(self, address: int) -> int | None:
        """A virtual address inside a region for an address in code: virtual, or physical before paging."""
        if self.find(address) is not None:
            return address
        virtual = self.image.vaddr_of_paddr(address)
        return virtual if virtual is not None and self.find(virtual) is not None else None

    def holds(self, address: int) -> bool:
        """Whether the file holds the byte at a virtual address, in what can become a region."""
        return _part_at(self.image, address) is not None

    def read_static(self, address: int, count: int) -> bytes | None:
        """`count` bytes that the file holds for a virtual or physical address; None where it holds none."""
        for candidate in (address, self.image.vaddr_of_paddr(address)):
            offset = None if candidate is None else self.image.offset_of(candidate)
            if offset is not None:
                data = self.image.payload[offset : offset + count]
                return data if len(data) == count else None
        return None


def _regions(image: Image, reached: frozenset[int]) -> tuple[Region, ...]:
    parts: list[tuple[int, int, int, str, bool, bool]] = [
        (section.vaddr, section.file_offset, section.file_size, section.name, True, True)
        for section in image.sections
        if section.executable and section.allocated and section.file_size
    ]
    if not parts:
        parts = [
            (segment.vaddr, segment.file_offset, segment.file_size, segment.name, False, True)
            for segment in image.executable_segments()
        ]
    parts += sorted({part for address in reached if (part := _part_at(image, address)) is not None})
    result: list[Region] = []
    for vaddr, offset, size, name, section, code in sorted(parts):
        size = min(size, len(image.payload) - offset)
        if size <= 0 or (result and vaddr < result[-1].end):
            continue
        result.append(Region(len(result), name, vaddr, offset, size, section, code))
    return tuple(result)


def _part_at(image: Image, address: int) -> tuple[int, int, int, str, bool, bool] | None:
    """The section that holds an address, or the segment where none does, although no header calls it code."""
    section = image.section_at(address)
    if section is not None and address - section.vaddr < section.file_size:
        return section.vaddr, section.file_offset, section.file_size, section.name, True, False
    segment = image.segment_at(address)
    if section is not None or segment is None or address - segment.vaddr >= segment.file_size:
        return None
    if any(segment.vaddr <= part.vaddr < segment.vaddr + segment.mem_size for part in image.sections):
        return None  # bytes between sections: headers
    return segment.vaddr, segment.file_offset, segment.file_size, segment.name, False, False
