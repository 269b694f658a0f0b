"""The payload codecs of Linux kernels, decoded with a cap on the output so that no input can fill the memory.

Sources: scripts/Makefile.lib and lib/decompress_*.c of the Linux kernel; RFC 1952; the lz4 frame
description (legacy frame); lzop's file format as the kernel's lib/decompress_unlzo.c reads it.
"""

from __future__ import annotations

import bz2
import lzma
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import lz4.block
import lz4.frame
import zstandard
from lzallright import LZOCompressor

from pvpatch.abi.errors import ImageError
from rewriter.image.source import MAX_UNPACKED

__all__ = ["CODECS", "Codec", "codec_named", "codec_of", "gunzip_member", "holds_gzip_kernel"]

CHUNK = 4 << 20
KERNEL_BYTES = 256 << 10  # the smallest Linux kernel is larger
MEMORY_LIMIT = 1 << 30  # bytes, of a decoder's own dictionary
DAMAGED = "the file is damaged or truncated"
LZ4_BLOCK = 8 << 20  # uncompressed size of a legacy block, fixed by the format
LZ4_MAGIC = b"\x02\x21\x4c\x18"
LZ4_FRAME_MAGIC = b"\x04\x22\x4d\x18"
LZO_MAGIC = b"\x89LZO\x00\r\n\x1a\n"
LZO_MAX_BLOCK = 1 << 20  # lzop writes 256 KiB blocks
ZSTD_WINDOW = 1 << 27  # what `zstd -22 --ultra` uses for kernels


class _Streaming(Protocol):
    """What bz2's and lzma's decoders have in common."""

    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    def decompress(self, data: bytes, max_length: int = -1) -> bytes: ...


@dataclass(frozen=True)
class Codec:
    """One codec: magic, decoder (trailing bytes are ignored), encoder with the kernel's settings."""

    name: str
    magic: bytes
    decode: Callable[[bytes], bytes]
    encode: Callable[[bytes], bytes]


def _too_large() -> ImageError:
    return ImageError(
        f"the compressed image unpacks to more than {MAX_UNPACKED >> 20} MiB", hint="no kernel does"
    )


def _damaged(codec: str, error: object = "the data ends early") -> ImageError:
    return ImageError(f"the {codec} data cannot be unpacked: {error}", hint=DAMAGED)


def gunzip_member(data: bytes) -> tuple[bytes, int]:
    """The contents of the first gzip member and the offset behind it."""
    engine = zlib.decompressobj(16 + zlib.MAX_WBITS)
    try:
        content = engine.decompress(data, MAX_UNPACKED + 1)
    except zlib.error as error:
        raise _damaged("gzip", error) from error
    if len(content) > MAX_UNPACKED:
        raise _too_large()
    if not engine.eof:
        raise _damaged("gzip")
    return content, len(data) - len(engine.unused_data)


def _stream(codec: str, engine: _Streaming, data: bytes) -> bytes:
    out = bytearray()
    pending = data
    try:
        while not engine.eof:
            piece = engine.decompress(pending, CHUNK)
            pending = b""
            out += piece
            if len(out) > MAX_UNPACKED:
                raise _too_large()
            if not piece and not engine.eof and engine.needs_input:
                raise _damaged(codec)
    except (OSError, RuntimeError, lzma.LZMAError, EOFError, ValueError, MemoryError) as error:
        raise _damaged(codec, error) from error
    return bytes(out)


def _unbzip2(data: bytes) -> bytes:
    return _stream("bzip2", bz2.BZ2Decompressor(), data)


def _unlzma(data: bytes) -> bytes:
    return _stream("lzma", lzma.LZMADecompressor(lzma.FORMAT_ALONE, memlimit=MEMORY_LIMIT), data)


def _unxz(data: bytes) -> bytes:
    return _stream("xz", lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=MEMORY_LIMIT), data)


def _unlz4(data: bytes) -> bytes:
    """A legacy frame: magic, then blocks of {u32 compressed size, data}; it ends where the data ends."""
    out = bytearray()
    at = len(LZ4_MAGIC)
    while at + 4 <= len(data):
        size = struct.unpack_from("<I", data, at)[0]
        at += 4
        if data[at - 4 : at] == LZ4_MAGIC:
            continue
        if size == 0:
            break
        if at + size > len(data):
            raise _damaged("lz4")
        try:
            out += lz4.block.decompress(data[at : at + size], uncompressed_size=LZ4_BLOCK)
        except (lz4.block.LZ4BlockError, ValueError, MemoryError) as error:
            raise _damaged("lz4", error) from error
        if len(out) > MAX_UNPACKED:
            raise _too_large()
        at += size
    return bytes(out)


def holds_gzip_kernel(data: bytes) -> bool:
    """Whether a gzip member large enough to be a kernel lies somewhere in the bytes."""
    at = data.find(CODECS[0].magic)
    while at >= 0:
        engine = zlib.decompressobj(16 + zlib.MAX_WBITS)
        try:
            if len(engine.decompress(data[at:], KERNEL_BYTES)) == KERNEL_BYTES:
                return True
        except zlib.error:
            pass  # the magic alone: these bytes are something else
        at = data.find(CODECS[0].magic, at + 1)
    return False


