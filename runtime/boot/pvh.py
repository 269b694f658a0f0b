"""PVH: flat 32-bit mode, EBX = hvm_start_info. Source: Xen's public/arch-x86/hvm/start_info.h."""

from __future__ import annotations

import struct

from runtime.boot.firmware import RSDP_ADDRESS
from runtime.boot.layout import Arena
from runtime.boot.model import BootImage, BootKind, BootRequest, EntryState
from runtime.boot.multiboot1 import boot_modules
from runtime.boot.protocol import entry_of, flat32, text

__all__ = ["load_pvh"]

_MAGIC = 0x336EC578
_VERSION = 1


def load_pvh(image: BootImage, request: BootRequest, arena: Arena) -> EntryState:
    """Place modules, memory map and start information; the ramdisk is the first module."""
    entry = entry_of(image, BootKind.PVH)
    modules = []
    for line, data in boot_modules(request):
        start = arena.place_high(data, arena.memory.size)
        modules.append(struct.pack("<4Q", start, len(data), text(line, arena) if line else 0, 0))
    memory_map = b"".join(struct.pack("<QQII", part.base, part.length, part.type, 0) for part in arena.map)
    start_info = struct.pack(
        "<4I4Q2I",
        _MAGIC,
        _VERSION,
        0,
        len(modules),
        arena.place_low(b"".join(modules)) if modules else 0,
        text(request.cmdline, arena),
        RSDP_ADDRESS,
        arena.place_low(memory_map),
        len(arena.map),
        0,
    )
    return flat32(entry, arena, rbx=arena.place_low(start_info))
