"""Addresses of code that lie in data: function pointers, address tables, relocation records.

Three forms, all found without symbols: absolute pointers at their natural alignment,
self-relative 32-bit offsets (newer Linux tables), and R_*_RELATIVE records of images that
relocate themselves. The scans are conservative: what they return may be no pointer.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from rewriter.image import Image, Segment
from rewriter.scan.space import Space

__all__ = ["absolute_pointers", "relative_pointers", "relocation_addends", "stored_ranges"]

Addresses = NDArray[np.uint64]

CHUNK = 1 << 22
RELATIVE_TYPE = 8
"""R_X86_64_RELATIVE and R_386_RELATIVE."""
MIN_RUN = 4
"""Relocation records in a row that make a table."""


def _bounds(space: Space) -> list[tuple[int, int]]:
    """Code ranges, neighbours joined when nothing but a small gap lies between."""
    merged: list[tuple[int, int]] = []
    for region in space.regions:
        if merged and region.vaddr - merged[-1][1] < 4096:
            merged[-1] = (merged[-1][0], region.end)
        else:
            merged.append((region.vaddr, region.end))
    return merged


def _segments(image: Image) -> list[Segment]:
    return [segment for segment in image.segments if segment.file_size >= 8]


def _inside(values: Addresses, bounds: list[tuple[int, int]]) -> NDArray[np.bool_]:
    result = np.zeros(values.size, np.bool_)
    for low, high in bounds:
        result |= (values - np.uint64(low)) < np.uint64(high - low)
    return result


def absolute_pointers(space: Space) -> tuple[Addresses, Addresses]:
    """(where, value) of every pointer at a multiple of 4 that names an address in a code region.

    In an image that relocates itself only the words that it adjusts are pointers.
    """
    image = space.image
    if image.relocated is not None:
        return _relocated_pointers(space, image.relocated)
    size = image.bits // 8
    kind = np.dtype(f"<u{size}")
    bounds = _bounds(space)
    places: list[Addresses] = []
    found: list[Addresses] = []
    for segment in _segments(image):
        for start in range((-segment.vaddr) % 4, size, 4):
            count = (segment.file_size - start) // size
            if count <= 0:
                continue
            words = np.frombuffer(image.payload, kind, count, segment.file_offset + start)
            base = np.uint64(segment.vaddr + start)
            for begin in range(0, count, CHUNK):
                values = words[begin : begin + CHUNK].astype(np.uint64)
                hits = np.flatnonzero(_inside(values, bounds))
                places.append((hits.astype(np.uint64) + np.uint64(begin)) * np.uint64(size) + base)
                found.append(values[hits])
    if not found:
        return np.zeros(0, np.uint64), np.zeros(0, np.uint64)
    return np.concatenate(places), np.concatenate(found)


def _relocated_pointers(space: Space, relocated: Iterable[int]) -> tuple[Addresses, Addresses]:
    """(where, value) of the words that the image relocates, so far as they name code."""
    size = space.image.bits // 8
    found: list[tuple[int, int]] = []
    for place in sorted(relocated):
        raw = space.read_static(place, size)
        value = int.from_bytes(raw or b"", "little")
        if raw is not None and space.find(value) is not None:
            found.append((place, value))
    return np.array([row[0] for row in found], np.uint64), np.array([row[1] for row in found], np.uint64)


def relative_pointers(space: Space, skip: list[tuple[int, int]]) -> tuple[Addresses, Addresses]:
    """(where, value) of aligned self-relative 32-bit offsets outside code whose sum names an address in code.

    `skip` lists address ranges (start, end) that are known to hold something else, such as unwind tables.
    """
    image = space.image
    bounds = _bounds(space)
    outside = [*skip, *((region.vaddr, region.end) for region in space.regions if region.code)]
    places: list[Addresses] = []
    found: list[Addresses] = []
    for low, high in stored_ranges(image, sorted(outside)):
        offset = image.offset_of(low)
        count = (high - low) // 4
        if offset is None or count <= 0:
            continue
        words = np.frombuffer(image.payload, np.dtype("<i4"), count, offset)
        for begin in range(0, count, CHUNK):
            part = words[begin : begin + CHUNK]
            where = np.arange(begin, begin + part.size, dtype=np.uint64) * np.uint64(4) + np.uint64(low)
            values = where + part.astype(np.int64).astype(np.uint64)
            if image.bits == 32:
                values &= np.uint64(0xFFFF_FFFF)
            hits = np.flatnonzero(_inside(values, bounds) & (part != 0))
            places.append(where[hits])
            found.append(values[hits])
    if not found:
        return np.zeros(0, np.uint64), np.zeros(0, np.uint64)
    return np.concatenate(places), np.concatenate(found)


def stored_ranges(image: Image, holes: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Aligned address ranges of the image's stored bytes without `holes` (sorted)."""
    result: list[tuple[int, int]] = []
    for segment in _segments(image):
        low, high = segment.vaddr, segment.vaddr + segment.file_size
        for start, end in holes:
            if end <= low or start >= high:
                continue
            if start > low:
                result.append((low, start))
            low = max(low, end)
        if low < high:
            result.append((low, high))
    return [((low + 3) & ~3, high) for low, high in result if high - low >= 8]


def relocation_addends(space: Space) -> list[int]:
    """Code addresses that R_*_RELATIVE records of a self-relocating image name.

    Such an image is linked at 0 or at its load address; both readings are returned.
    """
    image = space.image
    result: set[int] = set()
    for segment in _segments(image):
        words = np.frombuffer(
            image.payload,
            np.dtype(f"<u{image.bits // 8}"),
            segment.file_size // (image.bits // 8),
            segment.file_offset,
        )
        stride = 3 if image.bits == 64 else 2
        limit = segment.vaddr + segment.mem_size
        kind = words[1:] == RELATIVE_TYPE
        place_ok = words[:-1] < limit
        good = np.flatnonzero(kind & place_ok)
        if good.size < MIN_RUN:
            continue
        chosen = set(good.tolist())
        for index in good.tolist():
            neighbours = sum(index + step * stride in chosen for step in range(-MIN_RUN, MIN_RUN + 1))
            if neighbours < MIN_RUN:
                continue
            result.update(_addend(space, segment, words, index))
    return sorted(result)


def _addend(space: Space, segment: Segment, words: Addresses, index: int) -> list[int]:
    """The addresses that one record may name: as linked, and moved from a base of zero."""
    if space.image.bits == 64:
        if index + 2 >= words.size:
            return []
        value = int(words[index + 2])
    else:
        place = int(words[index])
        data = space.read_static(place, 4) or space.read_static(place + segment.vaddr, 4)
        if data is None:
            return []
        value = int.from_bytes(data, "little")
    return [address for address in (value, value + segment.vaddr) if space.find(address) is not None]
