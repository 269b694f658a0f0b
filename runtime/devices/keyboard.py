"""The 8042 keyboard controller with an idle keyboard, its reset line, and port 0x92.

Nobody types on it: kernels probe it, identify the keyboard, and use it to reboot.
Source: Intel 8042 in the IBM AT technical reference (1984), section "Keyboard controller".
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from runtime.devices.interfaces import IrqLine

__all__ = ["Keyboard8042"]

_DATA, _COMMAND, _FAST_GATE = 0x60, 0x64, 0x92
_STATUS_FULL, _STATUS_SYSTEM, _STATUS_COMMAND, _STATUS_UNLOCKED = 0x01, 0x04, 0x08, 0x10
_MODE_IRQ, _MODE_DISABLED = 0x01, 0x10
_ACK, _RESEND, _SELF_TEST_PASSED = 0xFA, 0xFE, 0xAA
_REPLIES = {
    0xFF: (_ACK, _SELF_TEST_PASSED),
    0xF2: (_ACK, 0xAB, 0x83),
    0xEE: (0xEE,),
}
_TAKES_PARAMETER = (0xED, 0xF0, 0xF3)
_PLAIN = (0xED, 0xF0, 0xF3, 0xF4, 0xF5, 0xF6, 0xFA)
_WRITES_NEXT = (0x60, 0xD1, 0xD2, 0xD3, 0xD4)
_QUEUE = 16


class Keyboard8042:
    """The controller at 0x60 and 0x64. `reset` is called when a guest pulses the reset line."""

    ports: tuple[int, ...] = (_DATA, _COMMAND, _FAST_GATE)

    def __init__(self, irq: IrqLine, reset: Callable[[str], None]) -> None:
        self._irq = irq
        self._reset = reset
        self._mode = _MODE_IRQ | _STATUS_SYSTEM | 0x40
        self._output: deque[int] = deque(maxlen=_QUEUE)
        self._last = 0
        self._awaiting: int | None = None
        self._parameter = False
        self._command_last = False
        self._a20 = True
        self._post_memory = bytearray(32)

    def read(self, port: int) -> int:
        """Read the output buffer, the status register or the fast A20 gate."""
        if port == _FAST_GATE:
            return 0x02 if self._a20 else 0x00
        if port == _COMMAND:
            status = _STATUS_SYSTEM | _STATUS_UNLOCKED
            return (
                status
                | (_STATUS_FULL if self._output else 0)
                | (_STATUS_COMMAND if self._command_last else 0)
            )
        if self._output:
            self._last = self._output.popleft()
            self._irq(False)
            self._update()
        return self._last

    def write(self, port: int, value: int) -> None:
        """Write a controller command, a byte for the keyboard, or the fast A20 gate."""
        if port == _FAST_GATE:
            self._a20 = bool(value & 0x02)
            if value & 0x01:
                self._reset("port 0x92")
        elif port == _COMMAND:
            self._command_last = True
            self._command(value)
        else:
            self._command_last = False
            awaiting, self._awaiting = self._awaiting, None
            if awaiting is None:
                self._to_keyboard(value)
            else:
                self._argument(awaiting, value)
        self._update()

    def _update(self) -> None:
        self._irq(bool(self._output) and bool(self._mode & _MODE_IRQ))

    def _command(self, value: int) -> None:
        self._awaiting = value if value in _WRITES_NEXT or 0x60 <= value < 0x80 else None
        if value == 0x20:
            self._output.append(self._mode)
        elif 0x20 < value < 0x40:
            self._output.append(self._post_memory[value & 0x1F])
        elif value == 0xAA:
            self._output.append(0x55)
        elif value == 0xAB:
            self._output.append(0x00)
        elif value in (0xAD, 0xAE):
            self._mode = self._mode & ~_MODE_DISABLED | (_MODE_DISABLED if value == 0xAD else 0)
        elif value == 0xC0:
            self._output.append(0xBF)
        elif value == 0xD0:
            self._output.append(0xCD | (0x02 if self._a20 else 0))
        elif value >= 0xF0 and not value & 0x01:
            self._reset("keyboard controller")

    def _argument(self, command: int, value: int) -> None:
        if command == 0x60:
            self._mode = value
        elif command < 0x80:
            self._post_memory[command & 0x1F] = value
        elif command == 0xD1:
            self._a20 = bool(value & 0x02)
            if not value & 0x01:
                self._reset("keyboard controller output port")
        elif command == 0xD2:
            self._output.append(value)

    def _to_keyboard(self, value: int) -> None:
        """A byte on the keyboard's line: it answers every command it knows."""
        if self._parameter:
            self._parameter = False
            self._output.append(_ACK)
        elif value in _REPLIES:
            self._output.extend(_REPLIES[value])
        elif value in _PLAIN:
            self._parameter = value in _TAKES_PARAMETER
            self._output.append(_ACK)
        else:
            self._output.append(_RESEND)
