"""The Linux/x86 boot protocol header. Source: Documentation/arch/x86/boot.rst of the Linux kernel."""

from __future__ import annotations

import struct

from pvpatch.abi.errors import ImageError
from rewriter.image.model import EntryPoint, SetupHeader

__all__ = ["HEADER_START", "XLF_KERNEL_64", "has_setup_header", "linux_entries", "parse_setup_header"]

HEADER_START = 0x1F1
BOOT_FLAG_OFFSET = 0x1FE
MAGIC_OFFSET = 0x202
LOADED_HIGH = 1  # loadflags bit 0: the protected-mode code is loaded at 0x100000
XLF_KERNEL_64 = 1  # xloadflags bit 0: a 64-bit entry stands at +0x200
ENTRY_64_OFFSET = 0x200
DEFAULT_SETUP_SECTS = 4  # what 0 means
HEADER_END_MAX = 0x290  # the zero page keeps the header in 0x1f1..0x290

# name: (file offset, struct code, first protocol version that has it)
FIELDS: dict[str, tuple[int, str, int]] = {
    "setup_sects": (0x1F1, "B", 0),
    "syssize": (0x1F4, "I", 0x204),
    "version": (0x206, "H", 0),
    "loadflags": (0x211, "B", 0),
    "code32_start": (0x214, "I", 0),
    "initrd_addr_max": (0x22C, "I", 0x203),
    "kernel_alignment": (0x230, "I", 0x205),
    "relocatable": (0x234, "B", 0x205),
    "min_alignment": (0x235, "B", 0x20A),
    "xloadflags": (0x236, "H", 0x20C),
    "cmdline_size": (0x238, "I", 0x206),
    "payload_offset": (0x248, "I", 0x208),
    "payload_length": (0x24C, "I", 0x208),
    "pref_address": (0x258, "Q", 0x20A),
    "init_size": (0x260, "I", 0x20A),
    "handover_offset": (0x264, "I", 0x20B),
}


def has_setup_header(data: bytes) -> bool:
    """Whether the file starts with a Linux boot sector and the header of protocol 2.00 or later."""
    boot_flag = data[BOOT_FLAG_OFFSET : BOOT_FLAG_OFFSET + 2]
    return boot_flag == b"\x55\xaa" and data[MAGIC_OFFSET : MAGIC_OFFSET + 4] == b"HdrS"


def parse_setup_header(data: bytes) -> SetupHeader:
    """Parse and check the header; ImageError when it contradicts the file.

    Only images loaded at 1 MiB or above (bzImage) are supported.
    """
    end = min(MAGIC_OFFSET + data[0x201], HEADER_END_MAX)
    raw = data[HEADER_START:end]
    if len(data) < 0x268 or end < 0x215:
        raise ImageError("the Linux setup header is cut short", hint="the file is damaged or truncated")
    version = struct.unpack_from("<H", data, 0x206)[0]
    values: dict[str, int] = {}
    for name, (offset, code, since) in FIELDS.items():
        present = version >= since and offset + struct.calcsize(code) <= end
        values[name] = struct.unpack_from("<" + code, data, offset)[0] if present else 0
    if not values["loadflags"] & LOADED_HIGH:
        raise ImageError(
            "a Linux zImage (loaded below 1 MiB) is not supported",
            hint="use a bzImage, or the vmlinux inside it",
        )
    values["setup_sects"] = values["setup_sects"] or DEFAULT_SETUP_SECTS
    relocatable = bool(values.pop("relocatable"))
    header = SetupHeader(raw=raw, relocatable=relocatable, **values)
    if len(data) <= header.setup_size:
        raise ImageError(
            f"the setup header says that code starts at file offset {header.setup_size:#x}, behind the end",
            hint="the file is damaged or truncated",
        )
    return header


def linux_entries(header: SetupHeader, base: int) -> tuple[EntryPoint, ...]:
    """The 32-bit entry, and the 64-bit one if there is one, of code loaded at `base`."""
    entries = [EntryPoint(base, base, 32, "linux32")]
    if header.xloadflags & XLF_KERNEL_64:
        entries.append(EntryPoint(base + ENTRY_64_OFFSET, base + ENTRY_64_OFFSET, 64, "linux64"))
    return tuple(entries)
