"""What a boot protocol is, and the processor states they share."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence

from pvpatch.abi.errors import ImageError, UsageError
from runtime.boot.layout import Arena
from runtime.boot.model import BootImage, BootKind, BootRequest, EntryState, FlatSegment

__all__ = ["BootProtocol", "entry_of", "flat32", "identity64", "refuse_modules", "text"]

BootProtocol = Callable[[BootImage, BootRequest, Arena], EntryState]
"""Writes the protocol's structures around a loaded image and says how to enter it."""

_CODE32, _DATA32, _CODE64 = 0x00C09B00, 0x00C09300, 0x00A09B00
_CODE_SELECTOR, _DATA_SELECTOR = 0x10, 0x18
_GDT_BASE_FLAGS = {_CODE32: 0x00CF9B000000FFFF, _DATA32: 0x00CF93000000FFFF, _CODE64: 0x00AF9B000000FFFF}

_CR0_PROTECTED = 0x11
_CR0_PAGED = 0x80000011
_CR4_PAE = 0x20
_PRESENT_WRITABLE = 0x03
_LARGE = 0x80
_GIB, _LARGE_PAGE = 1 << 30, 2 << 20
_IDENTITY_GIB = 4


def entry_of(image: BootImage, kind: BootKind) -> int:
    """The guest-physical entry point, which must be inside what was loaded."""
    entry = image.entries.get(kind)
    if entry is None:
        raise ImageError(f"the image has no entry point for the {kind.value} protocol")
    if not any(segment.paddr <= entry < segment.paddr + segment.memsz for segment in image.segments):
        raise ImageError(f"the {kind.value} entry point {entry:#x} is outside the loaded image")
    return entry


def refuse_modules(modules: Sequence[object], protocol: str) -> None:
    """Raise UsageError if modules were given to a protocol that only knows one ramdisk."""
    if modules:
        raise UsageError(f"the {protocol} protocol takes no modules", "use --initrd")


def text(value: str, arena: Arena, limit: int = 0xFFFF) -> int:
    """Place a NUL-terminated command line: its address."""
    data = value.encode("utf-8", "surrogateescape")
    if b"\0" in data or len(data) > limit:
        raise UsageError(f"the command line has a NUL or more than {limit} bytes")
    return arena.place_low(data + b"\0")


def flat32(rip: int, arena: Arena, **registers: int) -> EntryState:
    """32-bit protected mode, paging and interrupts off, flat segments, a GDT that holds them."""
    return EntryState(
        rip=rip,
        registers=registers,
        cr0=_CR0_PROTECTED,
        gdt=_gdt(arena, _CODE32),
        code=FlatSegment(_CODE_SELECTOR, attributes=_CODE32),
        data=FlatSegment(_DATA_SELECTOR, attributes=_DATA32),
    )


def identity64(rip: int, arena: Arena, **registers: int) -> EntryState:
    """64-bit mode, interrupts off, the first 4 GiB mapped to themselves with 2 MiB pages."""
    directories = b"".join(
        struct.pack("<Q", address | _PRESENT_WRITABLE | _LARGE)
        for address in range(0, _IDENTITY_GIB * _GIB, _LARGE_PAGE)
    )
    first = arena.place_low(directories, 4096)
    pointers = b"".join(
        struct.pack("<Q", first + 4096 * index | _PRESENT_WRITABLE) for index in range(_IDENTITY_GIB)
    )
    middle = arena.place_low(pointers.ljust(4096, b"\0"), 4096)
    top = arena.place_low(struct.pack("<Q", middle | _PRESENT_WRITABLE).ljust(4096, b"\0"), 4096)
    return EntryState(
        rip=rip,
        long_mode=True,
        registers=registers,
        cr0=_CR0_PAGED,
        cr3=top,
        cr4=_CR4_PAE,
        gdt=_gdt(arena, _CODE64),
        code=FlatSegment(_CODE_SELECTOR, attributes=_CODE64),
        data=FlatSegment(_DATA_SELECTOR, attributes=_DATA32),
    )


def _gdt(arena: Arena, code: int) -> tuple[int, int]:
    """A GDT in which the entry's selectors mean what their segment registers hold.

    They are GRUB's and Linux's. QEMU's loader has its code at 8, which GRUB leaves empty: that works too.
    """
    table = struct.pack("<4Q", 0, *(_GDT_BASE_FLAGS[kind] for kind in (code, code, _DATA32)))
    return arena.place_low(table), len(table) - 1
