"""EFI programs that carry a kernel: unified kernel images, and EFI zboot images.

A unified kernel image is a PE program (systemd-stub) with the kernel in its section .linux (UAPI group,
"Unified Kernel Image"). A zboot image starts with a header that names payload and codec
(drivers/firmware/efi/libstub/zboot-header.S of Linux). Both are read only.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from pvpatch.abi.errors import ImageError
from rewriter.image.codecs import codec_of
from rewriter.image.model import Layer

__all__ = ["matches_uki", "matches_zboot", "unwrap_uki", "unwrap_zboot"]

_PE_POINTER, _PE_MAGIC = 0x3C, b"PE\0\0"
_SECTION = struct.Struct("<8sIIII")  # name, memory size, address, file size, file offset
_SECTION_SIZE, _FILE_HEADER = 40, 24
_MAX_SECTIONS = 96  # the PE loader's own limit
_KERNEL_SECTION = b".linux\0\0"
_ZBOOT = struct.Struct("<2s2x4sII8x32s")  # MZ, zimg, payload's offset and size, codec's name
_ZBOOT_MAGIC = (b"MZ", b"zimg")
DAMAGED = "the file is damaged or truncated"


def matches_uki(data: bytes) -> bool:
    """Whether this is a PE program with a section .linux."""
    return any(name == _KERNEL_SECTION for name, _, _ in _sections(data))


def unwrap_uki(data: bytes) -> tuple[Layer, bytes]:
    """The layer and the kernel in it; ImageError when it is cut off."""
    offset, size = next((start, size) for name, start, size in _sections(data) if name == _KERNEL_SECTION)
    if not size or offset + size > len(data):
        raise ImageError(
            f"section .linux ends at file offset {offset + size:#x}, the file at {len(data):#x}",
            hint=DAMAGED,
        )
    return Layer("uki", "", data, offset, offset + size), data[offset : offset + size]


def _sections(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Name, file offset and bytes of each section of a PE program; none for other files."""
    if data[:2] != b"MZ" or len(data) < _PE_POINTER + 4:
        return
    (start,) = struct.unpack_from("<I", data, _PE_POINTER)
    if data[start : start + 4] != _PE_MAGIC or start + _FILE_HEADER > len(data):
        return
    count, optional = struct.unpack_from("<2xH12xH", data, start + 4)
    table = start + _FILE_HEADER + optional
    for index in range(min(count, _MAX_SECTIONS)):
        at = table + index * _SECTION_SIZE
        if at + _SECTION_SIZE > len(data):
            return
        name, memory, _, stored, offset = _SECTION.unpack_from(data, at)
        yield name, offset, min(memory or stored, stored)


def matches_zboot(data: bytes) -> bool:
    """Whether this starts with an EFI zboot header."""
    return len(data) >= _ZBOOT.size and _ZBOOT.unpack_from(data)[:2] == _ZBOOT_MAGIC


def unwrap_zboot(data: bytes) -> tuple[Layer, bytes]:
    """The layer and the unpacked payload; ImageError when it is cut off or of an unknown codec."""
    _, _, offset, size, name = _ZBOOT.unpack_from(data)
    packed = data[offset : offset + size]
    if not size or len(packed) < size:
        raise ImageError(
            f"the payload of the EFI zboot image ends at file offset {offset + size:#x}, the file at "
            f"{len(data):#x}",
            hint=DAMAGED,
        )
    codec = codec_of(packed)
    if codec is None:
        stated = name.split(b"\0")[0].decode("latin-1")
        raise ImageError(f"the payload of the EFI zboot image is of no known codec; it states {stated!r}")
    return Layer("zboot", codec.name, data, offset, offset + size), codec.decode(packed)
