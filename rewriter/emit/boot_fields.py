"""The fields of multiboot headers, which boot loaders follow before any table of the file.

With address fields (flag 16 of multiboot 1, address tag of multiboot 2) GRUB and QEMU copy one range of the
file and zero what follows up to bss_end, ELF or not; the range grows over the resident block. Tags that would
enter the image past the stub, through UEFI, are taken out.
Sources: Multiboot Specification 0.6.96 section 3.1.3, 2.0 sections 3.1.5 to 3.1.12.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

from rewriter.emit.edits import Edits
from rewriter.emit.resident import Resident
from rewriter.image import Image
from rewriter.image.loading import load_ranges
from rewriter.image.multiboot import MultibootHeader, find_multiboot

__all__ = ["FieldValue", "extended_ranges", "range_reason", "write_fields", "zeroed_range"]

_EFI_BOOT_SERVICES, _ENTRY_EFI32, _ENTRY_EFI64 = 7, 8, 9
_DROPPED = {
    _EFI_BOOT_SERVICES: "EFI boot services",
    _ENTRY_EFI32: "the EFI i386 entry",
    _ENTRY_EFI64: "the EFI amd64 entry",
}
_HEAD = struct.Struct("<4I")  # magic, architecture, length, checksum
_END_TAG = struct.pack("<HHI", 0, 0, 8)


@dataclass(frozen=True)
class FieldValue:
    """New bytes of a header field at a file offset, and why."""

    offset: int
    data: bytes
    why: str


def range_reason(image: Image) -> str:
    """Why the ranges of address fields cannot grow over a block; empty when they can, or there are none.

    The block has one place in the file, so all ranges must put it at the same address; and where the file is
    ELF too, both must put bytes at the same addresses, or it is not known which of them the kernel means.
    """
    ranges = load_ranges(image)
    if len({item.address - item.file_offset for item in ranges}) > 1:
        return "its boot headers load the same bytes at different addresses"
    for segment in image.segments:
        for item in ranges:
            inside = segment.paddr - item.address
            same = inside == segment.file_offset - item.file_offset or not segment.file_size
            if not 0 <= inside <= item.mem_size or not same:
                return f"the address fields of its multiboot header do not load {segment.name} as ELF does"
    return ""


def zeroed_range(image: Image) -> tuple[int, int]:
    """Physical start and size of the zero-filled part of an address-field image, (0, 0) where none matters.

    When the range grows over the block, a loader copies what the file holds there instead (symbols, section
    headers): then the entry stub clears it.
    """
    for item in load_ranges(image):
        held = image.payload[item.file_offset + item.file_size : item.file_offset + item.mem_size]
        if held.strip(b"\0"):
            return item.address + item.file_size, item.mem_size - item.file_size
    return 0, 0


def extended_ranges(image: Image, resident: Resident) -> list[FieldValue]:
    """Address fields whose range reaches over the block: load_end behind its bytes, bss_end its memory."""
    values: list[FieldValue] = []
    for header in find_multiboot(image.payload):
        if header.load_addr is None:
            continue
        load_end, bss_end = resident.physical + resident.size, resident.physical + resident.memory_size
        values += [
            FieldValue(
                header.field("load_end"), struct.pack("<I", load_end), "load_end_addr is behind the block"
            ),
            FieldValue(
                header.field("bss_end"),
                struct.pack("<I", bss_end),
                "bss_end_addr is behind the block's stack",
            ),
        ]
    return values


def write_fields(image: Image, values: Sequence[FieldValue], edits: Edits) -> None:
    """Change the fields; a multiboot 2 header that loses tags is written anew as a whole."""
    rest = list(values)
    for header in find_multiboot(image.payload):
        dropped = [tag for tag in header.tags if tag.kind in _DROPPED]
        if not dropped:
            continue
        end = header.offset + header.size
        inside = [value for value in rest if header.offset <= value.offset < end]
        rest = [value for value in rest if value not in inside]
        names = ", ".join(_DROPPED[tag.kind] for tag in dropped)
        why = f"multiboot 2 header without {names}: UEFI enters past the entry stub"
        for value in inside:
            why += f"; {value.why}"
        edits.change(header.offset, _without_tags(image.payload, header, inside), "header", why)
    for value in rest:
        edits.change(value.offset, value.data, "header", value.why)


def _without_tags(payload: bytes, header: MultibootHeader, values: Sequence[FieldValue]) -> bytes:
    """The header with its fields changed and the tags gone, in as many bytes as before."""
    data = bytearray(payload[header.offset : header.offset + header.size])
    for value in values:
        data[value.offset - header.offset : value.offset - header.offset + len(value.data)] = value.data
    tags = b""
    for tag in header.tags:
        if tag.kind not in _DROPPED:
            start = tag.offset - header.offset
            tags += bytes(data[start : start + tag.size]) + bytes(-tag.size % 8)
    tags += _END_TAG
    magic, architecture, _, _ = _HEAD.unpack_from(data)
    length = _HEAD.size + len(tags)
    checksum = -(magic + architecture + length) & 0xFFFFFFFF
    return (_HEAD.pack(magic, architecture, length, checksum) + tags).ljust(header.size, b"\0")
