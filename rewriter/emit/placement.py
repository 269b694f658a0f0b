"""Where in memory the resident block lies.

Below the image is better than behind it: kernels take the memory behind their end for their first
allocations, some by numbers that no memory map changes. One that never asks for a map is kept out of reach
altogether where that is possible. The block must not lie on a segment, at physical or at virtual addresses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from pvpatch.abi.errors import ImageError
from rewriter.image import Image
from rewriter.image.loading import load_ranges

__all__ = ["Placement", "Requirement", "place"]

_PAGE = 4096
_LOWEST = 2 << 20  # physical address below which firmware and old devices have their places
_CONVENTIONAL = 0x90000  # from here to 1 MiB: data of boot loaders and the BIOS, adapters (Linux boot.rst)
_MIB = 1 << 20
_LOW = 0x10000  # below: the BIOS's data, and where kernels put the first code of other CPUs
_REACH = 1 << 31
_STACK_BELOW, _TABLE_BEHIND = 0x4000, 0x1000  # bytes around an address that code names
_MAX_PADDING = 64 << 20  # bytes of zeros that a file may grow by to reach the block's place


@dataclass(frozen=True)
class Requirement:
    """What is to be placed: bytes of memory, the distances virtual - physical at which it is seen, whether
    the kernel learns of it by a memory map, and which addresses in [low, high) its code names."""

    size: int
    deltas: tuple[int, ...]
    learns: bool
    named: Callable[[int, int], Sequence[int]]


@dataclass(frozen=True)
class Placement:
    """The block's physical address. ``image_end`` is the image's physical end when the block lies below it
    above 1 MiB, else 0; ``warning`` what a person must know of the place."""

    physical: int
    image_end: int = 0
    warning: str = ""


def place(image: Image, need: Requirement, asked: int | None = None) -> Placement:
    """Choose the place, or check the one that was asked for; ImageError when there is none."""
    if asked is not None:
        reason = _misplaced(image, need, asked)
        if reason:
            raise ImageError(f"the resident block cannot lie at {asked:#x}: {reason}", hint="see --block-at")
        return _placement(image, need, asked, "")
    reasons: list[str] = []
    for start in _candidates(image, need):
        reason = _misplaced(image, need, start)
        if not reason:
            return _placement(image, need, start, "" if need.learns else _warning(need, start))
        reasons.append(f"not at {start:#x}: {reason}")
    raise ImageError(
        f"there is no place for the resident block ({'; '.join(reasons[:3])})",
        hint="--block-at ADDRESS chooses one",
    )


def _warning(need: Requirement, start: int) -> str:
    return (
        f"the kernel asks no boot loader for a memory map: the resident block is safe only if it leaves "
        f"{start:#x}..{start + need.size:#x} alone (--block-at ADDRESS chooses another place)"
    )


def _placement(image: Image, need: Requirement, start: int, warning: str) -> Placement:
    below = _MIB <= start < min(segment.paddr for segment in image.segments)
    return Placement(start, _end(image) if below else 0, warning)


def _candidates(image: Image, need: Requirement) -> Iterator[int]:
    """Places by preference, rightness aside."""
    behind = _behind(image)
    below = (min(segment.paddr for segment in image.segments) - need.size) // _PAGE * _PAGE
    top = (_CONVENTIONAL - need.size) // _PAGE * _PAGE
    if load_ranges(image):
        yield behind
        return
    if need.learns and behind < top:
        yield top
    if below >= _LOWEST:
        yield below
    if not need.learns:
        yield from _conventional(need, top)
    yield behind
    yield top


def _conventional(need: Requirement, top: int) -> Iterator[int]:
    """Places in conventional memory that no known instruction names, nor a stack below such an address."""
    named = need.named(_LOW, _CONVENTIONAL + _STACK_BELOW)
    for start in range(top, _LOW - 1, -_PAGE):
        end = start + need.size
        if not any(start < address + _TABLE_BEHIND and address - _STACK_BELOW < end for address in named):
            yield start


def _end(image: Image) -> int:
    return max(segment.paddr + segment.mem_size for segment in image.segments)


def _behind(image: Image) -> int:
    """The first page behind all that the image's loaders fill, the rest of the file included."""
    ends = [_end(image)]
    for item in load_ranges(image):
        ends += [item.address + item.mem_size, item.address + len(image.payload) - item.file_offset]
    return -(-max(ends) // _PAGE) * _PAGE


def _misplaced(image: Image, need: Requirement, start: int) -> str:
    """Why the block cannot lie at a physical address; empty when it can."""
    end = start + need.size
    if start % _PAGE:
        return "it must begin on a page of 4 KiB"
    if end > _REACH:
        return "it must end below 2 GiB"
    if start < _PAGE or (start < _MIB and end > _CONVENTIONAL):
        return (
            "the BIOS, boot loaders and adapters have their places there (up to 0x1000, 0x90000 to 0x100000)"
        )
    for segment in image.segments:
        if start < segment.paddr + segment.mem_size and segment.paddr < end:
            return f"{segment.name} is loaded at {segment.paddr:#x}..{segment.paddr + segment.mem_size:#x}"
    ranges = load_ranges(image)
    if ranges and not 0 <= start - _behind(image) <= _MAX_PADDING:
        return (
            f"the image is loaded in one piece, and the block with it: from {_behind(image):#x} on, "
            f"at most {_MAX_PADDING >> 20} MiB behind"
        )
    return _virtually_misplaced(image, need, start)


def _virtually_misplaced(image: Image, need: Requirement, start: int) -> str:
    if image.kind == "flat":
        return ""
    top = 1 << image.bits
    for delta in need.deltas:
        first = (start + delta) % top
        last = first + need.size
        if last > top:
            return f"its virtual addresses from {first:#x} on would wrap around"
        for segment in image.segments:
            if first < segment.vaddr + segment.mem_size and segment.vaddr < last:
                there = f"{segment.vaddr:#x}..{segment.vaddr + segment.mem_size:#x}"
                return f"at virtual addresses it would lie on {segment.name} ({there})"
    return ""
