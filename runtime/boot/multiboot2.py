"""Multiboot 2: protected mode, EAX = 0x36D76289, EBX = a list of tags. Source: its manual 2.0."""

from __future__ import annotations

import struct

from runtime.boot.firmware import RSDP_ADDRESS
from runtime.boot.layout import CONVENTIONAL_END, MIB, Arena
from runtime.boot.model import BootImage, BootKind, BootRequest, EntryState
from runtime.boot.multiboot1 import boot_modules
from runtime.boot.protocol import entry_of, flat32

__all__ = ["load_multiboot2"]

_MAGIC = 0x36D76289
_END, _CMDLINE, _LOADER, _MODULE, _MEMORY, _MAP, _ACPI_OLD, _ACPI_NEW = 0, 1, 2, 3, 4, 6, 14, 15
_RSDP_OLD, _RSDP_NEW = 20, 36


def load_multiboot2(image: BootImage, request: BootRequest, arena: Arena) -> EntryState:
    """Place modules and the tag list, and enter in 32-bit mode."""
    entry = entry_of(image, BootKind.MULTIBOOT2)
    tags = [
        _tag(_CMDLINE, _string(request.cmdline)),
        _tag(_LOADER, _string("pvpatch")),
        _tag(_MEMORY, struct.pack("<II", CONVENTIONAL_END >> 10, (arena.memory.size - MIB) >> 10)),
    ]
    for line, data in boot_modules(request):
        start = arena.place_after_image(data)
        tags.append(_tag(_MODULE, struct.pack("<II", start, start + len(data)) + _string(line)))
    parts = b"".join(struct.pack("<QQII", part.base, part.length, part.type, 0) for part in arena.map)
    root = arena.memory.load(RSDP_ADDRESS, _RSDP_NEW)
    tags += [_tag(_MAP, struct.pack("<II", 24, 0) + parts)]
    tags += [_tag(_ACPI_OLD, root[:_RSDP_OLD]), _tag(_ACPI_NEW, root), _tag(_END, b"")]
    body = b"".join(tags)
    information = arena.place_low(struct.pack("<II", 8 + len(body), 0) + body)
    return flat32(entry, arena, rax=_MAGIC, rbx=information)


def _string(value: str) -> bytes:
    return value.encode("utf-8", "surrogateescape") + b"\0"


def _tag(kind: int, body: bytes) -> bytes:
    """One tag, padded so that the next one is 8-byte aligned."""
    size = 8 + len(body)
    return struct.pack("<II", kind, size) + body + bytes(-size % 8)
