"""The 8254 interval timer at ports 0x40 to 0x43 and the PC's port 0x61 that gates counter 2.

Counter 0 drives IRQ0, counter 1 was the DRAM refresh, counter 2 the speaker (and is what kernels
calibrate delays with). Source: Intel 8254 data sheet; 82371SB (PIIX3) data sheet for port 0x61.
"""

from __future__ import annotations

from collections.abc import Callable

from runtime.devices.interfaces import NANOSECONDS, IrqLine
from runtime.devices.pit_counter import Counter8254
from runtime.ports import AlarmHandle, Clock

__all__ = ["PIT_HZ", "Pit8254"]

PIT_HZ = 1_193_182
"""Input clock of the PC's 8254: 14.31818 MHz / 12."""

_CONTROL = 0x43
_PORT_B = 0x61
_REFRESH_NS = 15_085
"""Port 0x61 bit 4 toggles with each refresh request: PIIX3 divides the 14.31818 MHz clock."""

_MIN_EDGE_TICKS = 24
"""Edges of IRQ0 closer than about 20 us are merged: no handler could take them apart, and a
hostile guest that programs a period of two pulses must not drown the machine in events."""


class Pit8254:
    """The three counters and port 0x61. `irq` is request line 0 of the interrupt controller.

    While `waiting` says that a request is latched and not yet taken, further edges change nothing
    and none are scheduled: a masked timer costs nothing. `resume` must be called when it is taken.
    """

    ports: tuple[int, ...] = (0x40, 0x41, 0x42, _CONTROL, _PORT_B)

    def __init__(self, clock: Clock, irq: IrqLine, waiting: Callable[[], bool] = lambda: False) -> None:
        self._clock = clock
        self._irq = irq
        self._waiting = waiting
        self._event: AlarmHandle | None = None
        self._port_b = 0
        self.counters = (Counter8254(True), Counter8254(True), Counter8254(False))
        for index, control, low, high in ((0, 0x36, 0, 0), (1, 0x54, 18, None), (2, 0xB6, 0, 0)):
            self.write(_CONTROL, control)
            for byte in (low, high):
                if byte is not None:
                    self.write(0x40 + index, byte)

    @property
    def tick(self) -> int:
        """CLK pulses since the machine started."""
        return self._clock.now_ns * PIT_HZ // NANOSECONDS

    def read(self, port: int) -> int:
        """Read a counter or port 0x61; the control register cannot be read."""
        if port == _PORT_B:
            refresh = self._clock.now_ns // _REFRESH_NS & 1
            return self._port_b | refresh << 4 | self.counters[2].output(self.tick) << 5
        if port == _CONTROL:
            return 0xFF
        return self.counters[port & 3].read(self.tick)

    def write(self, port: int, value: int) -> None:
        """Write a counter, the control register or port 0x61."""
        if port == _PORT_B:
            self._port_b = value & 0x0F
            self.counters[2].set_gate(bool(value & 1), self.tick)
            return
        if port == _CONTROL:
            self._control(value)
            return
        self.counters[port & 3].write(value, self.tick)
        if port == 0x40:
            self._follow_output()

    def _control(self, value: int) -> None:
        which = value >> 6
        if which == 3:
            self._read_back(value)
        elif value & 0x30 == 0:
            self.counters[which].latch_count(self.tick)
        else:
            self.counters[which].control(value)
            if which == 0:
                self._follow_output()

    def _read_back(self, value: int) -> None:
        for index, counter in enumerate(self.counters):
            if value & 2 << index:
                if not value & 0x20:
                    counter.latch_count(self.tick)
                if not value & 0x10:
                    counter.latch_status(self.tick)

    def _follow_output(self) -> None:
        """Bring IRQ0 to OUT0's level after programming, and wait for its next rise."""
        self._irq(self.counters[0].output(self.tick))
        self._await_rise(self.tick)

    def _await_rise(self, tick: int) -> None:
        if self._event is not None:
            self._clock.cancel(self._event)
            self._event = None
        rise = self.counters[0].next_rise(tick)
        if rise is not None:
            if self.counters[0].mode in (2, 3):
                rise = max(rise, tick + _MIN_EDGE_TICKS)
            self._event = self._clock.schedule_at(-(-rise * NANOSECONDS // PIT_HZ), self._rise)

    def _rise(self) -> None:
        """OUT0 rises. Its fall needs no event of its own: it is seen just before the next rise."""
        self._event = None
        self._irq(False)
        self._irq(True)
        if not self._waiting():
            self._await_rise(self.tick)

    def resume(self) -> None:
        """The interrupt controller took the last request: the next rise matters again."""
        if self._event is None:
            self._await_rise(self.tick)
