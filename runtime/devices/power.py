"""The ACPI fixed registers: power-off and the power management timer.

At 0x600 as QEMU's machines have them, so a guest without ACPI may write 0x2000 to port 0x604. ACPI mode is
entered by writing 0xF1 to the SMI command port 0xB2, and left by 0xF0, as there; it changes nothing but what
the control register shows. The tables that describe them are in `runtime.boot.acpi`. Source: ACPI 1.0b,
section 4.7.
"""

from __future__ import annotations

from collections.abc import Callable

from runtime.devices.interfaces import NANOSECONDS
from runtime.ports import Clock

__all__ = ["PM_BASE", "PM_TIMER_HZ", "PowerManagement"]

PM_BASE = 0x600
"""PM1a event block at +0 (4 bytes), control block at +4 (2 bytes), timer at +8 (4 bytes)."""

PM_TIMER_HZ = 3_579_545
"""Frequency of the power management timer, which is 32 bits wide here."""

_SMI_COMMAND = 0xB2
_ACPI_ENABLE, _ACPI_DISABLE = 0xF1, 0xF0
_SCI_ENABLED = 0x0001
_SLEEP_ENABLE = 0x2000
_SLEEP_TYPE = 0x1C00
_SOFT_OFF = 0x0000
"""SLP_TYP of S5, as the DSDT's \\_S5 object says."""


class PowerManagement:
    """The register block; `power_off` is called when the guest enters S5."""

    ports: tuple[int, ...] = (_SMI_COMMAND, *range(PM_BASE, PM_BASE + 12))

    def __init__(self, clock: Clock, power_off: Callable[[str], None]) -> None:
        self._clock = clock
        self._power_off = power_off
        self._enable = 0
        self._control = 0
        self._command = 0

    def read(self, port: int, size: int) -> int:
        """Any part of the block, at any size; the last command."""
        if port == _SMI_COMMAND:
            return self._command
        timer = self._clock.now_ns * PM_TIMER_HZ // NANOSECONDS & 0xFFFFFFFF
        block = self._enable << 16 | self._control << 32 | timer << 64
        return block >> 8 * (port - PM_BASE) & (1 << 8 * size) - 1

    def write(self, port: int, size: int, value: int) -> None:
        """Write part of the block. No event is ever pending, so status bits have nothing to clear."""
        if port == _SMI_COMMAND:
            self._give_command(value & 0xFF)
            return
        for index in range(size):
            self._write_byte(port + index - PM_BASE, value >> 8 * index & 0xFF)
        if self._control & _SLEEP_ENABLE:
            self._control &= ~_SLEEP_ENABLE
            if self._control & _SLEEP_TYPE == _SOFT_OFF:
                self._power_off("ACPI S5")

    def _give_command(self, command: int) -> None:
        """What firmware would do in system management mode."""
        self._command = command
        if command == _ACPI_ENABLE:
            self._control |= _SCI_ENABLED
        elif command == _ACPI_DISABLE:
            self._control &= ~_SCI_ENABLED

    def _write_byte(self, offset: int, value: int) -> None:
        shift = 8 * (offset & 1)
        if offset in (2, 3):
            self._enable = self._enable & ~(0xFF << shift) | value << shift
        elif offset in (4, 5):
            kept = 0xFF << shift & ~_SCI_ENABLED
            self._control = self._control & ~kept | value << shift & kept
