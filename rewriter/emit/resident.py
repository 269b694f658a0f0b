"""The resident block: locator, pointer table, entry stub, call pages, thunks, cells, then stack and buffer.

Everything a patched image needs at run time lies in this one block behind the image. Its
distance to the code is the same at physical and at virtual addresses, so relative sites
reach it before paging and after; pointers in it are physical (absolute reach).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from pvpatch.abi.errors import SelfCheckError
from pvpatch.abi.layout import (
    CALL_PAGE_SIZE,
    LOCATOR_SIZE,
    Cell,
    Locator,
    Origin,
    pack_cells,
    pack_locator,
    pack_origins,
    slot_offset,
)
from pvpatch.abi.page import build_bare_page
from pvpatch.abi.spec import load_spec
from rewriter.emit.assembly import Encoded, Label
from rewriter.emit.entry import MAP_BUFFER, STACK, Entry, Stub, StubPlace, assemble_stubs
from rewriter.emit.thunk import CellPlace, Thunk

__all__ = ["Part", "Resident", "ThunkRequest", "build_resident"]

PAGE = 4096
_THUNK_ALIGN = 16
_POINTER = 8
_STUB_ROOM = 4096  # the stub is placed before its size is known; it is measured against this


@dataclass(frozen=True)
class ThunkRequest:
    """A thunk to be placed: its window's address, width, the distance virtual - physical that its
    code sees, and the code for a given function from call numbers to slot addresses.

    ``end`` is the address behind the window, ``cave`` that of a jump on the way to the thunk, ``anchor``
    what the return address on the stack stands for where the site calls."""

    window: int
    bits: int
    delta: int
    compose: Callable[[Callable[[int], int]], Thunk]
    pointer: bool = False
    end: int = 0
    cave: int | None = None
    anchor: int | None = None


@dataclass(frozen=True)
class Part:
    """A named piece of the block."""

    name: str
    offset: int
    data: bytes


@dataclass(frozen=True)
class Resident:
    """The finished block. Offsets from its start; ``memory_size`` includes stack and buffer."""

    physical: int
    parts: tuple[Part, ...]
    thunks: dict[int, Encoded]
    thunk_offsets: dict[int, int]
    cells: dict[tuple[int, int], Cell]
    """By the addresses of the window and of the site."""
    pointers: dict[int, int]
    stub: Stub
    size: int
    memory_size: int

    def data(self) -> bytes:
        """The bytes that the file holds."""
        block = bytearray(self.size)
        for part in self.parts:
            block[part.offset : part.offset + len(part.data)] = part.data
        return bytes(block)


@dataclass
class _Layout:
    """Where each part goes; filled front to back."""

    table: int = LOCATOR_SIZE
    stub: int = 0
    pages: dict[int, int] | None = None
    thunks: int = 0


def build_resident(
    physical: int,
    virtual_delta: int,
    widths: tuple[int, ...],
    requests: tuple[ThunkRequest, ...],
    entries: tuple[Entry, ...],
    image_end: int,
    zero: tuple[int, int] = (0, 0),
) -> Resident:
    """Lay out and encode the block at ``physical``.

    ``virtual_delta`` is the kernel's virtual - physical distance, for the locator;
    ``image_end`` the physical end of an image that the block lies below, else 0; ``zero`` address and size
    of what the entry stub clears.
    """
    layout = _lay_out(widths, sum(request.pointer for request in requests))
    assert layout.pages is not None
    thunks, offsets, cells, end = _encode_thunks(physical, layout, requests)
    cell_table = pack_cells(cells.values())
    origins = [
        origin
        for request in requests
        for origin in _origins(request, thunks[request.window], offsets[request.window], physical)
    ]
    origin_table = pack_origins(origins)
    size = end + len(cell_table) + len(origin_table)
    buffer = _up(size, PAGE)
    memory_size = buffer + MAP_BUFFER + STACK
    place = StubPlace(
        code=physical + layout.stub,
        reserve=(physical, physical + memory_size),
        buffer=physical + buffer,
        stack_top=physical + memory_size,
        image_end=image_end,
        zero=zero,
    )
    stub = assemble_stubs(entries, place)
    if len(stub.code) > _STUB_ROOM:
        raise SelfCheckError("the entry stub has outgrown its room")
    pointers, table = _pointer_table(physical, layout, requests, offsets)
    locator = Locator(
        resident_size=memory_size,
        resident_phys=physical,
        resident_virt=(physical + virtual_delta) % (1 << 64),
        off_page32=layout.pages.get(32, 0),
        off_page64=layout.pages.get(64, 0),
        off_entry_stub=layout.stub if stub.code else 0,
        off_cells=end if cells else 0,
        cell_count=len(cells),
        off_origins=end + len(cell_table) if origins else 0,
        origin_count=len(origins),
    )
    parts = [Part("locator", 0, pack_locator(locator))]
    if table:
        parts.append(Part("pointer table", layout.table, table))
    if stub.code:
        parts.append(Part("entry stub", layout.stub, stub.code))
    for width, offset in layout.pages.items():
        page = build_bare_page(width, physical + offset, (physical + offset + virtual_delta) % (1 << 64))
        parts.append(Part(f"call page, {width} bits", offset, page))
    parts += [Part(f"thunk of {window:#x}", offsets[window], code.data) for window, code in thunks.items()]
    if cell_table:
        parts.append(Part("cell table", end, cell_table))
    if origin_table:
        parts.append(Part("origin table", end + len(cell_table), origin_table))
    return Resident(physical, tuple(parts), thunks, offsets, cells, pointers, stub, size, memory_size)


def _lay_out(widths: tuple[int, ...], pointers: int) -> _Layout:
    layout = _Layout()
    layout.stub = _up(layout.table + pointers * _POINTER, 64)
    at = _up(layout.stub + _STUB_ROOM, PAGE)
    layout.pages = {}
    for width in widths:
        layout.pages[width] = at
        at += CALL_PAGE_SIZE
    layout.thunks = at
    return layout


def _encode_thunks(
    physical: int, layout: _Layout, requests: tuple[ThunkRequest, ...]
) -> tuple[dict[int, Encoded], dict[int, int], dict[tuple[int, int], Cell], int]:
    thunks: dict[int, Encoded] = {}
    offsets: dict[int, int] = {}
    cells: dict[tuple[int, int], Cell] = {}
    at = layout.thunks
    pages = layout.pages or {}
    for request in requests:
        mask = (1 << request.bits) - 1
        base = (physical + request.delta) & mask
        page = pages[request.bits]

        def slot(number: int, base: int = base, page: int = page, mask: int = mask) -> int:
            return (base + page + slot_offset(number)) & mask

        thunk = request.compose(slot)
        encoded = thunk.assembly.encode((base + at) & mask)
        thunks[request.window] = encoded
        offsets[request.window] = at
        for place in thunk.cells:
            cells[request.window, place.site] = _cell(place, encoded.labels, at, request.bits)
        at = _up(at + len(encoded.data), _THUNK_ALIGN)
    return thunks, offsets, cells, at


def _cell(place: CellPlace, labels: Mapping[Label, int], offset: int, bits: int) -> Cell:
    """Where a cell of a thunk came to lie. ValueError when it is too short for what a loader lays over it."""
    start = labels[place.start]
    length = labels[place.end] - start
    if length < load_spec().cells.least and not place.covered:
        raise ValueError("a cell is too short")
    body = 0 if place.body is None else offset + labels[place.body]
    return Cell(offset + start, place.call, place.form, length, bits, body, place.covered)


def _origins(request: ThunkRequest, thunk: Encoded, offset: int, physical: int) -> list[Origin]:
    """What a thunk's code stands for, and the jump in a cave on the way to it.

    Only at the window's first byte the image leads back to the thunk; the rest of it is overwritten.
    """
    base, mask = physical + request.delta, (1 << request.bits) - 1

    def distance(address: int) -> int:
        away = address - base & mask
        return away - mask - 1 if away >> request.bits - 1 else away

    found = [
        Origin(
            offset + stand.offset,
            distance(stand.address),
            None if request.anchor is None or not stand.called else request.anchor - stand.address,
            stand.leaves,
            request.window < stand.address < request.end,
            stand.address == request.end,
        )
        for stand in thunk.stands
    ]
    if request.cave is not None:
        found.append(Origin(distance(request.cave), distance(request.window)))
    return found


def _pointer_table(
    physical: int, layout: _Layout, requests: tuple[ThunkRequest, ...], offsets: dict[int, int]
) -> tuple[dict[int, int], bytes]:
    pointers: dict[int, int] = {}
    table = bytearray()
    for request in requests:
        if request.pointer:
            pointers[request.window] = physical + layout.table + len(table)
            table += (physical + offsets[request.window]).to_bytes(_POINTER, "little")
    return pointers, bytes(table)


def _up(value: int, step: int) -> int:
    return -(-value // step) * step
