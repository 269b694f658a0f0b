"""Function bounds from .eh_frame (Itanium C++ ABI / LSB exception frames, DWARF CFI encoding)."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from rewriter.image import Image

__all__ = ["Frame", "function_frames"]

MAX_FRAMES = 1_000_000
_PC_RELATIVE = 0x10
_FORMATS = {0x02: "<H", 0x03: "<I", 0x04: "<Q", 0x0A: "<h", 0x0B: "<i", 0x0C: "<q"}


@dataclass(frozen=True, slots=True)
class Frame:
    """One function as the unwinder sees it: first address and size in bytes."""

    start: int
    size: int


def function_frames(image: Image) -> tuple[Frame, ...]:
    """Every function that the image's .eh_frame describes, by address; damaged records end the list."""
    table = image.table(".eh_frame")
    if table is None:
        return ()
    data = image.data_of(table)
    encodings: dict[int, int] = {}
    frames: list[Frame] = []
    position = 0
    while position + 8 <= len(data) and len(frames) < MAX_FRAMES:
        (length,) = struct.unpack_from("<I", data, position)
        if length in (0, 0xFFFF_FFFF) or length < 4 or position + 4 + length > len(data):
            if length == 0:  # a terminator of one input file: more may follow
                position += 4
                continue
            break
        body = position + 4
        (pointer,) = struct.unpack_from("<I", data, body)
        if pointer == 0:
            encodings[position] = _pointer_encoding(data[body + 4 : position + 4 + length])
        else:
            encoding = encodings.get(body - pointer)
            if encoding is not None:
                frame = _frame(data, body + 4, position + 4 + length, table.address, encoding, image.bits)
                if frame is not None:
                    frames.append(frame)
        position += 4 + length
    return tuple(sorted(frames, key=lambda frame: (frame.start, frame.size)))


def _leb_end(data: bytes, at: int) -> int:
    while at < len(data) and data[at] & 0x80:
        at += 1
    return at + 1


def _pointer_encoding(cie: bytes) -> int:
    """The 'R' entry of a CIE's augmentation: how its FDEs write addresses (0: native absolute)."""
    end = cie.find(b"\0", 1)
    if end < 0:
        return 0
    augmentation = cie[1:end]
    at = _leb_end(cie, _leb_end(cie, end + 1))  # code and data alignment
    at = at + 1 if cie[:1] == b"\x01" else _leb_end(cie, at)  # return address register
    if not augmentation.startswith(b"z"):
        return 0
    at = _leb_end(cie, at)
    for letter in augmentation[1:]:
        if at >= len(cie):
            return 0
        if letter == ord("R"):
            return cie[at]
        if letter == ord("L"):
            at += 1
        elif letter == ord("P"):
            return 0  # a personality routine: no kernel has one
    return 0


def _frame(data: bytes, at: int, end: int, base: int, encoding: int, bits: int) -> Frame | None:
    kind = encoding & 0x0F
    form = _FORMATS.get(kind) if kind else ("<Q" if bits == 64 else "<I")
    if form is None or encoding & 0x60:
        return None
    size = struct.calcsize(form)
    if at + 2 * size > end:
        return None
    (start,) = struct.unpack_from(form, data, at)
    (count,) = struct.unpack_from(form.upper().replace("<H", "<H"), data, at + size)
    if encoding & _PC_RELATIVE:
        start += base + at
    start &= (1 << bits) - 1
    return Frame(start, count) if count else None
