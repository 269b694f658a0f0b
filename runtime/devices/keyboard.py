"""The 8042 controller with an idle keyboard and an empty mouse port, its reset line, and port 0x92.

Nobody types on it: kernels probe it, identify the keyboard, and use it to reboot. The mouse port
is there because a kernel waits seconds for one that does not answer. Source: IBM AT technical
reference (1984), "Keyboard controller"; IBM PS/2 hardware interface reference for the mouse port.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from runtime.devices.interfaces import IrqLine

__all__ = ["Keyboard8042"]

_DATA, _COMMAND, _FAST_GATE = 0x60, 0x64, 0x92
_STATUS_FULL, _STATUS_SYSTEM, _STATUS_COMMAND, _STATUS_UNLOCKED = 0x01, 0x04, 0x08, 0x10
_STATUS_MOUSE, _STATUS_TIMEOUT = 0x20, 0x40
_MODE_IRQ, _MODE_MOUSE_IRQ, _MODE_SYSTEM, _MODE_DISABLED, _MODE_MOUSE_DISABLED, _MODE_TRANSLATE = (
    0x01, 0x02, 0x04, 0x10, 0x20, 0x40,
)  # fmt: skip
_ACK, _RESEND, _SELF_TEST_PASSED = 0xFA, 0xFE, 0xAA
_REPLIES = {
    0xFF: (_ACK, _SELF_TEST_PASSED),
    0xF2: (_ACK, 0xAB, 0x83),
    0xEE: (0xEE,),
}
_TAKES_PARAMETER = (0xED, 0xF0, 0xF3)
_PLAIN = (0xED, 0xF0, 0xF3, 0xF4, 0xF5, 0xF6, 0xFA)
_WRITES_NEXT = (0x60, 0xD1, 0xD2, 0xD3, 0xD4)
_ENABLES = {
    0xA7: (_MODE_MOUSE_DISABLED, True),
    0xA8: (_MODE_MOUSE_DISABLED, False),
    0xAD: (_MODE_DISABLED, True),
    0xAE: (_MODE_DISABLED, False),
}
_QUEUE = 16


class Keyboard8042:
    """The controller at 0x60 and 0x64. `reset` is called when a guest pulses the reset line."""

    ports: tuple[int, ...] = (_DATA, _COMMAND, _FAST_GATE)

    def __init__(self, irq: IrqLine, mouse_irq: IrqLine, reset: Callable[[str], None]) -> None:
        self._irq = irq
        self._mouse_irq = mouse_irq
        self._reset = reset
        self._mode = _MODE_IRQ | _MODE_SYSTEM | _MODE_MOUSE_DISABLED | _MODE_TRANSLATE
        self._output: deque[tuple[int, int]] = deque(maxlen=_QUEUE)
        """(byte, status bits that go with it): whether the mouse port sent it."""
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
            return self._status()
        if self._output:
            self._last = self._output.popleft()[0]
            self._irq(False)
            self._mouse_irq(False)
            self._update()
        return self._last

    def _status(self) -> int:
        status = _STATUS_SYSTEM | _STATUS_UNLOCKED | (_STATUS_COMMAND if self._command_last else 0)
        return status | (_STATUS_FULL | self._output[0][1] if self._output else 0)

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
        from_mouse = bool(self._output) and bool(self._output[0][1] & _STATUS_MOUSE)
        self._irq(bool(self._output) and not from_mouse and bool(self._mode & _MODE_IRQ))
        self._mouse_irq(from_mouse and bool(self._mode & _MODE_MOUSE_IRQ))

    def _put(self, *values: int, status: int = 0) -> None:
        self._output.extend((value, status) for value in values)

    def _command(self, value: int) -> None:
        self._awaiting = value if value in _WRITES_NEXT or 0x60 <= value < 0x80 else None
        if value == 0x20:
            self._put(self._mode)
        elif 0x20 < value < 0x40:
            self._put(self._post_memory[value & 0x1F])
        elif value == 0xAA:
            self._put(0x55)
        elif value in (0xAB, 0xA9):
            self._put(0x00)
        elif value in _ENABLES:
            bit, disabled = _ENABLES[value]
            self._mode = self._mode & ~bit | (bit if disabled else 0)
        elif value == 0xC0:
            self._put(0xBF)
        elif value == 0xD0:
            self._put(0xCD | (0x02 if self._a20 else 0))
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
            self._put(value)
        elif command == 0xD3:
            self._put(value, status=_STATUS_MOUSE)
        elif command == 0xD4:  # no mouse answers
            self._put(_RESEND, status=_STATUS_MOUSE | _STATUS_TIMEOUT)

    def _to_keyboard(self, value: int) -> None:
        """A byte on the keyboard's line: it answers every command it knows."""
        if self._parameter:
            self._parameter = False
            self._put(_ACK)
        elif value in _REPLIES:
            self._put(*_REPLIES[value])
        elif value in _PLAIN:
            self._parameter = value in _TAKES_PARAMETER
            self._put(_ACK)
        else:
            self._put(_RESEND)
