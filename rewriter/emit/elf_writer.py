"""Adding the resident block to an ELF image: one more PT_LOAD, nothing else moves.

Hand-written, since a parser's rewrite would change bytes that have nothing to do with us.
The program header table grows in place when the bytes behind it are free, because boot
loaders look for it near the start of the file (GRUB's multiboot: in the first 8 KiB), else
it moves to the end. Source: System V ABI, chapters 4 and 5.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from pvpatch.abi.errors import ImageError
from rewriter.emit.edits import Edits
from rewriter.emit.resident import Resident
from rewriter.image import Image
from rewriter.image.loading import load_ranges

__all__ = ["add_resident"]

_PAGE = 4096
_PT_LOAD = 1
_RWX = 7
_SHT_PROGBITS, _SHT_NOBITS, _ALLOC_WRITE_EXEC = 1, 8, 7
_SECTION_NAME = b".pvpatch\0"


@dataclass(frozen=True)
class _Class:
    """Where an ELF class keeps what is needed, and how its tables look."""

    entry: tuple[int, str]
    phoff: tuple[int, str]
    shoff: tuple[int, str]
    counts: int  # e_phentsize, e_phnum, e_shentsize, e_shnum, e_shstrndx follow as u16
    program: struct.Struct
    section: struct.Struct


_CLASSES = {
    "elf32": _Class((24, "<I"), (28, "<I"), (32, "<I"), 42, struct.Struct("<8I"), struct.Struct("<10I")),
    "elf64": _Class(
        (24, "<Q"), (32, "<Q"), (40, "<Q"), 54, struct.Struct("<2I6Q"), struct.Struct("<2I4Q2I2Q")
    ),
}


def add_resident(image: Image, resident: Resident, virtual_delta: int, edits: Edits) -> int:
    """Append the block and describe it in the headers; returns its file offset.

    Where a boot header has the file loaded in one piece, the offset follows from the block's address.
    """
    payload = image.payload
    form = _CLASSES[image.kind]
    ranges = load_ranges(image)
    if ranges:
        place = ranges[0].file_offset + resident.physical - ranges[0].address
        edits.pad_to(place, "zeros up to the resident block, which one range loads with the image")
    else:
        edits.pad(_PAGE, "padding in front of the resident block")
    offset = edits.end
    virtual = (resident.physical + virtual_delta) % (1 << (32 if image.kind == "elf32" else 64))
    for part in resident.parts:
        edits.pad_to(offset + part.offset, "padding inside the resident block")
        edits.append(part.data, part.name, virtual + part.offset)
    edits.pad_to(offset + resident.size, "padding inside the resident block")
    header = _program_header(image, form, resident, offset, virtual)
    _grow_program_table(payload, form, header, edits)
    _add_section(payload, form, resident, offset, virtual, edits)
    return offset


def _program_header(image: Image, form: _Class, resident: Resident, offset: int, virtual: int) -> bytes:
    sizes = (resident.size, resident.memory_size)
    align = _PAGE if (offset - virtual) % _PAGE == 0 else 1
    if image.kind == "elf32":
        return form.program.pack(_PT_LOAD, offset, virtual, resident.physical, *sizes, _RWX, align)
    return form.program.pack(_PT_LOAD, _RWX, offset, virtual, resident.physical, *sizes, align)


def _grow_program_table(payload: bytes, form: _Class, header: bytes, edits: Edits) -> None:
    """Put the new entry among the PT_LOADs, which stand in rising order of their addresses."""
    phoff = struct.unpack_from(form.phoff[1], payload, form.phoff[0])[0]
    size, count = struct.unpack_from("<HH", payload, form.counts)
    if size != form.program.size or count == 0xFFFF:
        raise ImageError("its program header table has an unusual shape")
    rows = [payload[phoff + index * size : phoff + (index + 1) * size] for index in range(count)]
    loads = [index for index, row in enumerate(rows) if struct.unpack_from("<I", row)[0] == _PT_LOAD]
    place = next(
        (index for index in loads if _physical(form, rows[index]) > _physical(form, header)), loads[-1] + 1
    )
    rows.insert(place, header)
    table = b"".join(rows)
    edits.change(form.counts + 2, struct.pack("<H", count + 1), "header", "one program header more")
    if _free(payload, form, phoff + count * size, phoff + len(table)):
        edits.change(phoff, table, "header", "program headers with the resident block's segment")
    else:
        edits.pad(8, "padding in front of the program headers")
        edits.change(
            form.phoff[0],
            struct.pack(form.phoff[1], edits.end),
            "header",
            "the program headers moved to the end",
        )
        edits.append(table, "program headers", None)


def _physical(form: _Class, row: bytes) -> int:
    """p_paddr of a program header."""
    return int(form.program.unpack(row)[4 if form.program.size == 56 else 3])


def _free(payload: bytes, form: _Class, start: int, end: int) -> bool:
    """Whether file bytes belong to no segment and no section, and are zero."""
    if payload[start:end].strip(b"\0") or end > len(payload):
        return False
    return not any(first < end and start < last for first, last in _claimed(payload, form))


def _claimed(payload: bytes, form: _Class) -> list[tuple[int, int]]:
    """File ranges that the header tables claim."""
    phoff = struct.unpack_from(form.phoff[1], payload, form.phoff[0])[0]
    shoff = struct.unpack_from(form.shoff[1], payload, form.shoff[0])[0]
    psize, pcount, ssize, scount, _ = struct.unpack_from("<5H", payload, form.counts)
    wide = form.program.size == 56
    ranges = [(shoff, shoff + ssize * scount)]
    for index in range(pcount):
        row = form.program.unpack_from(payload, phoff + index * psize)
        offset, size = (row[2], row[5]) if wide else (row[1], row[4])
        ranges.append((offset, offset + size))
    for index in range(scount):
        row = form.section.unpack_from(payload, shoff + index * ssize)
        if row[1] not in (0, _SHT_NOBITS):
            ranges.append((row[4], row[4] + row[5]))
    return ranges


def _add_section(
    payload: bytes, form: _Class, resident: Resident, offset: int, virtual: int, edits: Edits
) -> None:
    """A section for the block, so that disassemblers and objcopy see it; none where the file has none."""
    shoff = struct.unpack_from(form.shoff[1], payload, form.shoff[0])[0]
    size, count, names_index = struct.unpack_from("<3H", payload, form.counts + 4)
    if not shoff or not count or size != form.section.size or names_index >= count or count + 1 >= 0xFF00:
        return
    rows = [payload[shoff + index * size : shoff + (index + 1) * size] for index in range(count)]
    names = list(form.section.unpack(rows[names_index]))
    strings = payload[names[4] : names[4] + names[5]] + _SECTION_NAME
    name_offset = names[5]
    edits.append(strings, "section names", None)
    names[4], names[5] = edits.end - len(strings), len(strings)
    rows[names_index] = form.section.pack(*names)
    rows.append(
        form.section.pack(
            name_offset, _SHT_PROGBITS, _ALLOC_WRITE_EXEC, virtual, offset, resident.size, 0, 0, _PAGE, 0
        )
    )
    edits.pad(8, "padding in front of the section headers")
    edits.change(
        form.shoff[0], struct.pack(form.shoff[1], edits.end), "header", "the section headers moved to the end"
    )
    edits.change(form.counts + 6, struct.pack("<H", count + 1), "header", "one section more")
    edits.append(b"".join(rows), "section headers", None)
