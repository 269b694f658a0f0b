"""PCI configuration mechanism 1 on an empty bus, and the chip set's reset register 0xCF9.

There is no device: every configuration read is all ones, as a master abort gives. The address
register can be read back, which is how kernels recognise mechanism 1.
Source: PCI Local Bus 2.1, section 3.7.4.1; 82371SB data sheet for 0xCF9.
"""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["PciConfig"]

_ADDRESS, _RESET = 0xCF8, 0xCF9


class PciConfig:
    """Ports 0xCF8 to 0xCFF. Only a 32-bit access reaches the address register."""

    ports: tuple[int, ...] = tuple(range(_ADDRESS, _ADDRESS + 8))

    def __init__(self, reset: Callable[[str], None]) -> None:
        self._reset = reset
        self._address = 0
        self._reset_control = 0

    def read(self, port: int, size: int) -> int:
        """The address register, the reset register, or all ones."""
        if port == _ADDRESS and size == 4:
            return self._address
        if port == _RESET and size == 1:
            return self._reset_control
        return (1 << 8 * size) - 1

    def write(self, port: int, size: int, value: int) -> None:
        """Set the address; a rise of bit 2 of 0xCF9 resets the machine."""
        if port == _ADDRESS and size == 4:
            self._address = value & 0x80FFFFFC
        elif port == _RESET and size == 1:
            if value & ~self._reset_control & 0x04:
                self._reset("reset control register 0xcf9")
            self._reset_control = value & 0x0E
