"""The Linux/x86 boot protocol, 32-bit and 64-bit entries. Source: Documentation/arch/x86/boot.rst.

A kernel without a setup header (a raw vmlinux, entered at its physical start) gets a synthetic
one: it expects the same boot_params.
"""

from __future__ import annotations

import struct

from pvpatch.abi.errors import ImageError, UsageError
from runtime.boot.firmware import RSDP_ADDRESS
from runtime.boot.layout import MIB, Arena
from runtime.boot.model import BootImage, BootKind, BootRequest, EntryState
from runtime.boot.protocol import entry_of, flat32, identity64, refuse_modules, text

__all__ = ["load_linux32", "load_linux64"]

_PAGE_SIZE = 4096
_HEADER = 0x1F1
_HEADER_END = 0x290
"""The E820 table begins at 0x2D0; a setup header may grow up to the EDD data at 0x290."""

_SCREEN = (
    (0x00, "<BBH", (0, 0, 0)),  # cursor column and row; extended memory is in alt_mem_k
    (0x06, "<BB", (3, 80)),  # text mode 3, columns
    (0x0A, "<H", (3,)),  # EGA/VGA information: 256 KiB
    (0x0E, "<BBH", (25, 1, 16)),  # rows, is a VGA, character height
)
_ACPI_RSDP, _ALT_MEM_K, _E820_COUNT, _E820 = 0x70, 0x1E0, 0x1E8, 0x2D0
_VIDEO_MODE, _BOOT_FLAG, _MAGIC, _VERSION = 0x1FA, 0x1FE, 0x202, 0x206
_LOADER_TYPE, _LOAD_FLAGS, _CODE32, _RAMDISK = 0x210, 0x211, 0x214, 0x218
_CMDLINE, _INITRD_MAX, _CMDLINE_SIZE = 0x228, 0x22C, 0x238
_UNDEFINED_LOADER = 0xFF
_LOADED_HIGH = 0x01
_OLDEST = 0x0203
"""The first version whose header tells where the ramdisk may be."""

_SYNTHETIC_VERSION = 0x020F
_INITRD_BELOW = 0x7FFFFFFF
_MAX_CMDLINE = 2047


def load_linux32(image: BootImage, request: BootRequest, arena: Arena) -> EntryState:
    """Enter in flat 32-bit mode with ESI = boot_params."""
    entry = entry_of(image, BootKind.LINUX32)
    return flat32(entry, arena, rsi=_boot_params(image, request, arena, entry))


def load_linux64(image: BootImage, request: BootRequest, arena: Arena) -> EntryState:
    """Enter in 64-bit mode with RSI = boot_params and an identity map."""
    entry = entry_of(image, BootKind.LINUX64)
    return identity64(entry, arena, rsi=_boot_params(image, request, arena, entry))


def _boot_params(image: BootImage, request: BootRequest, arena: Arena, entry: int) -> int:
    """Build and place the zero page with command line, memory map and ramdisk: its address."""
    refuse_modules(request.modules, "Linux boot")
    page = bytearray(_PAGE_SIZE)
    header = image.setup_header or _synthetic_header()
    _copy_header(page, header)
    for offset, layout, values in _SCREEN:
        struct.pack_into(layout, page, offset, *values)
    struct.pack_into("<Q", page, _ACPI_RSDP, RSDP_ADDRESS)
    struct.pack_into("<I", page, _ALT_MEM_K, (arena.memory.size - MIB) >> 10)
    page[_E820_COUNT] = len(arena.map)
    for index, part in enumerate(arena.map):
        struct.pack_into("<QQI", page, _E820 + 20 * index, part.base, part.length, part.type)
    struct.pack_into("<H", page, _VIDEO_MODE, 0xFFFF)
    page[_LOADER_TYPE] = _UNDEFINED_LOADER
    page[_LOAD_FLAGS] = page[_LOAD_FLAGS] | _LOADED_HIGH
    struct.pack_into("<I", page, _CODE32, entry & 0xFFFFFFFF)
    limit = struct.unpack_from("<I", page, _CMDLINE_SIZE)[0] or 255
    struct.pack_into("<I", page, _CMDLINE, text(request.cmdline, arena, min(limit, 0xFFFF)))
    if request.initrd:
        below = struct.unpack_from("<I", page, _INITRD_MAX)[0] or _INITRD_BELOW
        if len(request.initrd) > below:
            raise UsageError("the ramdisk is larger than the kernel can take")
        address = arena.place_high(request.initrd, below + 1)
        struct.pack_into("<II", page, _RAMDISK, address, len(request.initrd))
    return arena.place_low(bytes(page), _PAGE_SIZE)


def _copy_header(page: bytearray, header: bytes) -> None:
    """Copy the setup header up to the length that its jump instruction gives."""
    if len(header) < _VERSION + 2 - _HEADER or header[_MAGIC - _HEADER : _MAGIC - _HEADER + 4] != b"HdrS":
        raise ImageError("the Linux setup header is damaged: no HdrS signature")
    version = struct.unpack_from("<H", header, _VERSION - _HEADER)[0]
    if version < _OLDEST:
        raise ImageError(f"Linux boot protocol {version >> 8}.{version & 0xFF:02} is too old")
    end = min(_MAGIC + header[0x201 - _HEADER], _HEADER_END, _HEADER + len(header))
    page[_HEADER:end] = header[: end - _HEADER]


def _synthetic_header() -> bytes:
    """The header that a bzImage of the same kernel would carry, as far as a kernel looks at it."""
    header = bytearray(_HEADER_END - _HEADER)
    for offset, layout, value in (
        (_BOOT_FLAG, "<H", 0xAA55),
        (0x200, "<H", 0xEB | (_HEADER_END - _MAGIC) << 8),
        (_MAGIC, "<4s", b"HdrS"),
        (_VERSION, "<H", _SYNTHETIC_VERSION),
        (_INITRD_MAX, "<I", _INITRD_BELOW),
        (_CMDLINE_SIZE, "<I", _MAX_CMDLINE),
    ):
        struct.pack_into(layout, header, offset - _HEADER, value)
    return bytes(header)
