"""Adding the resident block to an image without an inner file format.

Linux boot protocol (boot.rst): the file is padded with zeros up to load address + init_size,
so that the block, which follows, lies behind everything that the program uses; the size
fields of the setup header follow suit. Multiboot with address fields: the same, by
`rewriter.emit.boot_fields`.
"""

from __future__ import annotations

import struct

from pvpatch.abi.errors import SelfCheckError
from rewriter.emit.edits import Edits
from rewriter.emit.resident import Resident
from rewriter.image import Image
from rewriter.image.loading import load_ranges

__all__ = ["add_resident", "cover_file", "flat_reason"]

_SYSSIZE, _RELOCATABLE, _XLOADFLAGS, _INIT_SIZE, _HANDOVER = 0x1F4, 0x234, 0x236, 0x260, 0x264
_PAGE = 4096
_XLF_HANDOVER = 0x0C  # XLF_EFI_HANDOVER_32 and _64
_XLF_ABOVE_4G = 0x02


def flat_reason(image: Image) -> str:
    """Why a flat image cannot carry the block; empty when it can."""
    if not load_ranges(image):
        return "its load address is in no header that could be extended"
    return ""


def add_resident(image: Image, resident: Resident, edits: Edits) -> int:
    """Append the block at the file offset that its load address demands; returns the offset."""
    segment = image.segments[0]
    offset = segment.file_offset + resident.physical - segment.paddr
    if edits.end > offset:
        raise SelfCheckError("the file is longer than the memory it claims")
    edits.pad_to(offset, "zeros up to the end of the program's memory")
    for part in resident.parts:
        edits.pad_to(offset + part.offset, "padding inside the resident block")
        edits.append(part.data, part.name, resident.physical + part.offset)
    header = image.setup_header
    claimed = resident.size
    if header is not None and not header.init_size:
        claimed = resident.memory_size  # before 2.10 the file is all the memory that a loader sets aside
    edits.pad_to(offset + claimed + -claimed % 16, "padding behind the resident block")
    if image.setup_header is not None:
        _setup_header(image, resident, edits)
    return offset


def _setup_header(image: Image, resident: Resident, edits: Edits) -> None:
    header = image.setup_header
    assert header is not None
    segment = image.segments[0]
    paragraphs = (edits.end - header.setup_size) // 16
    edits.change(_SYSSIZE, struct.pack("<I", paragraphs), "header", "syssize counts the resident block")
    if header.init_size:
        memory = resident.physical + resident.memory_size - segment.paddr
        edits.change(_INIT_SIZE, struct.pack("<I", memory), "header", "init_size counts the resident block")
    if header.relocatable:
        edits.change(_RELOCATABLE, b"\0", "header", "not relocatable: the resident block has a fixed address")
    flags = header.xloadflags & ~(_XLF_HANDOVER | _XLF_ABOVE_4G)
    if header.version >= 0x20C:
        edits.change(
            _XLOADFLAGS,
            struct.pack("<H", flags),
            "header",
            "no EFI handover: UEFI gives no fixed address to the resident block",
        )
        edits.change(_HANDOVER, bytes(4), "header", "no EFI handover entry")
    if image.payload[:2] == b"MZ":
        edits.change(
            0, bytes(2), "header", "no EFI program: UEFI gives no fixed address to the resident block"
        )


def cover_file(image: Image, size: int, edits: Edits) -> None:
    """Let init_size cover a finished file of ``size`` bytes, the manifest included.

    GRUB and QEMU read the whole file into the memory that init_size asks for.
    """
    header = image.setup_header
    if image.kind != "flat" or header is None or not header.init_size:
        return
    (present,) = (change for change in edits.changes if change.offset == _INIT_SIZE)
    asked = int.from_bytes(bytes.fromhex(present.new), "little")
    needed = -(-(size - header.setup_size) // _PAGE) * _PAGE
    if needed > asked:
        edits.changes.remove(present)
        edits.change(_INIT_SIZE, struct.pack("<I", needed), present.kind, f"{present.why} and the manifest")
