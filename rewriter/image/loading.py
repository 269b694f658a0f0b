"""What boot loaders read of a file: ranges that they copy in one piece, and the headers that tell them so.

An ELF file is loaded by its program headers, segment by segment, but a multiboot header with address
fields goes before them in GRUB and QEMU: then the file is one range of bytes, and memory behind it one
range of zeros. Flat images have nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator

from rewriter.image.model import Image, LoadRange
from rewriter.image.multiboot import find_multiboot, load_range

__all__ = ["header_ranges", "load_ranges"]


def load_ranges(image: Image) -> tuple[LoadRange, ...]:
    """The ranges of a flat image, or of an ELF image's multiboot headers with address fields.

    ImageError when address fields contradict the file.
    """
    found = [load_range(header, len(image.payload)) for header in find_multiboot(image.payload)]
    if image.kind == "flat" and image.setup_header is not None:
        (segment,) = image.segments
        return (LoadRange(segment.file_offset, segment.file_size, segment.paddr, segment.mem_size),)
    return tuple(item for item in found if item is not None)


def header_ranges(image: Image) -> tuple[tuple[int, int, str], ...]:
    """Virtual [start, end) and name of the headers that loaders read and that are loaded with the image.

    Code may run through them (an entry at the multiboot header), but their bytes are not only code.
    """
    found = []
    for start, size, name in _headers(image):
        address = image.vaddr_of_offset(start)
        if address is not None:
            found.append((address, address + size, name))
    return tuple(found)


def _headers(image: Image) -> Iterator[tuple[int, int, str]]:
    """File offset, bytes and name of each header."""
    for header in find_multiboot(image.payload):
        yield header.offset, header.size, f"{header.protocol} header"
    for note in image.notes:
        yield note.offset, max(len(note.description), 1), "ELF note"
    if image.kind != "flat":
        wide = image.kind == "elf64"
        start = int.from_bytes(image.payload[32:40] if wide else image.payload[28:32], "little")
        size, count = (
            int.from_bytes(image.payload[at : at + 2], "little") for at in ((54, 56) if wide else (42, 44))
        )
        yield 0, 64 if wide else 52, "ELF header"
        yield start, size * count, "ELF program headers"
