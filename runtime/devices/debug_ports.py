"""Ports for test guests and firmware progress: 0xF4 ends the run with a code, 0x80 shows a byte.

0xF4 is where QEMU has its isa-debug-exit device; here too a guest that writes 0 ends well. (QEMU's
own exit code for it is `value << 1 | 1`.)
"""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["DebugPorts"]

_POST, _EXIT = 0x80, 0xF4


class DebugPorts:
    """The exit port and the power-on self-test latch."""

    ports: tuple[int, ...] = (_POST, _EXIT, _EXIT + 1, _EXIT + 2, _EXIT + 3)

    def __init__(self, leave: Callable[[int], None]) -> None:
        self._leave = leave
        self.post = 0
        """The byte written to port 0x80 last."""

    def read(self, port: int, size: int) -> int:
        """The last POST byte; the exit port reads as zero."""
        return self.post if port == _POST else 0

    def write(self, port: int, size: int, value: int) -> None:
        """Latch a POST byte, or end the run."""
        if port == _POST:
            self.post = value & 0xFF
        else:
            self._leave(value)
