"""The relocations that a position-independent ELF image applies to itself.

An image of type ET_DYN may run at any address. Its PT_DYNAMIC segment names the tables of the words
that depend on where that is (DT_REL, DT_RELA); nothing else in the image holds an address.
Sources: System V ABI, chapter 5, "Dynamic Section"; "Relocation" in the i386 and x86-64 psABI.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence

from rewriter.image.elf_guard import ET_DYN, ElfHeader
from rewriter.image.model import Segment

__all__ = ["relocated_words"]

PT_DYNAMIC = 2
DT_NULL, DT_RELA, DT_RELASZ, DT_RELAENT, DT_REL, DT_RELSZ, DT_RELENT = 0, 7, 8, 9, 17, 18, 19
_PROGRAM = {32: struct.Struct("<8I"), 64: struct.Struct("<2I6Q")}
_TABLES = ((DT_REL, DT_RELSZ, DT_RELENT, 2), (DT_RELA, DT_RELASZ, DT_RELAENT, 3))
"""Tags of address, bytes and bytes per record of a table, and the words of such a record."""


def relocated_words(data: bytes, header: ElfHeader, segments: Sequence[Segment]) -> frozenset[int] | None:
    """Virtual addresses of the words that the image relocates; None for one that runs where it is linked.

    Also None when a table is damaged or absent: then nothing is known of the image's addresses.
    """
    tags = _tags(data, header)
    if header.type != ET_DYN or tags is None:
        return None
    word = header.bits // 8
    places: set[int] = set()
    for start_tag, size_tag, entry_tag, words in _TABLES:
        start, size = tags.get(start_tag), tags.get(size_tag, 0)
        if start is None or not size:
            continue
        offset = _offset(segments, start, size)
        stride = words * word
        if offset is None or size % stride or tags.get(entry_tag, stride) != stride:
            return None
        record = struct.Struct("<" + ("I" if word == 4 else "Q") + f"{stride - word}x")
        places.update(place for (place,) in record.iter_unpack(data[offset : offset + size]))
    return frozenset(places)


def _tags(data: bytes, header: ElfHeader) -> dict[int, int] | None:
    """The dynamic section; None when there is none."""
    for row in _program_headers(data, header):
        kind, offset, size = (row[0], row[1], row[4]) if header.bits == 32 else (row[0], row[2], row[5])
        if kind == PT_DYNAMIC:
            pair = struct.Struct("<2i" if header.bits == 32 else "<2q")
            mask = (1 << header.bits) - 1
            tags: dict[int, int] = {}
            for tag, value in pair.iter_unpack(data[offset : offset + size // pair.size * pair.size]):
                if tag == DT_NULL:
                    break
                tags.setdefault(tag, value & mask)
            return tags
    return None


def _program_headers(data: bytes, header: ElfHeader) -> Iterator[tuple[int, ...]]:
    form = _PROGRAM[header.bits]
    (start,) = struct.unpack_from("<I" if header.bits == 32 else "<Q", data, 28 if header.bits == 32 else 32)
    for index in range(header.segments):
        yield form.unpack_from(data, start + index * form.size)


def _offset(segments: Sequence[Segment], address: int, size: int) -> int | None:
    """File offset of bytes that lie in one segment."""
    for segment in segments:
        inside = address - segment.vaddr
        if inside >= 0 and inside + size <= segment.file_size:
            return segment.file_offset + inside
    return None
