"""The option ROM: its header as guests look for it, and its code at the top of the address space.

The image in the ROM area holds the header, the licence and vendor strings and the two jump points; the
code of the calls is mapped at `virtual_top` once VMI_Init has run, and GetReloc tells where.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pvpatch.abi.asm import assemble
from runtime.backends.slotfile import read_slot_file
from runtime.backends.vmi.interface import interface

__all__ = [
    "GDT_ENTRIES",
    "HOST_DATA",
    "PAGE",
    "SHARED_WORDS",
    "TEXT_PAGES",
    "VROM_SIGNATURE",
    "RomText",
    "option_rom",
    "rom_text",
]

PAGE = 4096
TEXT_PAGES = 1
VROM_SIGNATURE = b"cVmi"
GDT_ENTRIES = 4096
"""Of the real table; the guest has all but the last."""
HOST_DATA = (GDT_ENTRIES - 1) << 3 | 1
"""Selector of the hypervisor's flat data segment, an entry no guest table reaches."""

SHARED_WORDS = {"enabled": 0, "pending": 4, "cr0": 8, "cr2": 12, "cr3": 16, "cr4": 20}
"""Words of the shared page (offsets): private between the ROM and the hypervisor."""

_ROM_SIZE = 2048
_LICENSE, _PCI, _PNP, _STRINGS, _ENTRY = 0x100, 0x120, 0x140, 0x160, 0x1F0
_LICENSE_TEXT = b"GPL\0"
_PCI_VENDOR, _PCI_DEVICE = 0x15AD, 0x0801
_JUMP_SLOTS = 2
_VMCALL_RET = b"\x0f\x01\xc1\xc3"
_FAR_RETURN = b"\xcb"


@dataclass(frozen=True)
class RomText:
    """The assembled calls."""

    start: int
    """Linear address of the code."""
    code: bytes
    entries: Mapping[int, int]
    """Call number -> linear address."""
    exits: Mapping[int, int]
    """Linear address of a VMCALL -> call number."""


@functools.cache
def rom_text() -> RomText:
    """The ROM's code as it is mapped one page above `virtual_top`."""
    known = interface()
    base = known.virtual_top + PAGE
    routines = read_slot_file(Path(__file__).with_name("rom32.s")).routines
    text = ""
    for call in known.calls.values():
        body = routines.get(call.name, "  vmcall\n  ret\n")
        text += f".align 16\nCALL_{call.name}:\n{body}"
    symbols = {f"SHARED_{name}": known.virtual_top + at for name, at in SHARED_WORDS.items()}
    built = assemble(text, 32, base, symbols | {"HOST_DATA": HOST_DATA})
    if len(built.code) > TEXT_PAGES * PAGE:
        raise ValueError(f"the ROM's code takes {len(built.code)} bytes")
    entries = {call.number: built.labels[f"CALL_{call.name}"] for call in known.calls.values()}
    exits = {entries[number]: number for number, call in known.calls.items() if call.name not in routines}
    exits[built.labels["enable_exit"]] = known.number("EnableInterrupts")
    exits[built.labels["iret_slow"]] = known.number("IRET")
    code = built.code.ljust(TEXT_PAGES * PAGE, b"\xcc")
    return RomText(base, code, entries, exits)


@functools.cache
def option_rom() -> bytes:
    """The ROM image: header, PCI and PnP headers, licence, jump points, checksum."""
    known = interface()
    image = bytearray(_ROM_SIZE)

    def put(field: str, value: int) -> None:
        offset, size = known.header[field]
        image[offset : offset + size] = value.to_bytes(size, "little")

    def write(offset: int, data: bytes) -> None:
        image[offset : offset + len(data)] = data

    put("rom_signature", 0xAA55)
    put("rom_length", _ROM_SIZE // 512)
    put("vrom_signature", int.from_bytes(VROM_SIGNATURE, "little"))
    put("api_version_maj", 3)
    put("jump_slots", _JUMP_SLOTS)
    put("virtual_top", known.virtual_top)
    put("license_offs", _LICENSE)
    put("pci_header_offs", _PCI)
    put("pnp_header_offs", _PNP)
    offset, _ = known.header["rom_entry"]
    write(offset, b"\xe9" + (_ENTRY - offset - 3).to_bytes(2, "little"))
    for field in ("vmi_init", "get_reloc"):
        write(known.header[field][0], _VMCALL_RET)
    write(_ENTRY, _FAR_RETURN)
    write(_LICENSE, _LICENSE_TEXT)
    pci = bytearray(0x18)
    pci[0:4] = b"PCIR"
    pci[4:8] = _PCI_VENDOR.to_bytes(2, "little") + _PCI_DEVICE.to_bytes(2, "little")
    pci[0x0A] = 0x18  # its length
    pci[0x10] = _ROM_SIZE // 512
    pci[0x13] = 3  # ROM version, major
    pci[0x15] = 0x80  # the last image
    write(_PCI, bytes(pci))
    vendor, product = known.rom_vendor.encode() + b"\0", known.rom_product.encode() + b"\0"
    write(_STRINGS, vendor + product)
    pnp = bytearray(0x20)
    pnp[0:4] = b"$PnP"
    pnp[4], pnp[5] = 1, len(pnp) // 16
    pnp[0x0E:0x10] = _STRINGS.to_bytes(2, "little")
    pnp[0x10:0x12] = (_STRINGS + len(vendor)).to_bytes(2, "little")
    pnp[9] = -sum(pnp) & 0xFF
    write(_PNP, bytes(pnp))
    image[-1] = -sum(image) & 0xFF
    return bytes(image)
