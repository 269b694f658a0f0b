"""ELF kernels, read with lief after the headers were checked."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path

import lief

from pvpatch.abi.errors import ImageError
from rewriter.image.dynamic import relocated_words
from rewriter.image.elf_guard import DAMAGED, ET_DYN, MAGIC, ElfHeader, check_elf
from rewriter.image.elf_notes import NoteArea, read_notes
from rewriter.image.model import EntryPoint, Image, Note, Protocol, Section, Segment, Symbol, Table
from rewriter.image.multiboot import MultibootHeader, find_multiboot
from rewriter.image.multiboot_gaps import with_loaded_gaps
from rewriter.image.relocation_tail import parse_relocation_tail
from rewriter.image.xen_notes import OWNER, PHYS32_ENTRY, SECTION_NOTES, SECTION_STRING, xen_parameters

__all__ = ["matches", "parse"]

TABLE_NAMES = frozenset(
    {
        ".parainstructions",
        ".altinstructions",
        ".altinstr_replacement",
        "__ex_table",
        ".smp_locks",
        ".retpoline_sites",
        ".return_sites",
        ".call_sites",
        ".static_call_sites",
        ".ibt_endbr_seal",
        "__mcount_loc",
        "__jump_table",
        "__bug_table",
        ".orc_unwind_ip",
        ".eh_frame",
    }
)
SHF_WRITE, SHF_ALLOC, SHF_EXECINSTR = 1, 2, 4
PF_X, PF_W, PF_R = 1, 2, 4
NO_ENTRY = "and no boot protocol header names another one"
GNU_ABI_TAG = 1  # note type of owner GNU that every hosted program carries
SYMBOL_KINDS = {
    "NOTYPE": "notype",
    "OBJECT": "object",
    "FUNC": "function",
    "SECTION": "section",
    "FILE": "file",
}

lief.logging.disable()  # its remarks on damaged files go to stderr; ours are the ones that count


def matches(data: bytes) -> bool:
    """Whether this is an ELF file."""
    return data[:4] == MAGIC


def parse(data: bytes, path: Path) -> Image:
    """The Image of an ELF kernel; ImageError for damaged files, foreign machines and programs."""
    header = check_elf(data)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # lief warns of every number that its enumerations do not know
        return _image(data, path, header, _read(data))


def _image(data: bytes, path: Path, header: ElfHeader, binary: lief.ELF.Binary) -> Image:
    multiboot = find_multiboot(data)
    segments = with_loaded_gaps(_segments(binary, header), multiboot, len(data))
    sections = _sections(binary, data)
    notes = _notes(binary, data)
    string = next((s for s in sections if s.name == SECTION_STRING), None)
    text = data[string.file_offset : string.file_offset + string.file_size] if string is not None else b""
    xen = xen_parameters(notes, text, header.entry)
    _refuse_programs(header, binary, notes, hosted_ok=bool(multiboot or xen))
    places = _Places(segments)
    return Image(
        path=path,
        container=(),
        payload=data,
        kind="elf32" if header.bits == 32 else "elf64",
        bits=header.bits,
        segments=segments,
        entries=_entries(header, places, multiboot, xen, notes),
        sections=sections,
        symbols=_symbols(binary),
        tables=tuple(
            Table(s.name, s.vaddr, s.file_offset, s.file_size)
            for s in sections
            if s.name in TABLE_NAMES and s.file_size
        ),
        notes=notes,
        xen=xen,
        relocations=parse_relocation_tail(data, header.end, header.bits),
        relocated=relocated_words(data, header, segments),
    )


def _read(data: bytes) -> lief.ELF.Binary:
    config = lief.ELF.ParserConfig()
    config.parse_relocations = False
    config.parse_dyn_symbols = False
    config.parse_symbol_versions = False
    config.parse_overlay = False
    try:
        binary = lief.ELF.parse(data, config)
    except (RuntimeError, ValueError, MemoryError, TypeError) as error:
        raise ImageError(f"the ELF file cannot be parsed: {error}", hint=DAMAGED) from error
    if binary is None:
        raise ImageError("the ELF file cannot be parsed", hint=DAMAGED)
    return binary


def _name(item: lief.ELF.Section | lief.ELF.Symbol | lief.ELF.Note) -> str:
    """A name as text; lief gives bytes, or fails, where it is no UTF-8."""
    try:
        name = item.name
    except UnicodeDecodeError:
        return "?"
    return name.decode("utf-8", "replace") if isinstance(name, bytes) else name


def _segments(binary: lief.ELF.Binary, header: ElfHeader) -> tuple[Segment, ...]:
    found = []
    total = 0
    for index, item in enumerate(binary.segments):
        total += 1
        if item.type != lief.ELF.Segment.TYPE.LOAD or not item.virtual_size:
            continue
        flags = int(item.flags)
        found.append(
            Segment(
                file_offset=item.file_offset,
                file_size=item.physical_size,
                vaddr=item.virtual_address,
                paddr=item.physical_address,
                mem_size=item.virtual_size,
                readable=bool(flags & PF_R),
                writable=bool(flags & PF_W),
                executable=bool(flags & PF_X),
                name=f"segment {index}",
            )
        )
    if total != header.segments or not found:
        raise ImageError(f"only {total} of {header.segments} program headers can be read", hint=DAMAGED)
    return tuple(found)


def _sections(binary: lief.ELF.Binary, data: bytes) -> tuple[Section, ...]:
    found = []
    for item in binary.sections:
        kind = item.type
        if kind == lief.ELF.Section.TYPE.SHT_NULL_:
            continue
        stored = kind != lief.ELF.Section.TYPE.NOBITS and item.offset + item.size <= len(data)
        flags = int(item.flags)
        found.append(
            Section(
                name=_name(item),
                file_offset=item.offset,
                file_size=item.size if stored else 0,
                vaddr=item.virtual_address,
                mem_size=item.size,
                allocated=bool(flags & SHF_ALLOC),
                writable=bool(flags & SHF_WRITE),
                executable=bool(flags & SHF_EXECINSTR) and kind == lief.ELF.Section.TYPE.PROGBITS,
            )
        )
    return tuple(found)


def _symbols(binary: lief.ELF.Binary) -> tuple[Symbol, ...]:
    local = lief.ELF.Symbol.BINDING.LOCAL
    undefined = 0
    kinds: dict[object, str] = {}
    found = []
    for item in binary.symtab_symbols:
        if item.shndx == undefined:
            continue
        kind = kinds.get(item.type)
        if kind is None:
            kind = kinds[item.type] = SYMBOL_KINDS.get(str(item.type).rpartition(".")[2], "other")
        found.append(Symbol(_name(item), item.value, item.size, kind, item.binding != local))
    return tuple(found)


def _notes(binary: lief.ELF.Binary, data: bytes) -> tuple[Note, ...]:
    """Notes of sections, whose alignment is their own, then those that only segments hold."""
    sections = [item for item in binary.sections if item.type == lief.ELF.Section.TYPE.NOTE]
    areas: list[NoteArea] = [(item.offset, item.size, item.alignment) for item in sections]
    for item in binary.segments:
        inside = any(
            item.file_offset <= at and at + size <= item.file_offset + item.physical_size
            for at, size, _ in areas[: len(sections)]
        )
        if item.type == lief.ELF.Segment.TYPE.NOTE and not inside:
            areas.append((item.file_offset, item.physical_size, item.alignment))
    xen_section = any(_name(section) == SECTION_NOTES for section in binary.sections)
    # A .note.Xen section whose owner was mistyped still holds Xen notes (GNU Mach's says "name").
    return tuple(
        replace(note, section=SECTION_NOTES if xen_section and note.owner not in ("GNU", "Linux") else "")
        for note in read_notes(data, areas)
    )


def _refuse_programs(
    header: ElfHeader, binary: lief.ELF.Binary, notes: tuple[Note, ...], *, hosted_ok: bool
) -> None:
    if any(note.owner == "GNU" and note.type == GNU_ABI_TAG for note in notes):
        raise ImageError("this is a program for an operating system, not a kernel", hint="it has an ABI note")
    dynamic = any(item.type == lief.ELF.Segment.TYPE.DYNAMIC for item in binary.segments)
    if header.type == ET_DYN and dynamic and not hosted_ok:
        raise ImageError("this is a shared object, not a kernel", hint="it has no boot protocol header")


class _Places:
    """Turns an address that a header gives into (virtual, physical)."""

    def __init__(self, segments: tuple[Segment, ...]) -> None:
        self._segments = segments

    def by_vaddr(self, address: int) -> tuple[int, int] | None:
        """Read the address as virtual."""
        for item in self._segments:
            if 0 <= address - item.vaddr < item.mem_size:
                return address, item.paddr + address - item.vaddr
        return None

    def by_paddr(self, address: int) -> tuple[int, int] | None:
        """Read the address as physical."""
        for item in self._segments:
            if 0 <= address - item.paddr < item.mem_size:
                return item.vaddr + address - item.paddr, address
        return None

    def either(self, address: int) -> tuple[int, int] | None:
        """As boot loaders read e_entry: virtual when it is inside a segment, else physical."""
        return self.by_vaddr(address) or self.by_paddr(address)


def _entries(
    header: ElfHeader,
    places: _Places,
    multiboot: tuple[MultibootHeader, ...],
    xen: object,
    notes: tuple[Note, ...],
) -> tuple[EntryPoint, ...]:
    """Every way in, with its width; ImageError when there is none inside the image."""
    found: list[EntryPoint] = []

    def add(place: tuple[int, int] | None, width: int, protocol: Protocol) -> None:
        if place is not None:
            found.append(EntryPoint(place[0], place[1], width, protocol))

    for item in multiboot:
        start = places.by_paddr(item.entry) if item.entry is not None else places.either(header.entry)
        add(start, 32, item.protocol)
        if item.entry_efi64 is not None:
            add(places.by_paddr(item.entry_efi64), 64, "efi")
    for note in notes:
        if note.owner == OWNER and note.type == PHYS32_ENTRY:
            add(places.by_paddr(int.from_bytes(note.description[:8], "little")), 32, "pvh")
    xen_entry = xen.get("ENTRY") if isinstance(xen, dict) else None
    if isinstance(xen_entry, int):
        add(places.by_vaddr(xen_entry), header.bits, "xen")
    generic = places.either(header.entry)
    known = {entry.physical: entry.width for entry in found}
    if not multiboot and (generic is None or known.get(generic[1], header.bits) == header.bits):
        add(generic, header.bits, "elf")  # a protocol that enters there in another width knows it better
    if not found:
        raise ImageError(f"the entry point {header.entry:#x} lies outside every segment", hint=NO_ENTRY)
    return tuple(found)
