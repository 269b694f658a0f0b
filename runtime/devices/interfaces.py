"""What a byte-wide device is, and what it is given besides the interfaces of `runtime.ports`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

__all__ = ["NANOSECONDS", "ByteDevice", "IrqLine"]

NANOSECONDS = 1_000_000_000
"""Nanoseconds in a second: all device time is virtual time in this unit."""

IrqLine = Callable[[bool], None]
"""An interrupt request line: called with the level the device drives it to."""


class ByteDevice(Protocol):
    """A device of 8-bit registers: the port bus splits a wider access into bytes, lowest first."""

    @property
    def ports(self) -> tuple[int, ...]:
        """The I/O ports it claims."""

    def read(self, port: int) -> int:
        """Value of the register, 0 to 255. Reading may have effects, as on the chip."""

    def write(self, port: int, value: int) -> None:
        """Write 0 to 255 to the register."""
