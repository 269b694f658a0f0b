"""ACPI tables: root pointer, RSDT and XSDT, FADT with FACS, a DSDT with only \\_S5, and the MADT.

They describe the registers of `runtime.devices` (which owns the addresses on the device side). Without APICs
there is no MADT, so kernels use the 8259 pair. Source: ACPI 3.0b, chapter 5.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

__all__ = ["acpi_tables", "rsdp"]

_OEM = b"PVPTCH"
_SCI_IRQ = 9
_PM_BASE, _PM_LENGTH = 0x600, 12
_SMI_COMMAND, _ACPI_ENABLE, _ACPI_DISABLE = 0xB2, 0xF1, 0xF0
_RESET_PORT, _RESET_VALUE = 0xCF9, 0x06
_LOCAL_APIC, _IO_APIC, _IO_APIC_ID = 0xFEE0_0000, 0xFEC0_0000, 1
_S5 = bytes.fromhex("08 5f53355f 12 06 04 00000000")
"""AML: Name (\\_S5, Package (4) {Zero, Zero, Zero, Zero})."""
_WBINVD, _PROC_C1, _NO_POWER_BUTTON, _NO_SLEEP_BUTTON = 1, 4, 0x10, 0x20
_TIMER_32, _RESET_REGISTER = 0x100, 0x400
_LEGACY_DEVICES, _HAS_8042 = 1, 2
_NO_C2, _NO_C3 = 0xFFFF, 0xFFFF
_CENTURY = 0x32
_HAS_8259 = 1
_LEVEL_HIGH = 0x000D
_EVERY_CPU = 0xFF
_HEADER_LENGTH = 36


def rsdp(rsdt: int, xsdt: int) -> bytes:
    """The root system description pointer; its first 20 bytes are the ACPI 1.0 form."""
    first = struct.pack("<8sB6sBI", b"RSD PTR ", 0, _OEM, 2, rsdt)
    first = first[:8] + bytes([-sum(first) & 0xFF]) + first[9:]
    whole = first + struct.pack("<IQB3x", 36, xsdt, 0)
    return whole[:32] + bytes([-sum(whole) & 0xFF]) + whole[33:]


def acpi_tables(root: int, *, apics: bool) -> Iterator[tuple[int, bytes]]:
    """(guest-physical address, table) of every table; the root pointer is at `root`, the others follow it."""
    facs, dsdt = root + 0x40, root + 0x80
    yield facs, struct.pack("<4sI4xII", b"FACS", 64, 0, 0) + bytes(44)
    yield dsdt, _table(b"DSDT", 1, _S5)
    bodies = [(b"FACP", 3, _fadt(facs, dsdt))]
    if apics:
        bodies.append((b"APIC", 1, _madt()))
    at, listed = dsdt + 0x40, []
    for signature, revision, body in bodies:
        yield at, _table(signature, revision, body)
        listed.append(at)
        at += _HEADER_LENGTH + len(body) + 15 & ~15
    rsdt, xsdt = at, at + 0x40
    yield rsdt, _table(b"RSDT", 1, struct.pack(f"<{len(listed)}I", *listed))
    yield xsdt, _table(b"XSDT", 1, struct.pack(f"<{len(listed)}Q", *listed))
    yield root, rsdp(rsdt, xsdt)


def _table(signature: bytes, revision: int, body: bytes) -> bytes:
    """A description table with its header and checksum."""
    header = struct.pack(
        "<4sIBB6s8sI4sI",
        signature, _HEADER_LENGTH + len(body), revision, 0, _OEM, b"PVPATCH ", 1, b"PVPT", 1,
    )  # fmt: skip
    checksum = -sum(header + body) & 0xFF
    return header[:9] + bytes([checksum]) + header[10:] + body


def _port(address: int, length: int) -> bytes:
    """A generic address: `length` bytes of I/O ports, or an absent register."""
    return struct.pack("<BBBBQ", 1, 8 * length, 0, 0, address)


def _fadt(facs: int, dsdt: int) -> bytes:
    """Fixed description: PM1a event, control and timer blocks, the SMI command port, the reset register."""
    head = struct.pack(
        "<IIBBHIBBBB", facs, dsdt, 0, 0, _SCI_IRQ, _SMI_COMMAND, _ACPI_ENABLE, _ACPI_DISABLE, 0, 0
    )
    event, control, timer = _PM_BASE, _PM_BASE + 4, _PM_BASE + 8
    blocks = struct.pack("<8I8B", event, 0, control, 0, 0, timer, 0, 0, 4, 2, 0, 4, 0, 0, 0, 0)
    architecture = _LEGACY_DEVICES | _HAS_8042
    idle = struct.pack("<4H5BHB", _NO_C2, _NO_C3, 0, 0, 0, 0, 0, 0, _CENTURY, architecture, 0)
    flags = _WBINVD | _PROC_C1 | _NO_POWER_BUTTON | _NO_SLEEP_BUTTON | _TIMER_32 | _RESET_REGISTER
    reset = struct.pack("<I", flags) + _port(_RESET_PORT, 1) + struct.pack("<B3x", _RESET_VALUE)
    none = _port(0, 0)
    wide = struct.pack("<QQ", facs, dsdt) + _port(event, 4) + none + _port(control, 2) + none + none
    return head + blocks + idle + reset + wide + _port(timer, 4) + none + none


def _madt() -> bytes:
    """One CPU, one I/O APIC, and where its pins differ from the ISA lines."""
    cpu = struct.pack("<BBBBI", 0, 8, 0, 0, 1)
    io = struct.pack("<BBBBII", 1, 12, _IO_APIC_ID, 0, _IO_APIC, 0)
    timer = struct.pack("<BBBBIH", 2, 10, 0, 0, 2, 0)
    sci = struct.pack("<BBBBIH", 2, 10, 0, _SCI_IRQ, _SCI_IRQ, _LEVEL_HIGH)
    nmi = struct.pack("<BBBHB", 4, 6, _EVERY_CPU, 0, 1)
    return struct.pack("<II", _LOCAL_APIC, _HAS_8259) + cpu + io + timer + sci + nmi
