"""How lguest's launcher starts a guest of its own: boot parameters at guest-physical 0, ESI = 0.

Follows tools/lguest/lguest.c of Linux 3.x: the e820 map has one RAM entry, the command line lies
behind the parameters, `hdr.hardware_subarch` is 1, protocol 2.07 with KEEP_SEGMENTS.
"""

from __future__ import annotations

import struct
from dataclasses import replace

from pvpatch.abi.errors import UsageError
from runtime.boot import BootImage, BootRequest, EntryState, load_image
from runtime.boot.model import BootKind
from runtime.memory import MemoryRange

__all__ = ["OWN_KINDS", "load_own_guest", "map_high_half"]

OWN_KINDS = frozenset({BootKind.FLAT, BootKind.LINUX32})
"""Entries by which an image may be lguest's own guest."""

_PAGE = 4096
_HEADER = 0x1F1
_E820_COUNT, _E820, _RAM = 0x1E8, 0x2D0, 1
_VERSION, _PROTOCOL = 0x206, 0x207
_LOADER_TYPE, _LOADER = 0x210, 1
_LOAD_FLAGS, _KEEP_SEGMENTS = 0x211, 0x40
_RAMDISK, _COMMAND_LINE, _ALIGNMENT, _SUBARCH = 0x218, 0x228, 0x230, 0x23C
_LGUEST = 1
_KERNEL_ALIGNMENT = 0x100_0000
_PAGE_OFFSET = 0xC000_0000
"""Where a kernel of lguest's has its memory: the host's own, since guest and host are built alike."""
_LARGE_PAGE = 4 << 20
_PRESENT_WRITABLE_LARGE = 0xE7


def load_own_guest(image: BootImage, memory: MemoryRange, request: BootRequest) -> EntryState:
    """Load the image and write what the launcher writes. Raises `ImageError` or `UsageError`."""
    plain = replace(request, initrd=b"") if image.kind is BootKind.FLAT else request
    state = load_image(image, memory, plain)
    page = bytearray(_PAGE)
    page[_HEADER : _HEADER + len(image.setup_header)] = image.setup_header[: _PAGE - _HEADER]
    page[_E820_COUNT] = 1
    struct.pack_into("<QQI", page, _E820, 0, memory.size, _RAM)
    version = max(_PROTOCOL, struct.unpack_from("<H", page, _VERSION)[0])
    command_line = request.cmdline.encode() + b"\0"
    if len(command_line) > _PAGE:
        raise UsageError(f"the command line is longer than lguest's launcher allows ({_PAGE - 1} bytes)")
    for offset, layout, value in (
        (_VERSION, "<H", version),
        (_LOADER_TYPE, "<B", _LOADER),
        (_LOAD_FLAGS, "<B", page[_LOAD_FLAGS] | _KEEP_SEGMENTS),
        (_COMMAND_LINE, "<I", _PAGE),
        (_ALIGNMENT, "<I", _KERNEL_ALIGNMENT),
        (_SUBARCH, "<I", _LGUEST),
    ):
        struct.pack_into(layout, page, offset, value)
    if request.initrd:
        start = (memory.size - len(request.initrd)) & ~(_PAGE - 1)
        memory.store(start, request.initrd)
        struct.pack_into("<II", page, _RAMDISK, start, len(request.initrd))
    memory.store(0, bytes(page) + command_line)
    return replace(state, registers={})


def map_high_half(memory: MemoryRange, directory: int, size: int) -> None:
    """Map the guest's memory at PAGE_OFFSET too, in the page directory that it starts on (setup_pagetables):
    kernels of Linux 2.6.31 to 3.0 go there with their first jump."""
    first = _PAGE_OFFSET // _LARGE_PAGE
    for index in range(min(-(-size // _LARGE_PAGE), 1023 - first)):
        memory.store_u32(directory + 4 * (first + index), index * _LARGE_PAGE | _PRESENT_WRITABLE_LARGE)
