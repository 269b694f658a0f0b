"""The manifest as the last bytes of a patched payload.

    offset 0   magic "PVMANIF1", u32 size of the compressed document, u32 size of the kept original
    16         the document (bzip2: its output has been the same for decades), the kept original
    end - 24   u64 size of the whole record, u32 version, u32 CRC-32 (ISO 3309) of all before,
               magic "PVMANEND"

The end is found first: an image format may put what it likes in front.
"""

from __future__ import annotations

import bz2
import struct
import zlib

from pvpatch.abi.errors import ImageError
from rewriter.manifest.document import Manifest

__all__ = ["find_record", "pack", "read_manifest"]

_HEAD = struct.Struct("<8sII")
_TAIL = struct.Struct("<QII8s")
_HEAD_MAGIC, _TAIL_MAGIC = b"PVMANIF1", b"PVMANEND"
_VERSION = 1
_LIMIT, _SMALL = 1 << 27, 1 << 20
_TIMES = 32
"""Bytes of a document: at most so many times the payload's (real ones have up to 6 times) and a small one's,
and never more than the limit. More is a damaged record."""
_DAMAGED = "the manifest of the patched image is damaged"


def pack(manifest: Manifest) -> bytes:
    """The record."""
    document = bz2.compress(manifest.to_json(), 9)
    body = (
        _HEAD.pack(_HEAD_MAGIC, len(document), len(manifest.kept_original))
        + document
        + manifest.kept_original
    )
    body += bytes(-len(body) % 8)
    size = len(body) + _TAIL.size
    start = _TAIL.pack(size, _VERSION, 0, _TAIL_MAGIC)[:12]
    return body + _TAIL.pack(size, _VERSION, zlib.crc32(body + start), _TAIL_MAGIC)


def find_record(payload: bytes) -> tuple[int, int] | None:
    """Offset and size of the record at the end of a payload; None when there is none.

    Zero bytes behind it (padding by a container) are passed over.
    """
    end = len(payload)
    while end and payload[end - 1] == 0:
        end -= 1
    if payload[max(end - 8, 0) : end] != _TAIL_MAGIC or end < _TAIL.size + _HEAD.size:
        return None
    size, _, _, _ = _TAIL.unpack_from(payload, end - _TAIL.size)
    if not _TAIL.size + _HEAD.size <= size <= end:
        raise ImageError(_DAMAGED, hint="its size is impossible")
    return end - size, size


def read_manifest(payload: bytes) -> Manifest:
    """The manifest of a patched payload.

    Raises ImageError when the payload was not patched, or its record is damaged.
    """
    found = find_record(payload)
    if found is None:
        raise ImageError("this image was not patched by pvpatch", hint="it carries no manifest")
    start, size = found
    record = payload[start : start + size]
    _, version, crc, _ = _TAIL.unpack_from(record, size - _TAIL.size)
    if zlib.crc32(record[: size - 12]) != crc:
        raise ImageError(_DAMAGED, hint="its checksum is wrong")
    if version != _VERSION:
        raise ImageError(f"the manifest has version {version}, this release knows {_VERSION}")
    magic, document_size, kept_size = _HEAD.unpack_from(record)
    if magic != _HEAD_MAGIC or _HEAD.size + document_size + kept_size + _TAIL.size > size:
        raise ImageError(_DAMAGED)
    document = record[_HEAD.size : _HEAD.size + document_size]
    kept = record[_HEAD.size + document_size : _HEAD.size + document_size + kept_size]
    return Manifest.from_json(_expand(document, min(_LIMIT, _SMALL + _TIMES * len(payload))), kept)


def _expand(document: bytes, limit: int) -> bytes:
    expander = bz2.BZ2Decompressor()
    try:
        text = expander.decompress(document, limit)
    except (OSError, ValueError) as error:
        raise ImageError(_DAMAGED) from error
    if not expander.eof:
        raise ImageError(_DAMAGED)
    return text
