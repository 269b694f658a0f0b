"""Multiboot 0.6.96: protected mode, EAX = 0x2BADB002, EBX = the information structure.

An ELF64 kernel is entered the same way, in 32-bit mode, as GRUB does. The image is already
placed (by its ELF headers or its address fields): only the information is built here.
"""

from __future__ import annotations

import struct

from runtime.boot.layout import CONVENTIONAL_END, MIB, Arena
from runtime.boot.model import BootImage, BootKind, BootRequest, EntryState
from runtime.boot.protocol import entry_of, flat32, text

__all__ = ["boot_modules", "load_multiboot1"]

_MAGIC = 0x2BADB002
_HAS_MEMORY, _HAS_CMDLINE, _HAS_MODULES, _HAS_MAP, _HAS_LOADER = 1, 1 << 2, 1 << 3, 1 << 6, 1 << 9
_LOADER = "pvpatch"
_PROGRAM = "kernel"
"""First word of the command line, the same for every file so that runs compare."""

_MAP_ENTRY = struct.Struct("<IQQI")
_SPARE_ENTRIES = 4
"""Zeroed room after the map: a patched image's entry stub may split an entry."""


def boot_modules(request: BootRequest) -> tuple[tuple[str, bytes], ...]:
    """The modules asked for; a ramdisk is a first module without a command line."""
    ramdisk = (("", request.initrd),) if request.initrd else ()
    return ramdisk + request.modules


def load_multiboot1(image: BootImage, request: BootRequest, arena: Arena) -> EntryState:
    """Place modules, command line and memory map, and enter in 32-bit mode."""
    entry = entry_of(image, BootKind.MULTIBOOT1)
    modules = []
    for line, data in boot_modules(request):
        start = arena.place_after_image(data)
        modules.append(struct.pack("<4I", start, start + len(data), text(line, arena), 0))
    entries = [_MAP_ENTRY.pack(20, part.base, part.length, part.type) for part in arena.map]
    memory_map = b"".join(entries)
    flags = _HAS_MEMORY | _HAS_CMDLINE | _HAS_MAP | _HAS_LOADER | (_HAS_MODULES if modules else 0)
    information = struct.pack(
        "<22I",
        flags,
        CONVENTIONAL_END >> 10,
        (arena.memory.size - MIB) >> 10,
        0,
        text(f"{_PROGRAM} {request.cmdline}".rstrip(), arena),
        len(modules),
        arena.place_low(b"".join(modules)) if modules else 0,
        *(0, 0, 0, 0),
        len(memory_map),
        arena.place_low(memory_map + bytes(_SPARE_ENTRIES * _MAP_ENTRY.size)),
        *(0, 0, 0),
        text(_LOADER, arena),
        *(0, 0, 0, 0, 0),
    )
    return flat32(entry, arena, rax=_MAGIC, rbx=arena.place_low(information))