def _unlzo(data: bytes) -> bytes:
    """An lzop file; numbers are big endian."""
    try:
        at, flags = _lzo_header(data)
        out = bytearray()
        while True:
            size = struct.unpack_from(">I", data, at)[0]
            at += 4
            if size == 0:
                return bytes(out)
            stored = struct.unpack_from(">I", data, at)[0]
            at += 4
            if size > LZO_MAX_BLOCK or stored > size:
                raise _damaged("lzo", f"a block of {size} bytes")
            at += 4 * sum(bool(flags & bit) for bit in (0x001, 0x100))  # checksums of the contents
            if stored < size:
                at += 4 * sum(bool(flags & bit) for bit in (0x002, 0x200))  # and of the compressed bytes
            block = data[at : at + stored]
            if len(block) != stored:
                raise _damaged("lzo")
            out += block if stored == size else _lzo_block(block, size)
            if len(out) > MAX_UNPACKED:
                raise _too_large()
            at += stored
    except (struct.error, IndexError) as error:
        raise _damaged("lzo") from error


def _unlz4_frame(data: bytes) -> bytes:
    """A frame of the lz4 program: blocks of stated sizes, the end marked."""
    engine = lz4.frame.LZ4FrameDecompressor()
    return _stream("lz4", engine, data)


def _lzo_header(data: bytes) -> tuple[int, int]:
    """Offset of the first block and the flags."""
    at = len(LZO_MAGIC)
    version = struct.unpack_from(">H", data, at)[0]
    recent = version >= 0x940
    at += 4 + (2 if recent else 0)  # versions of the program, the library, and the one needed
    at += 1 + (1 if recent else 0)  # method, level
    flags = struct.unpack_from(">I", data, at)[0]
    at += 4 + (4 if flags & 0x800 else 0)  # flags, filter
    at += 4 + 4 + (4 if recent else 0)  # mode, time
    at += 1 + data[at]  # name
    return at + 4, flags  # header checksum


def _lzo_block(block: bytes, size: int) -> bytes:
    try:
        content = bytes(LZOCompressor().decompress(block, size))
    except Exception as error:  # the binding raises classes of its own, not all exported
        raise _damaged("lzo", error) from error
    if len(content) != size:
        raise _damaged("lzo", "a block has the wrong length")
    return content


def _unzstd(data: bytes) -> bytes:
    out = bytearray()
    try:
        with zstandard.ZstdDecompressor(max_window_size=ZSTD_WINDOW).stream_reader(data) as reader:
            while piece := reader.read(CHUNK):
                out += piece
                if len(out) > MAX_UNPACKED:
                    raise _too_large()
    except (zstandard.ZstdError, MemoryError) as error:
        raise _damaged("zstd", error) from error
    return bytes(out)


def _gzip(data: bytes) -> bytes:
    engine = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    body = engine.compress(data) + engine.flush()
    trailer = struct.pack("<II", zlib.crc32(data), len(data) & 0xFFFFFFFF)
    return b"\x1f\x8b\x08\0\0\0\0\0\x02\x03" + body + trailer


def _lzma(data: bytes) -> bytes:
    return lzma.compress(data, lzma.FORMAT_ALONE, preset=9 | lzma.PRESET_EXTREME)


def _xz(data: bytes) -> bytes:
    filters = [
        {"id": lzma.FILTER_X86},
        {"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "dict_size": 32 << 20},
    ]
    return lzma.compress(data, lzma.FORMAT_XZ, check=lzma.CHECK_CRC32, filters=filters)


def _lz4(data: bytes) -> bytes:
    out = bytearray(LZ4_MAGIC)
    for at in range(0, len(data), LZ4_BLOCK):
        block = lz4.block.compress(
            data[at : at + LZ4_BLOCK], mode="high_compression", compression=12, store_size=False
        )
        out += struct.pack("<I", len(block)) + block
    return bytes(out)


def _lzo(data: bytes) -> bytes:
    """An lzop file as `lzop -9` lays it out, without a name and without a time."""
    fields = struct.pack(">HHHBBIIIIB", 0x1030, 0x20A0, 0x0940, 3, 9, 0x0300_0001, 0o100644, 0, 0, 0)
    out = bytearray(LZO_MAGIC + fields + struct.pack(">I", zlib.adler32(fields)))
    engine = LZOCompressor()
    for at in range(0, len(data), 256 << 10):
        plain = data[at : at + (256 << 10)]
        packed = bytes(engine.compress(plain))
        block = packed if len(packed) < len(plain) else plain
        out += struct.pack(">III", len(plain), len(block), zlib.adler32(plain)) + block
    return bytes(out + bytes(4))


def _zstd(data: bytes) -> bytes:
    return zstandard.ZstdCompressor(level=22, write_checksum=True, write_content_size=False).compress(data)


CODECS: tuple[Codec, ...] = (
    Codec("gzip", b"\x1f\x8b", lambda data: gunzip_member(data)[0], _gzip),
    Codec("bzip2", b"BZh", _unbzip2, lambda data: bz2.compress(data, 9)),
    Codec("lzma", b"\x5d\x00\x00", _unlzma, _lzma),
    Codec("xz", b"\xfd7zXZ\x00", _unxz, _xz),
    Codec("lzo", LZO_MAGIC, _unlzo, _lzo),
    Codec("lz4", LZ4_MAGIC, _unlz4, _lz4),
    Codec("lz4 frame", LZ4_FRAME_MAGIC, _unlz4_frame, lz4.frame.compress),
    Codec("zstd", b"\x28\xb5\x2f\xfd", _unzstd, _zstd),
)


def codec_of(data: bytes) -> Codec | None:
    """The codec whose magic the data starts with."""
    return next((codec for codec in CODECS if data.startswith(codec.magic)), None)


def codec_named(name: str) -> Codec:
    """The codec of that name; KeyError for a name that no layer can have."""
    return {codec.name: codec for codec in CODECS}[name]
