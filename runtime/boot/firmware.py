"""What firmware leaves in memory: the BIOS data area and ACPI tables.

The tables describe the registers of `runtime.devices.power` (which owns the addresses on the
device side) and an interrupt on line 9; there is no MADT, so kernels use the 8259 pair, and the
DSDT holds only \\_S5. Source: ACPI 1.0b chapter 5; IBM PC AT technical reference for the BDA.
"""

from __future__ import annotations

import struct

from runtime.ports import PhysicalMemory

__all__ = ["RSDP_ADDRESS", "rsdp", "write_firmware"]

RSDP_ADDRESS = 0xF0000
"""Start of the firmware area, where a kernel's search for the root pointer begins to find it."""

_FACS, _DSDT, _FADT, _RSDT = 0xF0040, 0xF0080, 0xF00C0, 0xF0140
_OEM = b"PVPTCH"
_SCI_IRQ = 9
_PM_BASE = 0x600
_S5 = bytes.fromhex("08 5f53355f 12 06 04 00000000")
"""AML: Name (\\_S5, Package (4) {Zero, Zero, Zero, Zero})."""
_WBINVD, _PROC_C1, _NO_POWER_BUTTON, _NO_SLEEP_BUTTON, _TIMER_32 = 1, 4, 0x10, 0x20, 0x100

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


def write_firmware(memory: PhysicalMemory) -> None:
    """Write the data area and the tables, at fixed addresses below 1 MiB."""
    for address, layout, values in _BIOS_DATA:
        memory.store(address, struct.pack(layout, *values))
    memory.store(0x9FC00, b"\x01")  # the extended data area's size in KiB
    memory.store(_FACS, struct.pack("<4sI4xII", b"FACS", 64, 0, 0) + bytes(44))
    memory.store(_DSDT, _table(b"DSDT", 1, _S5))
    memory.store(_FADT, _table(b"FACP", 1, _fadt_body()))
    memory.store(_RSDT, _table(b"RSDT", 1, struct.pack("<I", _FADT)))
    memory.store(RSDP_ADDRESS, rsdp())


def rsdp() -> bytes:
    """The root system description pointer, ACPI 1.0 form."""
    body = struct.pack("<8sB6sBI", b"RSD PTR ", 0, _OEM, 0, _RSDT)
    return body[:8] + bytes([-sum(body) & 0xFF]) + body[9:]


def _table(signature: bytes, revision: int, body: bytes) -> bytes:
    """A description table with its header and checksum."""
    header = struct.pack(
        "<4sIBB6s8sI4sI", signature, 36 + len(body), revision, 0, _OEM, b"PVPATCH ", 1, b"PVPT", 1
    )
    checksum = -sum(header + body) & 0xFF
    return header[:9] + bytes([checksum]) + header[10:] + body


def _fadt_body() -> bytes:
    """ACPI 1.0 fixed description: PM1a event, control and timer blocks, no SMI command port."""
    blocks = struct.pack("<8I", _PM_BASE, 0, _PM_BASE + 4, 0, 0, _PM_BASE + 8, 0, 0)
    lengths = struct.pack("<8B", 4, 2, 0, 4, 0, 0, 0, 0)
    latencies = struct.pack("<HH", 0xFFFF, 0xFFFF)  # no C2, no C3
    flush = struct.pack("<HHBBBBB3x", 0, 0, 0, 0, 0, 0, 0x32)  # the century is in CMOS byte 0x32
    flags = struct.pack("<I", _WBINVD | _PROC_C1 | _NO_POWER_BUTTON | _NO_SLEEP_BUTTON | _TIMER_32)
    head = struct.pack("<IIBBHIBBBx", _FACS, _DSDT, 0, 0, _SCI_IRQ, 0, 0, 0, 0)
    return head + blocks + lengths + latencies + flush + flags
