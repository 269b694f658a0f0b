"""Kernels wrapped in gzip (RFC 1952), as GRUB's modules and Xen are shipped."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

from pvpatch.abi.errors import ImageError
from rewriter.image.codecs import gunzip_member
from rewriter.image.model import Layer

__all__ = ["GzipRecipe", "matches", "recipe", "reproduce", "unwrap", "wrap"]

MAGIC = b"\x1f\x8b\x08"
LEVELS = (9, 6, 1, 2, 3, 4, 5, 7, 8)
MEMORY_LEVELS = (8, 9)
HEADER_SIZE = 10


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
    """A gzip file around a new payload: the original's header, level 9, so the same bytes every time."""
    header = layer.raw[: _header_end(layer.raw)]
    return _member(GzipRecipe(header, 9, 8), payload)


def recipe(layer: Layer, payload: bytes) -> GzipRecipe | None:
    """The zlib settings that make exactly the original file from its payload; None when none does.

    None means that the original compressed bytes must be kept to restore the file. GNU gzip's own deflate
    differs from zlib's, so None is usual for files made by gzip(1).
    """
    header = layer.raw[: _header_end(layer.raw)]
    return next((item for item in _recipes(header) if _member(item, payload) == layer.raw), None)


def reproduce(found: GzipRecipe, payload: bytes) -> bytes:
    """The file that a recipe describes."""
    return _member(found, payload)


def _recipes(header: bytes) -> Iterator[GzipRecipe]:
    for memory_level in MEMORY_LEVELS:
        for level in LEVELS:
            yield GzipRecipe(header, level, memory_level)


def _member(settings: GzipRecipe, payload: bytes) -> bytes:
    squeeze = zlib.compressobj(settings.level, zlib.DEFLATED, -zlib.MAX_WBITS, settings.memory_level)
    body = squeeze.compress(payload) + squeeze.flush()
    return settings.header + body + struct.pack("<II", zlib.crc32(payload), len(payload) & 0xFFFFFFFF)


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
