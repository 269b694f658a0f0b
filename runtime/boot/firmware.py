"""What firmware leaves in memory: the BIOS data area, ACPI and MP tables.

Source: IBM PC AT technical reference for the data area.
"""

from __future__ import annotations

import struct

from runtime.boot.acpi import acpi_tables
from runtime.boot.mptable import mp_tables
from runtime.ports import PhysicalMemory

__all__ = ["RSDP_ADDRESS", "write_firmware"]

RSDP_ADDRESS = 0xF0000
"""Start of the firmware area, where a kernel's search for the root pointer begins to find it."""

_MP_TABLES = 0xF1000
_BOOT_CPU = 0

_BIOS_DATA = (
    (0x400, "<4H", (0x3F8, 0, 0, 0)),  # serial ports
    (0x40E, "<H", (0x9FC0,)),  # segment of the extended data area
    (0x410, "<H", (0x0226,)),  # equipment: coprocessor, mouse port, 80x25 colour, one serial port
    (0x413, "<H", (639,)),  # KiB of conventional memory
    (0x449, "<BH", (3, 80)),  # video mode, columns
    (0x463, "<H", (0x3D4,)),  # CRTC
    (0x475, "<B", (0,)),  # hard disks
    (0x484, "<BH", (24, 16)),  # rows less one, character height
)


def write_firmware(memory: PhysicalMemory, *, apics: bool) -> None:
    """Write the data area and the tables, at fixed addresses below 1 MiB; `apics` as for `acpi_tables`."""
    for address, layout, values in _BIOS_DATA:
        memory.store(address, struct.pack(layout, *values))
    memory.store(0x9FC00, b"\x01")  # the extended data area's size in KiB
    for address, table in acpi_tables(RSDP_ADDRESS, apics=apics):
        memory.store(address, table)
    if apics:
        memory.store(_MP_TABLES, mp_tables(_MP_TABLES, _BOOT_CPU))
