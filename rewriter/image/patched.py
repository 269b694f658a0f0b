"""Whether an image was patched by pvpatch: its resident block, found by the locator as a runtime finds it."""

from __future__ import annotations

from dataclasses import dataclass

from pvpatch.abi.errors import ImageError
from pvpatch.abi.layout import HEADER, LOCATOR_ALIGN, LOCATOR_MAGIC, Locator, unpack_locator
from rewriter.image.model import Image

__all__ = ["ResidentBlock", "resident_block"]


@dataclass(frozen=True)
class ResidentBlock:
    """What a patch added to an image. ``abi`` is the version that its call pages were made for."""

    address: int
    size: int
    abi: tuple[int, int]

    def holds(self, address: int) -> bool:
        """Whether a virtual address lies in it."""
        return self.address <= address < self.address + self.size


def resident_block(image: Image) -> ResidentBlock | None:
    """The resident block of a patched image; None where there is none, or none that can be read."""
    for segment in image.segments:
        data = image.data_of(segment)
        at = data.find(LOCATOR_MAGIC)
        while at >= 0:
            if (segment.paddr + at) % LOCATOR_ALIGN == 0:
                try:
                    return _described(image, unpack_locator(data, at))
                except ImageError:
                    pass  # bytes that only look like a locator, or a damaged one: no contract to rely on
            at = data.find(LOCATOR_MAGIC, at + 1)
    return None


def _described(image: Image, locator: Locator) -> ResidentBlock | None:
    page = locator.resident_virt + (locator.off_page32 or locator.off_page64)
    header = image.read(page, HEADER.size)
    if len(header) < HEADER.size:
        return None
    places = (HEADER.offset(name) for name in ("abi_major", "abi_minor"))
    major, minor = (int.from_bytes(header[place : place + 2], "little") for place in places)
    return ResidentBlock(locator.resident_virt, locator.resident_size, (major, minor))
