"""Kernels compressed as a whole by anything but gzip, as `xz vmlinux` or a boot loader's tools make them.

Reading only: a changed kernel is not put back. Gzip has a layer of its own (`gzip_layer`).
"""

from __future__ import annotations

import struct

from rewriter.image.codecs import codec_of
from rewriter.image.model import Layer

__all__ = ["matches", "unwrap"]

_BZIP2_BLOCK = bytes.fromhex("314159265359")  # the first block's magic, behind "BZh" and a level
_UNKNOWN_SIZE = (1 << 64) - 1
_LZMA_PROPERTIES, _LZMA_LARGEST = 0x5D, 1 << 32


def matches(data: bytes) -> bool:
    """Whether the file starts as one of the codecs; the short magics are looked at more closely."""
    codec = codec_of(data)
    if codec is None or codec.name == "gzip":
        return False
    if codec.name == "bzip2":
        return data[4:10] == _BZIP2_BLOCK
    if codec.name == "lzma":
        return _is_lzma(data)
    return True


def _is_lzma(data: bytes) -> bool:
    """The 13-byte header of `lzma` and `xz --format=lzma`: properties, dictionary size, unpacked size."""
    if len(data) < 13:
        return False
    properties, dictionary, size = struct.unpack_from("<BIQ", data)
    power = dictionary & (dictionary - 1) == 0 and dictionary > 0
    return bool(properties == _LZMA_PROPERTIES and power and (size == _UNKNOWN_SIZE or size < _LZMA_LARGEST))


def unwrap(data: bytes) -> tuple[Layer, bytes]:
    """The layer and what is inside; ImageError when it cannot be unpacked or is too large."""
    codec = codec_of(data)
    assert codec is not None
    return Layer("compressed", codec.name, data, 0, len(data)), codec.decode(data)
