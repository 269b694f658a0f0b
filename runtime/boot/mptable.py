"""The MultiProcessor tables, for kernels that look for their APICs without ACPI.

Source: Intel MultiProcessor Specification 1.4, chapter 4. One processor; lines of the ISA bus on the pins of
one I/O APIC; the 8259s at LINT0 ("virtual wire mode", as firmware hands the APIC over).
"""

from __future__ import annotations

import struct

__all__ = ["mp_tables"]

_LOCAL_APIC, _IO_APIC, _IO_APIC_ID = 0xFEE0_0000, 0xFEC0_0000, 1
_LOCAL_VERSION, _IO_VERSION = 0x14, 0x20
_SPECIFICATION = 4
_ENABLED_BOOT_CPU, _ENABLED = 3, 1
_SIGNATURE, _FEATURES = 0x0F61, 0x0201
"""Processor signature, and features: a floating-point unit and an APIC."""
_INT, _NMI, _EXTINT = 0, 1, 3
_CASCADE, _TIMER_PIN = 2, 2
_EVERY_APIC = 0xFF


def mp_tables(address: int, processor: int) -> bytes:
    """Floating pointer and configuration table behind it, for guest-physical `address` (16-byte aligned).

    `processor` is the APIC number of the boot CPU.
    """
    entries = [_cpu(processor), struct.pack("<BB6s", 1, 0, b"ISA   ")]
    entries.append(struct.pack("<BBBBI", 2, _IO_APIC_ID, _IO_VERSION, _ENABLED, _IO_APIC))
    for irq in range(16):
        if irq != _CASCADE:
            pin = _TIMER_PIN if irq == 0 else irq
            entries.append(_interrupt(3, _INT, irq, _IO_APIC_ID, pin))
    entries += [_interrupt(4, _EXTINT, 0, processor, 0), _interrupt(4, _NMI, 0, _EVERY_APIC, 1)]
    body = b"".join(entries)
    header = struct.pack(
        "<4sHBB8s12sIHHIHBx",
        b"PCMP", 44 + len(body), _SPECIFICATION, 0, b"PVPATCH ", b"PC          ", 0, 0, len(entries),
        _LOCAL_APIC, 0, 0,
    )  # fmt: skip
    checksum = -sum(header + body) & 0xFF
    table = header[:7] + bytes([checksum]) + header[8:] + body
    pointer = struct.pack("<4sIBBB5x", b"_MP_", address + 16, 1, _SPECIFICATION, 0)
    return pointer[:10] + bytes([-sum(pointer) & 0xFF]) + pointer[11:] + table


def _cpu(number: int) -> bytes:
    return struct.pack(
        "<BBBBII8x", 0, number, _LOCAL_VERSION, _ENABLED_BOOT_CPU, _SIGNATURE, _FEATURES
    )


def _interrupt(kind: int, what: int, irq: int, apic: int, pin: int) -> bytes:
    """An interrupt's way from line `irq` of the ISA bus to a pin, with the bus's polarity and trigger."""
    return struct.pack("<BBHBBBB", kind, what, 0, 0, irq, apic, pin)
