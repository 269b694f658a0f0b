"""The notes of an ELF file, with the alignment that their segment or section states.

Names and descriptions are padded to 4 bytes, or to 8 where p_align or sh_addralign is 8 (gABI, "Note
Section"; binutils writes .note.gnu.property so). A linker may merge both kinds into one segment of
alignment 8, so the reading that uses up the bytes wins.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable

from rewriter.image.model import Note

__all__ = ["NoteArea", "read_notes"]

NoteArea = tuple[int, int, int]
"""File offset, bytes and alignment of a PT_NOTE segment or an SHT_NOTE section."""

_HEAD = struct.Struct("<III")
MAX_NOTES = 4096  # per area; kernels have a dozen


def read_notes(data: bytes, areas: Iterable[NoteArea]) -> tuple[Note, ...]:
    """Every note of the areas, each once, in the order of the file."""
    found: dict[int, Note] = {}
    for offset, size, alignment in areas:
        for note in _read_area(data, offset, min(offset + size, len(data)), alignment):
            found.setdefault(note.offset, note)
    return tuple(found[at] for at in sorted(found))


def _read_area(data: bytes, start: int, end: int, alignment: int) -> list[Note]:
    best: list[Note] = []
    for step in (8, 4) if alignment == 8 else (4,):
        notes, stop = _walk(data, start, end, step)
        if not data[stop:end].strip(b"\0"):
            return notes
        best = max(best, notes, key=len)
    return best


def _walk(data: bytes, start: int, end: int, step: int) -> tuple[list[Note], int]:
    """The notes that begin in [start, end), and where the last one ends.

    A description that states more bytes than are left (GRUB's Xen images) is cut there.
    """
    notes: list[Note] = []
    at = start
    while at + _HEAD.size <= end and len(notes) < MAX_NOTES:
        name_size, size, kind = _HEAD.unpack_from(data, at)
        description = start + _up(at - start + _HEAD.size + name_size, step)
        if (not name_size and not size and not kind) or description > end:
            break
        name = data[at + _HEAD.size : at + _HEAD.size + name_size].split(b"\0")[0]
        content = data[description : min(description + size, end)]
        notes.append(Note(name.decode("latin-1"), kind, content, offset=description))
        at = start + _up(description - start + size, step)
    return notes, min(at, end)


def _up(value: int, step: int) -> int:
    return -(-value // step) * step
