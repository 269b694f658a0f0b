"""The one model of a kernel image: what scan, patch, diff and run know of a file.

All documents here are frozen. Addresses are guest addresses in bytes; `file_offset` counts from the start
of the payload (the innermost executable image), not of the outer file, unless a field says otherwise.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal

from pvpatch.abi.errors import ImageError

__all__ = [
    "EntryPoint",
    "Image",
    "Kind",
    "Layer",
    "LoadRange",
    "Note",
    "Protocol",
    "RelocationTail",
    "Section",
    "Segment",
    "SetupHeader",
    "StubFacts",
    "Symbol",
    "Table",
]

Kind = Literal["elf32", "elf64", "flat"]
Protocol = Literal["multiboot1", "multiboot2", "linux32", "linux64", "pvh", "xen", "elf", "efi"]


@dataclass(frozen=True, slots=True)
class Segment:
    """A piece of the payload that is loaded: bytes at a file offset, its addresses and permissions.

    `mem_size` >= `file_size`; the difference is zero-filled.
    """

    file_offset: int
    file_size: int
    vaddr: int
    paddr: int
    mem_size: int
    readable: bool
    writable: bool
    executable: bool
    name: str

    @property
    def flags(self) -> str:
        """Permissions as 'rwx' with '-' for what is missing."""
        return "".join(
            letter if on else "-"
            for letter, on in zip("rwx", (self.readable, self.writable, self.executable), strict=True)
        )


@dataclass(frozen=True, slots=True)
class Section:
    """A section header's content; `file_size` is 0 for sections without bytes in the file.

    `executable` is said of program bytes only: notes that carry the flag (i386 Linux 4.x) are none.
    """

    name: str
    file_offset: int
    file_size: int
    vaddr: int
    mem_size: int
    allocated: bool
    writable: bool
    executable: bool


@dataclass(frozen=True, slots=True)
class Symbol:
    """A named address; kind is one of function, object, notype, section, file, other."""

    name: str
    address: int
    size: int
    kind: str
    exported: bool


@dataclass(frozen=True, slots=True)
class EntryPoint:
    """Where a boot protocol enters the image, and the code width (16, 32, 64 bits) it enters in.

    `address` is the virtual address at which the file is linked, `physical` where the loader jumps to.
    """

    address: int
    physical: int
    width: int
    protocol: Protocol


@dataclass(frozen=True, slots=True)
class Table:
    """A named range that the kernel itself reads to patch or unwind its code (from section headers)."""

    name: str
    address: int
    file_offset: int
    size: int


@dataclass(frozen=True, slots=True)
class LoadRange:
    """Bytes that a loader copies in one piece to a physical address; `mem_size` - `file_size` are zeroed."""

    file_offset: int
    file_size: int
    address: int
    mem_size: int


@dataclass(frozen=True, slots=True)
class Note:
    """An ELF note: owner without the trailing NUL, type number, raw description, section if known.

    `offset` is the file offset of the description.
    """

    owner: str
    type: int
    description: bytes
    section: str = ""
    offset: int = 0


@dataclass(frozen=True, slots=True)
class RelocationTail:
    """vmlinux.relocs: places (linked virtual addresses) that KASLR adjusts, appended to the ELF file.

    `abs64` and `abs32` get the load delta added, `inverse32` (per-CPU) subtracted.
    Source: arch/x86/tools/relocs.c, arch/x86/boot/compressed/misc.c (handle_relocations).
    """

    file_offset: int
    abs64: tuple[int, ...]
    inverse32: tuple[int, ...]
    abs32: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class SetupHeader:
    """The Linux/x86 boot protocol header (Documentation/arch/x86/boot.rst); sizes in bytes.

    `raw` is the file from 0x1f1 up to the end of the header, as a loader copies it to the zero page.
    Fields that the header's version does not have yet are 0.
    """

    raw: bytes = field(repr=False)
    version: int
    setup_sects: int
    syssize: int
    loadflags: int
    code32_start: int
    initrd_addr_max: int
    kernel_alignment: int
    relocatable: bool
    min_alignment: int
    xloadflags: int
    cmdline_size: int
    payload_offset: int
    payload_length: int
    pref_address: int
    init_size: int
    handover_offset: int

    @property
    def setup_size(self) -> int:
        """File offset at which the protected-mode code starts."""
        return (self.setup_sects + 1) * 512


@dataclass(frozen=True, slots=True)
class StubFacts:
    """What stands around the payload of a bzImage: the decompressor and what a repack must adjust.

    `length_pair_offsets`: file offsets of adjacent u32 {input_len, output_len}; one hit is needed to repack.
    `certificate`: file offset and size of the Secure Boot signature, (0, 0) without one.
    `pe_offset`: file offset of the PE header, 0 without an EFI stub.
    """

    header: SetupHeader
    entries: tuple[EntryPoint, ...]
    length_pair_offsets: tuple[int, ...]
    certificate: tuple[int, int]
    pe_offset: int


@dataclass(frozen=True, slots=True)
class Layer:
    """One container around the payload: the whole outer bytes and where the inner part lies in them.

    ``codec`` is empty where that part is stored as it is.
    """

    kind: Literal["gzip", "bzimage", "compressed", "uki", "zboot"]
    codec: str
    raw: bytes = field(repr=False)
    start: int
    end: int
    stub: StubFacts | None = None

    @property
    def compressed(self) -> bytes:
        """The compressed bytes."""
        return self.raw[self.start : self.end]


@dataclass(frozen=True)
class Image:
    """A kernel image, understood: containers outermost first, and the executable payload inside them."""

    path: Path
    container: tuple[Layer, ...]
    payload: bytes = field(repr=False)
    kind: Kind
    bits: int
    segments: tuple[Segment, ...]
    entries: tuple[EntryPoint, ...]
    sections: tuple[Section, ...] = field(default=(), repr=False)
    symbols: tuple[Symbol, ...] = field(default=(), repr=False)
    tables: tuple[Table, ...] = field(default=(), repr=False)
    notes: tuple[Note, ...] = field(default=(), repr=False)
    xen: Mapping[str, int | str] = field(default_factory=dict, repr=False)
    setup_header: SetupHeader | None = None
    relocations: RelocationTail | None = field(default=None, repr=False)
    relocated: frozenset[int] | None = field(default=None, repr=False)
    """Addresses of the words that the image adjusts to where it runs; None: it runs where it is linked."""

    @cached_property
    def original(self) -> bytes:
        """The bytes of the file as it was opened."""
        return self.container[0].raw if self.container else self.payload

    @cached_property
    def _by_vaddr(self) -> tuple[list[int], list[Segment]]:
        ordered = sorted(self.segments, key=lambda segment: segment.vaddr)
        return [segment.vaddr for segment in ordered], ordered

    @cached_property
    def _by_paddr(self) -> tuple[list[int], list[Segment]]:
        ordered = sorted(self.segments, key=lambda segment: segment.paddr)
        return [segment.paddr for segment in ordered], ordered

    @cached_property
    def _by_offset(self) -> tuple[list[int], list[Segment]]:
        ordered = sorted((s for s in self.segments if s.file_size), key=lambda segment: segment.file_offset)
        return [segment.file_offset for segment in ordered], ordered

    @cached_property
    def _code_symbols(self) -> tuple[list[int], list[Symbol]]:
        ordered = sorted(
            (s for s in self.symbols if s.kind in ("function", "object", "notype") and s.name),
            key=lambda symbol: (symbol.address, symbol.kind == "function", symbol.size, symbol.name),
        )
        return [symbol.address for symbol in ordered], ordered

    @cached_property
    def _sections_by_vaddr(self) -> tuple[list[int], list[Section]]:
        ordered = sorted((s for s in self.sections if s.allocated and s.mem_size), key=lambda s: s.vaddr)
        return [section.vaddr for section in ordered], ordered

    def segment_at(self, vaddr: int) -> Segment | None:
        """The segment whose memory holds a virtual address."""
        keys, ordered = self._by_vaddr
        index = bisect_right(keys, vaddr) - 1
        if index >= 0 and vaddr - ordered[index].vaddr < ordered[index].mem_size:
            return ordered[index]
        return None

    def section_at(self, vaddr: int) -> Section | None:
        """The allocated section that holds a virtual address."""
        keys, ordered = self._sections_by_vaddr
        index = bisect_right(keys, vaddr) - 1
        if index >= 0 and vaddr - ordered[index].vaddr < ordered[index].mem_size:
            return ordered[index]
        return None

    def section(self, name: str) -> Section | None:
        """The first section of that name."""
        return next((section for section in self.sections if section.name == name), None)

    def table(self, name: str) -> Table | None:
        """The self-patching table of that name."""
        return next((table for table in self.tables if table.name == name), None)

    def executable_segments(self) -> Iterator[Segment]:
        """Segments with execute permission and bytes in the file."""
        return (segment for segment in self.segments if segment.executable and segment.file_size)

    def data_of(self, part: Segment | Section | Table) -> bytes:
        """The bytes that the file holds for a segment, section or table."""
        size = part.size if isinstance(part, Table) else part.file_size
        return self.payload[part.file_offset : part.file_offset + size]

    def read(self, vaddr: int, count: int) -> bytes:
        """`count` bytes at a virtual address, zero-filled where the file holds none.

        Raises ImageError when a byte of the range lies outside every segment.
        """
        out = bytearray()
        while len(out) < count:
            at = vaddr + len(out)
            segment = self.segment_at(at)
            if segment is None:
                raise ImageError(f"{self.path}: no byte of the image is at {at:#x}")
            inside = at - segment.vaddr
            wanted = min(count - len(out), segment.mem_size - inside)
            stored = max(0, min(wanted, segment.file_size - inside))
            start = segment.file_offset + inside
            out += self.payload[start : start + stored]
            out += bytes(wanted - stored)
        return bytes(out)

    def offset_of(self, vaddr: int) -> int | None:
        """Payload offset of a virtual address; None when the file holds no byte for it."""
        segment = self.segment_at(vaddr)
        if segment is None or vaddr - segment.vaddr >= segment.file_size:
            return None
        return segment.file_offset + vaddr - segment.vaddr

    def vaddr_of_offset(self, offset: int) -> int | None:
        """Virtual address at which a payload offset is loaded; None when it is not loaded."""
        keys, ordered = self._by_offset
        index = bisect_right(keys, offset) - 1
        if index >= 0 and offset - ordered[index].file_offset < ordered[index].file_size:
            return ordered[index].vaddr + offset - ordered[index].file_offset
        return None

    def paddr_of(self, vaddr: int) -> int | None:
        """Physical load address of a virtual address; None outside the image."""
        segment = self.segment_at(vaddr)
        return None if segment is None else segment.paddr + vaddr - segment.vaddr

    def vaddr_of_paddr(self, paddr: int) -> int | None:
        """Virtual address of a physical load address; None outside the image."""
        keys, ordered = self._by_paddr
        index = bisect_right(keys, paddr) - 1
        if index >= 0 and paddr - ordered[index].paddr < ordered[index].mem_size:
            return ordered[index].vaddr + paddr - ordered[index].paddr
        return None

    def symbol_at(self, address: int) -> Symbol | None:
        """The nearest symbol at or below an address, inside the same section when sections are known."""
        keys, ordered = self._code_symbols
        index = bisect_right(keys, address) - 1
        if index < 0:
            return None
        symbol = ordered[index]
        if symbol.size and address >= symbol.address + symbol.size:
            return None
        if not symbol.size:
            section = self.section_at(address)
            if section is not None and symbol.address < section.vaddr:
                return None
        return symbol

    def describe(self, address: int) -> str:
        """An address in words: 'symbol+0x12 in .text', 'segment 1+0x40', or 'outside the image'."""
        segment = self.segment_at(address)
        if segment is None:
            return f"{address:#x} (outside the image)"
        section = self.section_at(address)
        place = section.name if section is not None else segment.name
        symbol = self.symbol_at(address)
        if symbol is not None:
            delta = address - symbol.address
            return f"{symbol.name}{f'+{delta:#x}' if delta else ''} in {place}"
        start = section.vaddr if section is not None else segment.vaddr
        return f"{place}+{address - start:#x}"
