"""bzImage: a decompressor with a compressed vmlinux in it.

Source: Documentation/arch/x86/boot.rst (payload_offset, payload_length), arch/x86/boot/compressed/Makefile
(the last four bytes of the payload are the uncompressed size).
"""

from __future__ import annotations

import struct

from pvpatch.abi.errors import ImageError
from rewriter.image.codecs import CODECS, codec_of
from rewriter.image.linux_header import has_setup_header, linux_entries, parse_setup_header
from rewriter.image.model import EntryPoint, Layer, SetupHeader, StubFacts
from rewriter.image.pe import PeFacts, pe_facts

__all__ = ["LENGTH_TRAILER", "matches", "unwrap"]

PAYLOAD_LENGTH_OFFSET = 0x24C
LENGTH_TRAILER = 4
DAMAGED = "the file is damaged or truncated"


def matches(data: bytes) -> bool:
    """Whether this is a Linux boot image that says it holds a payload."""
    if not has_setup_header(data) or len(data) < PAYLOAD_LENGTH_OFFSET + 4:
        return False
    version, length = (
        struct.unpack_from("<H", data, 0x206)[0],
        data[PAYLOAD_LENGTH_OFFSET : PAYLOAD_LENGTH_OFFSET + 4],
    )
    return bool(version >= 0x208 and any(length))


def unwrap(data: bytes) -> tuple[Layer, bytes]:
    """The layer (with the facts of the decompressor around the payload) and the uncompressed payload."""
    header = parse_setup_header(data)
    start = header.setup_size + header.payload_offset
    end = start + header.payload_length
    if end > len(data) or header.payload_length <= LENGTH_TRAILER:
        raise ImageError(
            f"the kernel's payload ends at file offset {end:#x}, the file at {len(data):#x}", hint=DAMAGED
        )
    codec = codec_of(data[start : start + 16])
    if codec is None:
        raise ImageError(
            f"the kernel's payload starts with {data[start : start + 6].hex(' ')}, which no known codec does",
            hint=f"known are {', '.join(codec.name for codec in CODECS)}",
        )
    # gzip's own trailer ends with the size; the other codecs have it appended.
    packed = data[start : end - (0 if codec.name == "gzip" else LENGTH_TRAILER)]
    payload = codec.decode(packed)
    stated = struct.unpack_from("<I", data, end - LENGTH_TRAILER)[0]
    if len(payload) != stated:
        raise ImageError(f"the payload unpacks to {len(payload)} bytes, but states {stated}", hint=DAMAGED)
    facts = pe_facts(data)
    stub = StubFacts(
        header=header,
        entries=linux_entries(header, header.code32_start) + _efi_entries(facts, header),
        length_pair_offsets=_length_pairs(data, header, (start, end), stated),
        certificate=facts.certificate if facts is not None else (0, 0),
        pe_offset=facts.pe_offset if facts is not None else 0,
    )
    return Layer("bzimage", codec.name, data, start, end, stub), payload


def _efi_entries(facts: PeFacts | None, header: SetupHeader) -> tuple[EntryPoint, ...]:
    if facts is None or facts.entry_offset < header.setup_size:
        return ()
    address = header.code32_start + facts.entry_offset - header.setup_size
    return (EntryPoint(address, address, facts.width, "efi"),)


def _length_pairs(data: bytes, header: SetupHeader, payload: tuple[int, int], size: int) -> tuple[int, ...]:
    """File offsets, outside the payload, of the adjacent u32 pair {input_len, output_len} of 6.x stubs."""
    needle = struct.pack("<II", header.payload_length, size)
    found = []
    at = data.find(needle)
    while at >= 0:
        if not payload[0] <= at < payload[1]:
            found.append(at)
        at = data.find(needle, at + 1)
    return tuple(found)
