"""What boot loaders copy in one piece, whatever else a file says of itself.

An ELF file is loaded by its program headers, segment by segment, but a multiboot header with address
fields goes before them in GRUB and QEMU: then the file is one range of bytes, and memory behind it one
range of zeros. Flat images have nothing else.
"""

from __future__ import annotations

from rewriter.image.model import Image, LoadRange
from rewriter.image.multiboot import find_multiboot, load_range

__all__ = ["load_ranges"]


def load_ranges(image: Image) -> tuple[LoadRange, ...]:
    """The ranges of a flat image, or of an ELF image's multiboot headers with address fields.

    ImageError when address fields contradict the file.
    """
    found = [load_range(header, len(image.payload)) for header in find_multiboot(image.payload)]
    if image.kind == "flat" and image.setup_header is not None:
        (segment,) = image.segments
        return (LoadRange(segment.file_offset, segment.file_size, segment.paddr, segment.mem_size),)
    return tuple(item for item in found if item is not None)
