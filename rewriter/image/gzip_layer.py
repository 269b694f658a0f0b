"""Kernels wrapped in gzip (RFC 1952), as GRUB's modules and Xen are shipped."""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass

from pvpatch.abi.errors import ImageError
from rewriter.image.codecs import gunzip_member
from rewriter.image.model import Layer

__all__ = ["GzipRecipe", "matches", "recipe", "reproduce", "unwrap", "wrap"]

MAGIC = b"\x1f\x8b\x08"
LEVELS = (9, 6, 1, 2, 3, 4, 5, 7, 8)
MEMORY_LEVELS = (8, 9)
HEADER_SIZE = 10
CHUNK = 64 << 10


@dataclass(frozen=True)
class GzipRecipe:
    """How to make the original file again from its contents: header bytes and zlib settings."""

    header: bytes
    level: int
    memory_level: int


def matches(data: bytes) -> bool:
    """Whether this is a gzip file."""
    return data[:3] == MAGIC


def unwrap(data: bytes) -> tuple[Layer, bytes]:
    """The layer and what is inside; only one member, nothing behind it."""
    content, end = gunzip_member(data)
    if data[end:].strip(b"\0"):
        raise ImageError("something follows the gzip member of the image", hint="one member is supported")
    return Layer("gzip", "gzip", data, 0, end), content


def wrap(layer: Layer, payload: bytes) -> bytes:
    """A gzip file around a new payload: the original's header, fixed settings, always the same bytes."""
    header = layer.raw[: _header_end(layer.raw)]
    return reproduce(GzipRecipe(header, LEVELS[0], MEMORY_LEVELS[0]), payload)


def recipe(layer: Layer, payload: bytes) -> GzipRecipe | None:
    """The zlib settings that make exactly the original file from its payload; None when none does.

    None means that the original compressed bytes must be kept to restore the file. The deflate of gzip(1)
    ends its blocks elsewhere than zlib's does, so None is usual for files made by that program.
    """
    header = layer.raw[: _header_end(layer.raw)]
    wanted = layer.raw[len(header) :]
    for memory_level in MEMORY_LEVELS:
        for level in LEVELS:
            if _deflates_to(payload, level, memory_level, wanted):
                found = GzipRecipe(header, level, memory_level)
                return found if reproduce(found, payload) == layer.raw else None
    return None


def reproduce(found: GzipRecipe, payload: bytes) -> bytes:
    """The file that a recipe describes."""
    squeeze = _deflater(found.level, found.memory_level)
    body = squeeze.compress(payload) + squeeze.flush()
    return found.header + body + struct.pack("<II", zlib.crc32(payload), len(payload) & 0xFFFFFFFF)


def _deflater(level: int, memory_level: int) -> zlib._Compress:
    return zlib.compressobj(level, zlib.DEFLATED, -zlib.MAX_WBITS, memory_level)


def _deflates_to(payload: bytes, level: int, memory_level: int, wanted: bytes) -> bool:
    """Whether the settings give a prefix of `wanted`; stops at the first difference."""
    squeeze = _deflater(level, memory_level)
    at = 0
    for start in range(0, len(payload), CHUNK):
        piece = squeeze.compress(payload[start : start + CHUNK])
        if wanted[at : at + len(piece)] != piece:
            return False
        at += len(piece)
    piece = squeeze.flush()
    return wanted[at : at + len(piece)] == piece


def _header_end(data: bytes) -> int:
    """Offset of the deflate stream: behind the fixed header and its optional fields."""
    flags, at = data[3], HEADER_SIZE
    if flags & 4:
        at += 2 + struct.unpack_from("<H", data, at)[0]
    for bit in (8, 16):  # file name, comment
        if flags & bit:
            at = data.index(b"\0", at) + 1
    if flags & 2:
        at += 2
    return at
