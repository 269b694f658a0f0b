"""Multiboot 1 and 2 headers. Sources: the Multiboot Specification 0.6.96 and 2.0."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Literal

__all__ = ["MultibootHeader", "find_multiboot"]

MAGIC1, SEARCH1, ALIGN1 = 0x1BADB002, 8192, 4
MAGIC2, SEARCH2, ALIGN2 = 0xE85250D6, 32768, 8
HAS_ADDRESSES = 1 << 16
TAG_END, TAG_ADDRESS, TAG_ENTRY, TAG_ENTRY_EFI64 = 0, 2, 3, 9
ARCHITECTURE_I386 = 0


@dataclass(frozen=True)
class MultibootHeader:
    """What a multiboot header says; addresses are physical, None where the header has none.

    `load_end` 0 means: to the end of the file; `bss_end` 0 means: no zero-filled part.
    """

    protocol: Literal["multiboot1", "multiboot2"]
    offset: int
    flags: int
    header_addr: int | None = None
    load_addr: int | None = None
    load_end: int = 0
    bss_end: int = 0
    entry: int | None = None
    entry_efi64: int | None = None


def find_multiboot(data: bytes) -> tuple[MultibootHeader, ...]:
    """The multiboot headers at the start of a file: at most one of each version."""
    return tuple(header for header in (_find1(data), _find2(data)) if header is not None)


def _find1(data: bytes) -> MultibootHeader | None:
    limit = min(len(data), SEARCH1)
    needle = struct.pack("<I", MAGIC1)
    at = data.find(needle, 0, limit)
    while at >= 0:
        if at % ALIGN1 == 0 and at + 12 <= limit:
            _, flags, checksum = struct.unpack_from("<III", data, at)
            if (MAGIC1 + flags + checksum) & 0xFFFFFFFF == 0:
                if flags & HAS_ADDRESSES and at + 32 <= limit:
                    return MultibootHeader("multiboot1", at, flags, *struct.unpack_from("<5I", data, at + 12))
                return MultibootHeader("multiboot1", at, flags)
        at = data.find(needle, at + 1, limit)
    return None


def _find2(data: bytes) -> MultibootHeader | None:
    limit = min(len(data), SEARCH2)
    needle = struct.pack("<I", MAGIC2)
    at = data.find(needle, 0, limit)
    while at >= 0:
        if at % ALIGN2 == 0 and at + 16 <= limit:
            magic, architecture, length, checksum = struct.unpack_from("<4I", data, at)
            whole = (magic + architecture + length + checksum) & 0xFFFFFFFF == 0
            if whole and architecture == ARCHITECTURE_I386 and 16 <= length <= limit - at:
                return _tags2(data, at, length)
        at = data.find(needle, at + 1, limit)
    return None


def _tags2(data: bytes, start: int, length: int) -> MultibootHeader:
    addresses: tuple[int | None, int | None, int, int] = (None, None, 0, 0)
    entry: int | None = None
    entry_efi64: int | None = None
    at, end = start + 16, start + length
    while at + 8 <= end:
        kind, _, size = struct.unpack_from("<HHI", data, at)
        if kind == TAG_END or size < 8 or at + size > end:
            break
        if kind == TAG_ADDRESS and size >= 24:
            addresses = struct.unpack_from("<4I", data, at + 8)
        elif kind == TAG_ENTRY and size >= 12:
            entry = struct.unpack_from("<I", data, at + 8)[0]
        elif kind == TAG_ENTRY_EFI64 and size >= 12:
            entry_efi64 = struct.unpack_from("<I", data, at + 8)[0]
        at += (size + 7) & ~7
    return MultibootHeader("multiboot2", start, 0, *addresses, entry=entry, entry_efi64=entry_efi64)
