"""What a multiboot header's address fields load of an ELF file beside its segments.

GRUB and QEMU follow the fields before the program headers, and kernels rely on it: their program headers may
leave out the memory up to bss_end, which is theirs all the same.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from pvpatch.abi.errors import ImageError
from rewriter.image.model import LoadRange, Segment
from rewriter.image.multiboot import MultibootHeader, load_range

__all__ = ["with_loaded_gaps"]


def with_loaded_gaps(
    segments: tuple[Segment, ...], headers: Sequence[MultibootHeader], file_size: int
) -> tuple[Segment, ...]:
    """The segments, and one for each part of an address-field range that none of them covers.

    Fields that contradict the file or the program headers add nothing: then only those are known to be meant.
    """
    found = segments
    for header in headers:
        try:
            item = load_range(header, file_size)
        except ImageError:
            continue
        if item is not None and _agrees(item, segments):
            found = _filled(item, found)
    return found


def _agrees(item: LoadRange, segments: tuple[Segment, ...]) -> bool:
    return all(
        not segment.file_size or segment.paddr - item.address == segment.file_offset - item.file_offset
        for segment in segments
    )


def _filled(item: LoadRange, segments: tuple[Segment, ...]) -> tuple[Segment, ...]:
    ordered = sorted(segments, key=lambda segment: segment.paddr)
    found = list(segments)
    at, delta = item.address, ordered[0].vaddr - ordered[0].paddr
    end = item.address + item.mem_size
    for segment in ordered:
        if at < min(segment.paddr, end):
            found.append(_gap(item, at, min(segment.paddr, end), delta))
        at, delta = max(at, segment.paddr + segment.mem_size), segment.vaddr - segment.paddr
    if at < end:
        found.append(_gap(item, at, end, delta))
    return tuple(found) if _apart(found) else segments


def _gap(item: LoadRange, start: int, end: int, delta: int) -> Segment:
    stored = max(0, min(end, item.address + item.file_size) - start)
    offset = item.file_offset + start - item.address
    return Segment(
        offset, stored, start + delta, start, end - start, True, True, False, f"multiboot range at {start:#x}"
    )


def _apart(segments: Sequence[Segment]) -> bool:
    """Whether no two segments share virtual addresses, and none is below 0."""
    spans = sorted((segment.vaddr, segment.vaddr + segment.mem_size) for segment in segments)
    return spans[0][0] >= 0 and all(one[1] <= two[0] for one, two in itertools.pairwise(spans))
