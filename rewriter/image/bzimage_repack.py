"""Put a changed vmlinux back into a bzImage of the 6.x layout.

The decompressor around the payload is not relinked: it knows the payload's sizes from one adjacent u32 pair
{input_len, output_len}, so the new compressed payload must not be longer than the old one, and the
unpacked size must stay. Sources: arch/x86/boot/compressed/mkpiggy.c, misc.c; arch/x86/boot/tools/build.c.
"""

from __future__ import annotations

import struct
import zlib

from pvpatch.abi.errors import ImageError
from rewriter.image.bzimage import LENGTH_TRAILER, PAYLOAD_LENGTH_OFFSET
from rewriter.image.codecs import codec_named
from rewriter.image.model import Layer, StubFacts
from rewriter.image.pe import PE_CHECKSUM_OFFSET, certificate_entry_offset

__all__ = ["wrap"]

INIT_SIZE_OFFSET = 0x260
PAGE = 4096


def wrap(layer: Layer, payload: bytes) -> bytes:
    """The bzImage with a new payload of the same unpacked size; the Secure Boot signature is dropped.

    Raises ImageError when the sizes do not allow it.
    """
    stub = layer.stub
    if stub is None or len(stub.length_pair_offsets) != 1:
        raise ImageError(
            "this bzImage cannot be packed again: the place of its payload's length is not clear",
            hint="patch the vmlinux out of it instead",
        )
    stated = struct.unpack_from("<I", layer.raw, layer.end - LENGTH_TRAILER)[0]
    if len(payload) != stated:
        raise ImageError(
            f"the payload has {len(payload)} bytes, the decompressor expects {stated}",
            hint="patch the vmlinux out of the bzImage instead",
        )
    packed = codec_named(layer.codec).encode(payload)
    if layer.codec != "gzip":
        packed += struct.pack("<I", len(payload))
    room = layer.end - layer.start
    if len(packed) > room:
        raise ImageError(
            f"the changed kernel compresses to {len(packed)} bytes, and there is room for {room}",
            hint="patch the vmlinux out of the bzImage instead",
        )
    out = bytearray(layer.raw)
    out[layer.start : layer.end] = packed + bytes(room - len(packed))
    struct.pack_into("<I", out, PAYLOAD_LENGTH_OFFSET, len(packed))
    struct.pack_into("<II", out, stub.length_pair_offsets[0], len(packed), len(payload))
    # A shorter payload ends earlier in the buffer it is unpacked in: the output could overtake it.
    slack = (room - len(packed) + PAGE - 1) & -PAGE
    struct.pack_into("<I", out, INIT_SIZE_OFFSET, stub.header.init_size + slack)
    _drop_signature(out, stub)
    return bytes(out)


def _drop_signature(out: bytearray, stub: StubFacts) -> None:
    """Cut the signature off, clear what points at it, and write the build's CRC again."""
    offset, size = stub.certificate
    if size:
        del out[offset:]
    if stub.pe_offset:
        struct.pack_into("<I", out, stub.pe_offset + PE_CHECKSUM_OFFSET, 0)
        entry = certificate_entry_offset(out, stub.pe_offset)
        if entry:
            struct.pack_into("<II", out, entry, 0, 0)
    end = stub.header.syssize * 16 + stub.header.setup_size
    if 4 <= end <= len(out):
        struct.pack_into("<I", out, end - 4, zlib.crc32(bytes(out[: end - 4])) ^ 0xFFFFFFFF)
