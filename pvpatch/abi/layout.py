"""Layouts of the structures both sides share: call-page header, locator, vCPU page.

Every structure is a table of fields (little endian, offsets computed from the order); the C header,
the reference and the pack/unpack functions below are all derived from these tables.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache

from pvpatch.abi.errors import ImageError
from pvpatch.abi.spec import Spec, load_spec

__all__ = [
    "CALL_PAGE_SIZE",
    "CELL",
    "CELL_COVERED",
    "CELL_REACH",
    "CELL_SIZE",
    "HEADER",
    "HEADER_SIZE",
    "LOCATOR",
    "LOCATOR_ALIGN",
    "LOCATOR_MAGIC",
    "LOCATOR_SIZE",
    "LOCATOR_VERSION",
    "ORIGIN",
    "ORIGIN_SIZE",
    "SLOT_SIZE",
    "VCPU_PAGE_SIZE",
    "Cell",
    "Field",
    "Header",
    "Locator",
    "Origin",
    "Structure",
    "find_locators",
    "pack_cells",
    "pack_header",
    "pack_locator",
    "pack_origins",
    "slot_offset",
    "unpack_cells",
    "unpack_header",
    "unpack_locator",
    "unpack_origins",
    "vcpu_page",
]

LOCATOR_MAGIC = b"PVPATCH-LOCATOR\0"
LOCATOR_VERSION = 2
LOCATOR_SIZE = 80
LOCATOR_ALIGN = 16
CELL_SIZE = 16
ORIGIN_SIZE = 12
CELL_COVERED = 1
"""Flag of a cell inside the one before it, whose shadow it stands in: a loader leaves it as it is."""
CELL_REACH = 129
"""The most bytes from a cell to its body: a jump of two bytes goes 127 further than its own end."""
VCPU_PAGE_SIZE = 4096

CALL_PAGE_SIZE = load_spec().page_size
HEADER_SIZE = load_spec().header_size
SLOT_SIZE = load_spec().slot_size

_CODES = {1: "B", 2: "H", 4: "I", 8: "Q"}


@dataclass(frozen=True)
class Field:
    """One field: element size in bytes, element count, offset, and what it means (with its unit)."""

    name: str
    size: int
    why: str
    count: int = 1
    raw: bool = False
    signed: bool = False
    offset: int = 0

    @property
    def total(self) -> int:
        """Bytes it takes."""
        return self.size * self.count


@dataclass(frozen=True)
class Structure:
    """A packed little-endian structure with every gap named."""

    name: str
    why: str
    size: int
    fields: tuple[Field, ...] = field(default=())

    def __getitem__(self, name: str) -> Field:
        for item in self.fields:
            if item.name == name:
                return item
        raise KeyError(name)

    def offset(self, name: str) -> int:
        """Byte offset of a field."""
        return self[name].offset

    @property
    def format(self) -> str:
        """`struct` format of the whole."""
        parts = []
        for item in self.fields:
            if item.raw:
                parts.append(f"{item.total}s")
            else:
                code = _CODES[item.size]
                parts.append(f"{item.count if item.count > 1 else ''}{code.lower() if item.signed else code}")
        return "<" + "".join(parts)


def _lay_out(name: str, why: str, size: int, fields: list[Field]) -> Structure:
    placed: list[Field] = []
    offset = 0
    for item in fields:
        if offset % item.size:
            raise ValueError(f"{name}.{item.name} at {offset} is not aligned to {item.size}")
        placed.append(Field(item.name, item.size, item.why, item.count, item.raw, item.signed, offset))
        offset += item.total
    if offset > size:
        raise ValueError(f"{name} needs {offset} bytes, has {size}")
    if offset < size:
        placed.append(Field("reserved_end", 1, "zero", size - offset, raw=True, offset=offset))
    return Structure(name, why, size, tuple(placed))


HEADER = _lay_out(
    "pv_call_page_header",
    "First bytes of a call page.",
    HEADER_SIZE,
    [
        Field("magic", 1, "PVPATCH and a zero byte", 8, raw=True),
        Field("abi_major", 2, "a reader refuses another major version"),
        Field("abi_minor", 2, "a reader refuses a higher minor version than its own"),
        Field("width", 2, "32 or 64: the code the slots hold"),
        Field("slot_size", 2, "bytes"),
        Field("slot_count", 2, "slots that are present; slot n is at header size + n * slot size"),
        Field("flags", 2, "zero"),
        Field("backend_id", 4, "0 bare, else the backend that filled the page"),
        Field("features", 8, "feature bits"),
        Field("page_size", 4, "bytes, header and body included"),
        Field("self_phys", 4, "guest-physical address the image file loads it at"),
        Field("self_virt", 8, "its address in the kernel's mapping"),
    ],
)

LOCATOR = _lay_out(
    "pv_locator",
    "Found by scanning the loaded segments of a patched image, 16-byte aligned.",
    LOCATOR_SIZE,
    [
        Field("magic", 1, "PVPATCH-LOCATOR and a zero byte", 16, raw=True),
        Field("version", 2, "of this record"),
        Field("count", 2, "call pages present: 1 or 2"),
        Field("resident_size", 4, "bytes of the resident block"),
        Field("resident_phys", 8, "guest-physical address of the resident block"),
        Field("resident_virt", 8, "its address in the kernel's mapping"),
        Field("off_page32", 4, "offset of the 32-bit call page in the resident, 0 none"),
        Field("off_page64", 4, "offset of the 64-bit call page in the resident, 0 none"),
        Field("off_entry_stub", 4, "offset of the code that runs first, 0 none"),
        Field("off_cells", 4, "offset of the cell table in the resident, 0 none (since 1.1)"),
        Field("cell_count", 4, "records in the cell table"),
        Field("off_origins", 4, "offset of the origin table in the resident, 0 none (since 1.2)"),
        Field("origin_count", 4, "records in the origin table"),
        Field("reserved", 4, "zero", 2),
        Field("crc32", 4, "of the preceding bytes (ISO 3309)"),
    ],
)

CELL = _lay_out(
    "pv_cell",
    "One record of the cell table: a native instruction and the call that it stands for (since 1.1).",
    CELL_SIZE,
    [
        Field("offset", 4, "of the instruction, from the start of the resident"),
        Field("call", 2, "number of the call that it stands for"),
        Field("form", 2, "which of the call's forms it is, counted from 0"),
        Field("length", 2, "bytes until the code behind it"),
        Field("width", 1, "of the code, bits"),
        Field("flags", 1, "bit 0: inside the cell before it, in whose shadow it stands (since 1.2)"),
        Field("body", 4, "of the same as a call, from the start of the resident, 0 none (since 1.2)"),
    ],
)

ORIGIN = _lay_out(
    "pv_origin",
    "One record of the origin table, sorted by offset: from here on, code stands for one of the guest's"
    " instructions (since 1.2).",
    ORIGIN_SIZE,
    [
        Field("offset", 4, "of the code, from the start of the resident", signed=True),
        Field(
            "origin", 4, "of the guest's instruction, from the same place as the code sees both", signed=True
        ),
        Field("anchor", 2, "what the return address on the stack stands for, from the origin", signed=True),
        Field(
            "flags",
            2,
            "1 a return address is on the stack, 2 leaves by a jump to a slot, 4 overwritten, 8 the way back",
        ),
    ],
)


@lru_cache(maxsize=1)
def vcpu_page() -> Structure:
    """The vCPU page; the counters at its end have one element per call of the specification."""
    count = len(load_spec().calls)
    word = 8
    return _lay_out(
        "pv_vcpu",
        "Shared by the slots' code and the hypervisor, one per vCPU.",
        VCPU_PAGE_SIZE,
        [
            Field("irq_enabled", 4, "virtual interrupt flag: 0x200 or 0, the place of IF in RFLAGS"),
            Field("irq_pending", 4, "not 0: an interrupt waits for irq_enabled"),
            Field("cpl", 4, "virtual privilege level, 0..3"),
            Field("iopl", 4, "virtual IOPL in its place in RFLAGS (bits 13:12)"),
            Field("cr0", word, "virtual CR0"),
            Field("cr2", word, "linear address of the last page fault"),
            Field("cr3", word, "virtual CR3, guest-physical"),
            Field("cr4", word, "virtual CR4"),
            Field("cr8", word, "virtual CR8"),
            Field("efer", word, "virtual EFER"),
            Field("gdt_base", word, "linear address the guest loaded"),
            Field("idt_base", word, "linear address the guest loaded"),
            Field("gdt_limit", 4, "bytes - 1"),
            Field("idt_limit", 4, "bytes - 1"),
            Field("ldt", 4, "virtual selector"),
            Field("tr", 4, "virtual selector"),
            Field("segments", 4, "virtual selectors ES CS SS DS FS GS", 6),
            Field("kernel_ss", 4, "virtual SS of the next entry from user mode"),
            Field("vcpu_id", 4, "number of this vCPU"),
            Field("kernel_sp", word, "stack pointer of the next entry from user mode"),
            Field("time_version", 4, "odd while the time base is written; read again if it changed"),
            Field("time_mul", 4, "32-bit fraction: ns per scaled cycle"),
            Field("time_tsc", word, "TSC when time_ns was taken, cycles"),
            Field("time_ns", word, "clock_ns at time_tsc, ns"),
            Field("time_shift", 4, "cycles go left by this (right if negative) before time_mul", signed=True),
            Field("time_flags", 4, "bit 0: the TSC is the same on all vCPUs"),
            Field("wallclock_ns", word, "wall clock at clock_ns = 0, ns since 1970-01-01 UTC"),
            Field("stolen_ns", word, "time wanted and not had, ns"),
            Field("scratch", word, "for the slots' code, meaningless between calls", 8),
            Field("in_guest", 4, "calls answered with no exit, by call number", count),
            Field("exit", 4, "calls that needed an exit, by call number", count),
        ],
    )


def slot_offset(number: int, spec: Spec | None = None) -> int:
    """Offset of slot `number` in a call page."""
    spec = spec or load_spec()
    if not 0 <= number < len(spec.calls):
        raise IndexError(f"no call has number {number}")
    return spec.header_size + number * spec.slot_size


@dataclass(frozen=True)
class Header:
    """A call-page header. Addresses in bytes, guest-physical and linear."""

    width: int
    slot_count: int
    backend_id: int = 0
    features: int = 0
    self_phys: int = 0
    self_virt: int = 0
    abi_major: int = field(default_factory=lambda: load_spec().major)
    abi_minor: int = field(default_factory=lambda: load_spec().minor)
    slot_size: int = SLOT_SIZE
    page_size: int = CALL_PAGE_SIZE
    flags: int = 0


def pack_header(header: Header) -> bytes:
    """64 bytes of a header."""
    return struct.pack(
        HEADER.format,
        load_spec().magic,
        header.abi_major,
        header.abi_minor,
        header.width,
        header.slot_size,
        header.slot_count,
        header.flags,
        header.backend_id,
        header.features,
        header.page_size,
        header.self_phys,
        header.self_virt,
        b"",
    )


def unpack_header(data: bytes) -> Header:
    """Header at the start of `data`; ImageError if it is none or of a version this release cannot fill."""
    if len(data) < HEADER.size:
        raise ImageError("a call page is cut short")
    values = struct.unpack_from(HEADER.format, data)
    spec = load_spec()
    if values[0] != spec.magic:
        raise ImageError("no call page where one should be", "the image was damaged after it was patched")
    _, major, minor, width, slot_size, slot_count, flags, backend, features, page_size, phys, virt, _ = values
    if major != spec.major or minor > spec.minor:
        raise ImageError(
            f"the image is patched for ABI {major}.{minor}, this release has {spec.major}.{spec.minor}",
            "patch it again with this release",
        )
    if width not in (32, 64) or slot_size != spec.slot_size or page_size != spec.page_size:
        raise ImageError("a call page header is damaged")
    if slot_count > len(spec.calls):
        raise ImageError(f"a call page has {slot_count} slots, this ABI has {len(spec.calls)}")
    return Header(width, slot_count, backend, features, phys, virt, major, minor, slot_size, page_size, flags)


@dataclass(frozen=True)
class Locator:
    """Where the resident block of a patched image lies; offsets are from its start, 0 means none."""

    resident_size: int
    resident_phys: int
    resident_virt: int
    off_page32: int = 0
    off_page64: int = 0
    off_entry_stub: int = 0
    off_cells: int = 0
    cell_count: int = 0
    off_origins: int = 0
    origin_count: int = 0

    @property
    def count(self) -> int:
        """Call pages present."""
        return bool(self.off_page32) + bool(self.off_page64)


def pack_locator(locator: Locator) -> bytes:
    """80 bytes of a locator record."""
    body = struct.pack(
        LOCATOR.format,
        LOCATOR_MAGIC,
        LOCATOR_VERSION,
        locator.count,
        locator.resident_size,
        locator.resident_phys,
        locator.resident_virt,
        locator.off_page32,
        locator.off_page64,
        locator.off_entry_stub,
        locator.off_cells,
        locator.cell_count,
        locator.off_origins,
        locator.origin_count,
        0,
        0,
        0,
    )
    return body[:-4] + struct.pack("<I", zlib.crc32(body[:-4]))


def unpack_locator(data: bytes, offset: int = 0) -> Locator:
    """Locator at `offset`; ImageError if it is none, damaged, or of another version."""
    record = data[offset : offset + LOCATOR_SIZE]
    if len(record) < LOCATOR_SIZE or not record.startswith(LOCATOR_MAGIC):
        raise ImageError("no locator of a patched image")
    values = struct.unpack(LOCATOR.format, record)
    if values[-1] != zlib.crc32(record[:-4]):
        raise ImageError("the locator of the patched image is damaged", "its checksum is wrong")
    _, version, count, size, phys, virt, page32, page64, stub, cells, cell_count, origins, origin_count = (
        values[:13]
    )
    if version != LOCATOR_VERSION:
        raise ImageError(
            f"the locator has version {version}, this release knows {LOCATOR_VERSION}",
            "revert the image and patch it again with this release",
        )
    locator = Locator(size, phys, virt, page32, page64, stub, cells, cell_count, origins, origin_count)
    if locator.count != count or bool(cells) != bool(cell_count) or bool(origins) != bool(origin_count):
        raise ImageError("the locator of the patched image contradicts itself")
    for start in (page32, page64):
        if start and start + CALL_PAGE_SIZE > size:
            raise ImageError("a call page lies outside the resident block")
    if cells + cell_count * CELL_SIZE > size:
        raise ImageError("the cell table lies outside the resident block")
    if origins + origin_count * ORIGIN_SIZE > size:
        raise ImageError("the origin table lies outside the resident block")
    return locator


@dataclass(frozen=True)
class Cell:
    """A native instruction of the image: offset from the start of the resident, length in bytes, number and
    form of its call; `body` is the offset of the same as a call, 0 where no stack is known to exist."""

    offset: int
    call: int
    form: int
    length: int
    width: int = field(default_factory=lambda: load_spec().cells.width)
    body: int = 0
    covered: bool = False
    """Inside the cell before it, in whose shadow it stands."""


def pack_cells(cells: Iterable[Cell]) -> bytes:
    """The cell table."""
    return b"".join(
        struct.pack(
            CELL.format, cell.offset, cell.call, cell.form, cell.length, cell.width,
            CELL_COVERED if cell.covered else 0, cell.body,
        )
        for cell in cells
    )


def unpack_cells(data: bytes, resident_size: int) -> tuple[Cell, ...]:
    """The cells of a table; ImageError for one that names no call, no form, or no place in the resident."""
    found = []
    for offset, number, form, length, width, flags, body in struct.iter_unpack(CELL.format, data):
        cell = Cell(offset, number, form, length, width, body, bool(flags & CELL_COVERED))
        _check_cell(cell, flags, resident_size)
        found.append(cell)
    return tuple(found)


def _check_cell(cell: Cell, flags: int, resident_size: int) -> None:
    """Raises ImageError for a cell that cannot be."""
    spec = load_spec()
    forms = spec.calls[cell.call].replaces if cell.call < len(spec.calls) else ()
    alone = not cell.body and not cell.covered
    if cell.form >= len(forms) or (alone and not spec.is_stackless(spec.calls[cell.call], forms[cell.form])):
        raise ImageError("the cell table of the patched image names a call that has no stackless form")
    widths = (spec.cells.width,) if alone else forms[cell.form].widths
    least = 1 if cell.covered else spec.cells.least
    right = (
        flags in (0, CELL_COVERED)
        and cell.width in widths
        and cell.length >= least
        and cell.offset + cell.length <= resident_size
    )
    if cell.body:
        reached = cell.length <= cell.body - cell.offset <= CELL_REACH
        right = right and reached and not cell.covered and cell.body < resident_size
    if not right:
        raise ImageError("the cell table of the patched image is damaged")


@dataclass(frozen=True)
class Origin:
    """Code of the resident and the guest's instruction that it stands for: where an event in that code is
    the guest's to see. Offsets in bytes from the start of the resident, as the code sees both.

    ``anchor``: where the code was reached by a call, the distance from the instruction to the address that
    the return address on the stack stands for; else None. ``leaves``: it goes on in a slot that does not
    return. ``overwritten``: the instruction's own bytes are no longer there; ``back``: they are, and the code
    leads to them.
    """

    offset: int
    origin: int
    anchor: int | None = None
    leaves: bool = False
    overwritten: bool = False
    back: bool = False


_CALLED, _LEAVES, _OVERWRITTEN, _BACK = 1, 2, 4, 8


def pack_origins(origins: Iterable[Origin]) -> bytes:
    """The origin table, sorted; struct.error for a distance that does not fit."""
    return b"".join(
        struct.pack(
            ORIGIN.format,
            item.offset,
            item.origin,
            item.anchor or 0,
            (_CALLED if item.anchor is not None else 0)
            | (_LEAVES if item.leaves else 0)
            | (_OVERWRITTEN if item.overwritten else 0)
            | (_BACK if item.back else 0),
        )
        for item in sorted(origins, key=lambda item: item.offset)
    )


def unpack_origins(data: bytes) -> tuple[Origin, ...]:
    """The records of a table; ImageError for one that is not sorted or holds flags of a later version."""
    found: list[Origin] = []
    for offset, origin, anchor, flags in struct.iter_unpack(ORIGIN.format, data):
        if flags & ~(_CALLED | _LEAVES | _OVERWRITTEN | _BACK) or (found and offset < found[-1].offset):
            raise ImageError("the origin table of the patched image is damaged")
        called = anchor if flags & _CALLED else None
        said = (bool(flags & bit) for bit in (_LEAVES, _OVERWRITTEN, _BACK))
        found.append(Origin(offset, origin, called, *said))
    return tuple(found)


def find_locators(data: bytes, base: int = 0) -> tuple[int, ...]:
    """Offsets in `data` of intact locators; `base` is the address of data[0], which decides alignment."""
    found = []
    at = data.find(LOCATOR_MAGIC)
    while at >= 0:
        if (base + at) % LOCATOR_ALIGN == 0:
            try:
                unpack_locator(data, at)
            except ImageError:
                pass
            else:
                found.append(at)
        at = data.find(LOCATOR_MAGIC, at + 1)
    return tuple(found)
