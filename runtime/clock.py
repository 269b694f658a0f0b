"""Virtual time: how much code ran decides what time it is, so every run is repeatable."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable

from runtime.cpu.native import UNITS_PER_NS, ControlBlock
from runtime.ports import AlarmHandle

__all__ = ["NEVER", "Alarm", "VirtualClock"]

NEVER = (1 << 64) - 1
"""A deadline in units that is never reached."""


class Alarm:
    """A scheduled callback."""

    __slots__ = ("background", "callback", "due_ns")

    def __init__(self, due_ns: int, callback: Callable[[], None], background: bool = False) -> None:
        self.due_ns = due_ns
        self.background = background
        self.callback: Callable[[], None] | None = callback


class VirtualClock:
    """Nanoseconds counted from executed code, and the callbacks that wait for them.

    The machine-code block hook compares the counter with `ControlBlock.deadline`; this class
    keeps that field equal to the earliest alarm.
    """

    def __init__(self, control: ControlBlock) -> None:
        self._control = control
        self._queue: list[tuple[int, int, Alarm]] = []
        self._cancelled = 0
        """Entries of the queue that were cancelled."""
        self._expected = 0
        """Alarms of the guest's in the queue, not cancelled."""
        self._order = itertools.count()
        self._publish()

    @property
    def now_ns(self) -> int:
        """Nanoseconds of virtual time since the machine started."""
        return self._control.now // UNITS_PER_NS

    def spend_ns(self, nanoseconds: int) -> None:
        """Charge time for work that executed no guest code (a device access, an exit)."""
        self._control.now += nanoseconds * UNITS_PER_NS

    def schedule_at(self, due_ns: int, callback: Callable[[], None]) -> Alarm:
        """Run `callback` once at `due_ns`, at a block boundary."""
        return self._push(Alarm(due_ns, callback))

    def schedule_in_background(self, due_ns: int, callback: Callable[[], None]) -> Alarm:
        """As `schedule_at`, for the runtime's own purposes: a halted guest does not wait for it."""
        return self._push(Alarm(due_ns, callback, background=True))

    def _push(self, alarm: Alarm) -> Alarm:
        due_ns = alarm.due_ns
        self._expected += not alarm.background
        heapq.heappush(self._queue, (due_ns, next(self._order), alarm))
        if self._queue[0][2] is alarm:
            self._publish()
        return alarm

    def cancel(self, handle: AlarmHandle) -> None:
        """Forget a scheduled callback; harmless if it has run."""
        assert isinstance(handle, Alarm)
        if handle.callback is None:
            return
        handle.callback = None
        self._expected -= not handle.background
        self._cancelled += 1
        if self._queue[0][2] is handle:
            self._drop_cancelled()
            self._publish()
        elif self._cancelled > len(self._queue) // 2:
            self._queue = [entry for entry in self._queue if entry[2].callback is not None]
            heapq.heapify(self._queue)
            self._cancelled = 0

    def _drop_cancelled(self) -> None:
        while self._queue and self._queue[0][2].callback is None:
            heapq.heappop(self._queue)
            self._cancelled -= 1

    def _publish(self) -> None:
        control = self._control
        control.deadline = max(0, self._queue[0][0]) * UNITS_PER_NS if self._queue else NEVER
        if control.limit:
            control.limit = control.deadline

    @property
    def next_due_ns(self) -> int | None:
        """Time of the earliest alarm, or None when the guest has none scheduled."""
        self._drop_cancelled()
        return self._queue[0][0] if self._expected else None

    def run_due(self) -> None:
        """Run every callback whose time has come, those that callbacks add included."""
        while True:
            self._drop_cancelled()
            if not self._queue or self._queue[0][0] > self.now_ns:
                break
            alarm = heapq.heappop(self._queue)[2]
            callback, alarm.callback = alarm.callback, None
            self._expected -= not alarm.background
            if callback is not None:
                callback()
        self._publish()

    def skip_to(self, due_ns: int) -> None:
        """Let time pass while the CPU is halted."""
        self._control.now = max(self._control.now, due_ns * UNITS_PER_NS)
