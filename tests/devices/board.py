"""A clock, memory and machine for devices under test, with nothing behind them."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable


class Event:
    def __init__(self, due_ns: int, callback: Callable[[], None]) -> None:
        self.due_ns = due_ns
        self.callback: Callable[[], None] | None = callback


class ManualClock:
    """Virtual time that moves only when told, running what is due on the way."""

    def __init__(self) -> None:
        self.now_ns = 0
        self.fired = 0
        self._queue: list[tuple[int, int, Event]] = []
        self._order = itertools.count()

    def schedule_at(self, due_ns: int, callback: Callable[[], None]) -> Event:
        event = Event(due_ns, callback)
        heapq.heappush(self._queue, (due_ns, next(self._order), event))
        return event

    schedule_in_background = schedule_at

    def cancel(self, handle: Event) -> None:
        handle.callback = None

    def advance(self, nanoseconds: int) -> None:
        end = self.now_ns + nanoseconds
        while self._queue and self._queue[0][0] <= end:
            due, _, event = heapq.heappop(self._queue)
            self.now_ns = max(self.now_ns, due)
            if event.callback is not None:
                self.fired += 1
                event.callback()
        self.now_ns = end


class Memory:
    """RAM as a bytearray; outside it, all ones and nothing written."""

    def __init__(self, size: int = 4 << 20) -> None:
        self.data = bytearray(size)

    @property
    def size(self) -> int:
        return len(self.data)

    def load(self, address: int, length: int) -> bytes:
        return bytes(self.data[address : address + length]).ljust(length, b"\xff")

    def store(self, address: int, data: bytes) -> None:
        end = min(address + len(data), len(self.data))
        if address < end:
            self.data[address:end] = data[: end - address]


class Control:
    """Records what devices ask of the machine."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, object]] = []
        self.interrupt = False

    def power_off(self, reason: str) -> None:
        self.calls.append(("power_off", reason))

    def reset(self, reason: str) -> None:
        self.calls.append(("reset", reason))

    def exit(self, code: int) -> None:
        self.calls.append(("exit", code))

    def set_interrupt_line(self, level: bool) -> None:
        self.interrupt = level

    def nmi(self) -> None:
        self.calls.append(("nmi", None))


class Sink:
    """Collects console output."""

    def __init__(self) -> None:
        self.data = b""

    def write(self, data: bytes) -> None:
        self.data += data
