"""The patched image's call pages: found by their locator, filled by the backend, counted while running."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

from pvpatch.abi.errors import ImageError
from pvpatch.abi.layout import (
    CELL_SIZE,
    HEADER_SIZE,
    LOCATOR_ALIGN,
    LOCATOR_MAGIC,
    ORIGIN_SIZE,
    SLOT_SIZE,
    Cell,
    Header,
    Locator,
    Origin,
    slot_offset,
    unpack_cells,
    unpack_header,
    unpack_locator,
    unpack_origins,
)
from pvpatch.abi.spec import load_spec
from runtime.boot.model import BootSegment
from runtime.cpu.vcpu import VCpu
from runtime.memory import GuestMemory

__all__ = ["PORT_CALLS", "CallCounter", "CallPage", "PatchedImage", "find_patched_image"]

PORT_CALLS = frozenset(f"{way}{size}" for way in ("in", "out", "ins", "outs") for size in (8, 16, 32))
"""ABI calls that reach a device, and with it the hypervisor, each time."""


@dataclass(frozen=True)
class CallPage:
    """One call page in guest memory."""

    width: int
    physical: int
    virtual: int
    header: Header


@dataclass(frozen=True)
class PatchedImage:
    """What the runtime knows of a patched image: locator, call pages, cells, and what its code stands for."""

    locator: Locator
    pages: tuple[CallPage, ...]
    cells: tuple[Cell, ...] = ()
    origins: tuple[Origin, ...] = ()

    @property
    def width(self) -> int:
        """Of the guest, bits: that of the widest code that was patched, whatever file holds it."""
        return max(page.width for page in self.pages)

    def slot_at(self, linear: int) -> int | None:
        """Number of the call whose slot begins at `linear`."""
        for page in self.pages:
            for start in (page.physical, page.virtual):
                number, rest = divmod(linear - start - HEADER_SIZE, SLOT_SIZE)
                if 0 <= number < page.header.slot_count and not rest:
                    return number
        return None


def find_patched_image(segments: tuple[BootSegment, ...]) -> PatchedImage | None:
    """Look for the locator in what will be loaded; None for an unpatched image.

    Raises `ImageError` for a damaged resident or one made for a newer ABI.
    """
    for segment in segments:
        at = segment.data.find(LOCATOR_MAGIC)
        while at >= 0:
            if (segment.paddr + at) % LOCATOR_ALIGN == 0:
                locator = unpack_locator(segment.data, at)
                start = locator.resident_phys - segment.paddr
                return PatchedImage(
                    locator,
                    _pages(locator, segment.data, start),
                    _cells(locator, segment.data, start),
                    _origins(locator, segment.data, start),
                )
            at = segment.data.find(LOCATOR_MAGIC, at + 1)
    return None


def _pages(locator: Locator, data: bytes, start: int) -> tuple[CallPage, ...]:
    pages = []
    for width, offset in ((32, locator.off_page32), (64, locator.off_page64)):
        if not offset:
            continue
        place = start + offset
        if place < 0 or place + HEADER_SIZE > len(data):
            raise ImageError("the call page lies outside the segment with its locator")
        header = unpack_header(data[place : place + HEADER_SIZE])
        if header.width != width:
            raise ImageError(f"the {width}-bit call page says it is {header.width} bits wide")
        pages.append(CallPage(width, locator.resident_phys + offset, locator.resident_virt + offset, header))
    return tuple(pages)


def _cells(locator: Locator, data: bytes, start: int) -> tuple[Cell, ...]:
    if not locator.off_cells:
        return ()
    place = start + locator.off_cells
    table = data[place : place + locator.cell_count * CELL_SIZE] if place >= 0 else b""
    if len(table) < locator.cell_count * CELL_SIZE:
        raise ImageError("the cell table lies outside the segment with its locator")
    cells = unpack_cells(table, locator.resident_size)
    pages = {32: locator.off_page32, 64: locator.off_page64}
    if not all(pages.get(cell.width) for cell in cells):
        raise ImageError("the patched image has cells and no call page of their width")
    return cells


def _origins(locator: Locator, data: bytes, start: int) -> tuple[Origin, ...]:
    if not locator.off_origins:
        return ()
    place = start + locator.off_origins
    table = data[place : place + locator.origin_count * ORIGIN_SIZE] if place >= 0 else b""
    if len(table) < locator.origin_count * ORIGIN_SIZE:
        raise ImageError("the origin table lies outside the segment with its locator")
    return unpack_origins(table)


def install_page(memory: GuestMemory, page: CallPage, code: bytes) -> None:
    """Replace slots, body and identity of a call page; its addresses stay those of the image.

    Raises `ImageError` if the backend's page has another shape.
    """
    new = unpack_header(code)
    if new.width != page.width or len(code) != page.header.page_size:
        raise ImageError("the backend's call page does not fit the image's")
    merged = bytearray(code)
    for name in ("self_phys", "self_virt"):
        start, end = _header_field(name)
        merged[start:end] = memory.load(page.physical + start, end - start)
    memory.store(page.physical, bytes(merged))


def _header_field(name: str) -> tuple[int, int]:
    from pvpatch.abi.layout import HEADER

    field = HEADER[name]
    return field.offset, field.offset + field.total


class CallCounter:
    """Counts ABI calls in machine code: entries to every slot, and where the guest keeps its privilege the
    cells that run, each at every address where it is known to be."""

    def __init__(self, cpu: VCpu, image: PatchedImage, *, cells_run: bool) -> None:
        spec = load_spec()
        self._names = [call.name for call in spec.calls]
        self._counted: list[tuple[int, ctypes.c_uint64]] = []
        for page in image.pages:
            numbers = range(min(page.header.slot_count, len(self._names)))
            places = [(slot_offset(number), number) for number in numbers]
            self._count(cpu, places, {page.physical, page.virtual})
        if cells_run:
            places = [(cell.offset, cell.call) for cell in image.cells]
            self._count(cpu, places, {image.locator.resident_phys, image.locator.resident_virt})

    def _count(self, cpu: VCpu, places: list[tuple[int, int]], starts: set[int]) -> None:
        """Count what runs at each offset from any of the starts as the call of that number.

        One hook for all: the emulator asks each of its hooks for every instruction that one of them is for.
        """
        if not places:
            return
        first, last = min(places)[0], max(places)[0]
        runs = (ctypes.c_uint64 * (last - first + 1))()
        for start in starts:
            cpu.count_each(start + first, runs)
        size = ctypes.sizeof(ctypes.c_uint64)
        for offset, number in places:
            self._counted.append((number, ctypes.c_uint64.from_buffer(runs, (offset - first) * size)))

    def entries(self) -> dict[str, int]:
        """Calls by name, those never made left out, in the specification's order."""
        counts = [0] * len(self._names)
        for number, runs in self._counted:
            counts[number] += runs.value
        return {name: count for name, count in zip(self._names, counts, strict=True) if count}
