"""Multiboot 1 and 2 headers. Sources: the Multiboot Specification 0.6.96 and 2.0."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Literal

from pvpatch.abi.errors import ImageError
from rewriter.image.model import LoadRange

__all__ = ["TAG_RELOCATABLE", "MultibootHeader", "MultibootTag", "find_multiboot", "load_range"]

MAGIC1, SEARCH1, ALIGN1 = 0x1BADB002, 8192, 4
MAGIC2, SEARCH2, ALIGN2 = 0xE85250D6, 32768, 8
WANTS_MEMORY, HAS_ADDRESSES = 1 << 1, 1 << 16
TAG_END, TAG_REQUEST, TAG_ADDRESS, TAG_ENTRY, TAG_ENTRY_EFI64 = 0, 1, 2, 3, 9
TAG_RELOCATABLE = 10
MEMORY_REQUESTS = frozenset({4, 6, 17})  # basic memory information, memory map, EFI memory map
ARCHITECTURE_I386 = 0
FROM_FILE_START = 0xFFFFFFFF  # load_addr of multiboot 2: the file is loaded from its first byte on
DAMAGED = "the file is damaged or truncated"


@dataclass(frozen=True)
class MultibootTag:
    """A tag of a multiboot 2 header; `offset` is its file offset, `size` in bytes without padding."""

    kind: int
    offset: int
    size: int


@dataclass(frozen=True)
class MultibootHeader:
    """What a multiboot header says; addresses are physical, None where the header has none.

    `load_end` 0 means: to the end of the file; `bss_end` 0 means: no zero-filled part.
    `size` counts the header's bytes at file offset `offset`; `tags` are those of multiboot 2.
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
    size: int = 12
    tags: tuple[MultibootTag, ...] = ()
    wants_memory: bool = False
    """Whether it asks the loader to say what memory there is."""

    def field(self, name: Literal["load_end", "bss_end", "entry"]) -> int:
        """File offset of an address field (u32) that the header has."""
        if self.protocol == "multiboot1":
            return self.offset + {"load_end": 20, "bss_end": 24, "entry": 28}[name]
        kind, inside = {"load_end": (TAG_ADDRESS, 16), "bss_end": (TAG_ADDRESS, 20), "entry": (TAG_ENTRY, 8)}[
            name
        ]
        return next(tag.offset for tag in reversed(self.tags) if tag.kind == kind) + inside


def find_multiboot(data: bytes) -> tuple[MultibootHeader, ...]:
    """The multiboot headers at the start of a file: at most one of each version."""
    return tuple(header for header in (_find1(data), _find2(data)) if header is not None)


def load_range(header: MultibootHeader, file_size: int) -> LoadRange | None:
    """What a loader that follows the header's addresses copies; None for a header without them.

    ImageError when they contradict the file. GRUB and QEMU follow them also where the file is ELF.
    """
    if header.load_addr is None or header.header_addr is None:
        return None
    start = header.offset - (header.header_addr - header.load_addr)
    size = (header.load_end - header.load_addr) if header.load_end else file_size - start
    memory = max(size, (header.bss_end - header.load_addr) if header.bss_end else 0)
    if not 0 <= start <= header.offset or size <= 0 or start + size > file_size:
        raise ImageError("the load addresses of the multiboot header contradict the file", hint=DAMAGED)
    if header.load_addr + memory > 1 << 32:
        raise ImageError("the multiboot header's addresses run over the end of memory", hint=DAMAGED)
    return LoadRange(start, size, header.load_addr, memory)


def _find1(data: bytes) -> MultibootHeader | None:
    limit = min(len(data), SEARCH1)
    needle = struct.pack("<I", MAGIC1)
    at = data.find(needle, 0, limit)
    while at >= 0:
        if at % ALIGN1 == 0 and at + 12 <= limit:
            _, flags, checksum = struct.unpack_from("<III", data, at)
            if (MAGIC1 + flags + checksum) & 0xFFFFFFFF == 0:
                wants = bool(flags & WANTS_MEMORY)
                if flags & HAS_ADDRESSES and at + 32 <= limit:
                    header, load, load_end, bss_end, entry = struct.unpack_from("<5I", data, at + 12)
                    return MultibootHeader(
                        "multiboot1",
                        at,
                        flags,
                        header,
                        load,
                        load_end,
                        bss_end,
                        entry,
                        size=32,
                        wants_memory=wants,
                    )
                return MultibootHeader("multiboot1", at, flags, wants_memory=wants)
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
                return _with_tags(data, at, length)
        at = data.find(needle, at + 1, limit)
    return None


def _with_tags(data: bytes, start: int, length: int) -> MultibootHeader:
    header_addr: int | None = None
    load_addr: int | None = None
    load_end = bss_end = 0
    entry: int | None = None
    entry_efi64: int | None = None
    tags = _tags(data, start, length)
    wants = False
    for tag in tags:
        if tag.kind == TAG_ADDRESS and tag.size >= 24:
            header_addr, load_addr, load_end, bss_end = struct.unpack_from("<4I", data, tag.offset + 8)
            if load_addr == FROM_FILE_START:
                load_addr = header_addr - start
        elif tag.kind == TAG_ENTRY and tag.size >= 12:
            entry = struct.unpack_from("<I", data, tag.offset + 8)[0]
        elif tag.kind == TAG_ENTRY_EFI64 and tag.size >= 12:
            entry_efi64 = struct.unpack_from("<I", data, tag.offset + 8)[0]
        elif tag.kind == TAG_REQUEST:
            count = (tag.size - 8) // 4
            asked = struct.unpack_from(f"<{count}I", data, tag.offset + 8)
            wants = wants or not MEMORY_REQUESTS.isdisjoint(asked)
    return MultibootHeader(
        "multiboot2",
        start,
        0,
        header_addr,
        load_addr,
        load_end,
        bss_end,
        entry,
        entry_efi64,
        size=length,
        tags=tags,
        wants_memory=wants,
    )


def _tags(data: bytes, start: int, length: int) -> tuple[MultibootTag, ...]:
    """The tags in front of the end tag."""
    found: list[MultibootTag] = []
    at, end = start + 16, start + length
    while at + 8 <= end:
        kind, _, size = struct.unpack_from("<HHI", data, at)
        if kind == TAG_END or size < 8 or at + size > end:
            break
        found.append(MultibootTag(kind, at, size))
        at += (size + 7) & ~7
    return tuple(found)
