"""The ways into an image: where its file names them, and which of them the entry stub stands in front of."""

from __future__ import annotations

from dataclasses import dataclass

from pvpatch.abi.errors import ImageError
from rewriter.emit.boot_fields import FieldValue
from rewriter.emit.resident import Resident
from rewriter.image import EntryPoint, Image
from rewriter.image.multiboot import MultibootHeader, find_multiboot

__all__ = ["EntryField", "entry_fields", "redirections", "stub_entries", "uncovered_entry"]

_STUB_PROTOCOLS = ("multiboot1", "multiboot2", "linux32", "linux64", "pvh", "elf")
_E_ENTRY = 24  # file offset of e_entry in both ELF classes
_PVH_NOTE = ("Xen", 18)  # XEN_ELFNOTE_PHYS32_ENTRY (xen/include/public/elfnote.h)


@dataclass(frozen=True)
class EntryField:
    """Bytes of the file that say where a loader enters; ``virtual``: the address there is a virtual one."""

    name: str
    offset: int
    size: int
    point: EntryPoint
    virtual: bool = False


def entry_fields(image: Image) -> tuple[EntryField, ...]:
    """Every field that names an entry which the patch covers; a Linux boot image has none."""
    if image.kind == "flat" and image.setup_header is not None:
        return ()
    fields = [
        EntryField(f"the entry address of the {header.protocol} header", header.field("entry"), 4, point)
        for header in find_multiboot(image.payload)
        if (point := _named(image, header)) is not None
    ]
    for note in image.notes:
        if (note.owner, note.type) == _PVH_NOTE:
            address = int.from_bytes(note.description[:8], "little")
            point = _point(image, address, ("pvh",))
            if point is not None:
                fields.append(EntryField("the PVH note", note.offset, len(note.description[:8]), point))
    if image.kind != "flat":
        fields += _e_entry(image, fields)
    return tuple(fields)


def _named(image: Image, header: MultibootHeader) -> EntryPoint | None:
    return None if header.entry is None else _point(image, header.entry, (header.protocol,))


def _point(image: Image, physical: int, protocols: tuple[str, ...]) -> EntryPoint | None:
    return next((p for p in image.entries if p.physical == physical and p.protocol in protocols), None)


def _e_entry(image: Image, others: list[EntryField]) -> list[EntryField]:
    """The ELF header's entry; none when its code is of 64 bits and a protocol enters somewhere else."""
    size = 4 if image.kind == "elf32" else 8
    value = int.from_bytes(image.payload[_E_ENTRY : _E_ENTRY + size], "little")
    virtual = image.segment_at(value) is not None
    physical = image.paddr_of(value) if virtual else value
    if physical is None:
        return []
    point = _point(image, physical, ("multiboot1", "multiboot2", "elf", "pvh"))
    if point is None:
        address = value if virtual else image.vaddr_of_paddr(value)
        if address is None:
            return []
        point = EntryPoint(address, physical, image.bits, "elf")
    if point.protocol == "elf":
        point = next((field.point for field in others if field.point.physical == physical), point)
    if point.width == 64 and others:
        return []
    return [EntryField("the entry point of the ELF header", _E_ENTRY, size, point, virtual)]


def stub_entries(image: Image) -> tuple[EntryPoint, ...]:
    """Entries that go through the stub, each physical address and protocol family once.

    ImageError when there is none, or one that the stub cannot stand in front of.
    """
    if any(entry.protocol == "xen" for entry in image.entries):
        raise ImageError(
            "the image has a Xen entry, which the patch does not cover yet",
            hint="native entries (multiboot, Linux, PVH) are supported",
        )
    fields = entry_fields(image)
    points = [field.point for field in fields] if fields else list(image.entries)
    order = {name: rank for rank, name in enumerate(_STUB_PROTOCOLS)}
    chosen: dict[tuple[int, bool], EntryPoint] = {}
    for point in sorted(points, key=lambda point: order.get(point.protocol, 99)):
        if point.protocol in _STUB_PROTOCOLS:
            chosen.setdefault(_key(point), point)
    entries = tuple(chosen.values())
    if image.kind != "flat" and any(entry.width == 64 for entry in entries):
        raise ImageError("the ELF entry point is 64-bit code", hint="multiboot and PVH enter in 32-bit code")
    if not entries:
        raise ImageError("the image has no entry that the patch could go through")
    if not any(image.executable_segments()):
        raise ImageError("no segment of the image is executable", hint="there is no code to patch")
    return entries


def uncovered_entry(image: Image) -> str:
    """What the closing block says of an ELF entry that the stub does not stand in front of; else empty."""
    fields = entry_fields(image)
    if image.kind == "flat" or any(field.offset == _E_ENTRY for field in fields):
        return ""
    return "the ELF entry point is 64-bit code and does not go through the entry stub; the boot protocols do"


def redirections(image: Image, resident: Resident, virtual_delta: int) -> list[FieldValue]:
    """What every field of the file must say to lead to the stub of its entry.

    ``virtual_delta`` is virtual - physical of the segment that holds the block.
    """
    stubs = {_key(point): stub for point, stub in resident.stub.starts}
    values: list[FieldValue] = []
    for field in entry_fields(image):
        value = (stubs[_key(field.point)] + virtual_delta * field.virtual) % (1 << 8 * field.size)
        why = f"{field.name} leads to the entry stub ({field.point.protocol})"
        values.append(FieldValue(field.offset, value.to_bytes(field.size, "little"), why))
    return values


def _key(point: EntryPoint) -> tuple[int, bool]:
    return point.physical, point.protocol == "pvh"
