"""Time in cycles: three counters and their alarms (vmi_time.h; PV API 2.0 part 3).

real = available + stolen, all counted at one constant frequency. Stolen is the time this hypervisor
takes for itself while the guest would run; it is charged by the model for every exit. An alarm expires
when its counter has reached the (absolute) expiry, missed periods count once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from runtime.clock import Alarm, VirtualClock

__all__ = ["CycleAlarm", "CycleCounters", "cycles_at", "first_ns_with"]

_NS_PER_S = 1_000_000_000
_HORIZON_NS = 1 << 60
"""An expiry beyond this never comes (36 years)."""


def cycles_at(nanoseconds: int, frequency: int) -> int:
    """Cycles counted after `nanoseconds`."""
    return nanoseconds * frequency // _NS_PER_S


def first_ns_with(cycles: int, frequency: int) -> int:
    """The first nanosecond at which `cycles` have been counted."""
    return -(-cycles * _NS_PER_S // frequency)


@dataclass
class CycleAlarm:
    """One armed alarm: expiry and period in cycles of its counter (period 0: one shot)."""

    expiry: int
    period: int
    through_lvtt: bool
    scheduled: Alarm | None = None


class CycleCounters:
    """The counters and alarms of one virtual CPU."""

    def __init__(
        self, clock: VirtualClock, frequency: int, minimal_period_ns: int, expired: Callable[[bool], None]
    ) -> None:
        self._clock = clock
        self.frequency = frequency
        self._minimal_period_ns = minimal_period_ns
        self._expired = expired
        self._stolen_ns = 0
        self._alarms: dict[str, CycleAlarm] = {}

    def steal(self, nanoseconds: int) -> None:
        """The hypervisor works while the guest would run."""
        self._clock.spend_ns(nanoseconds)
        self._stolen_ns += nanoseconds

    def read(self, counter: str) -> int:
        """`real`, `available` or `stolen`, in cycles."""
        real = cycles_at(self._clock.now_ns, self.frequency)
        stolen = cycles_at(self._stolen_ns, self.frequency)
        return {"real": real, "stolen": stolen, "available": real - stolen}[counter]

    def arm(self, counter: str, expiry: int, period: int, *, through_lvtt: bool) -> None:
        """SetAlarm; the stolen counter has none."""
        if counter == "stolen":
            return
        self.cancel(counter)
        self._alarms[counter] = CycleAlarm(expiry, period, through_lvtt)
        self._schedule(counter, self._clock.now_ns)

    def cancel(self, counter: str) -> bool:
        """CancelAlarm: was it armed?"""
        alarm = self._alarms.pop(counter, None)
        if alarm is None:
            return False
        if alarm.scheduled is not None:
            self._clock.cancel(alarm.scheduled)
        return True

    def _schedule(self, counter: str, not_before_ns: int) -> None:
        """Look at the counter again when it can have reached the expiry, not before."""
        alarm = self._alarms[counter]
        missing = max(0, alarm.expiry - self.read(counter))
        if counter == "real":
            due = first_ns_with(alarm.expiry, self.frequency)
        else:
            due = self._clock.now_ns + first_ns_with(missing, self.frequency)
        alarm.scheduled = None
        if due < _HORIZON_NS:
            due = max(due, not_before_ns)
            alarm.scheduled = self._clock.schedule_at(due, lambda: self._look(counter, alarm))

    def _look(self, counter: str, alarm: CycleAlarm) -> None:
        if self._alarms.get(counter) is not alarm:
            return
        late = self.read(counter) - alarm.expiry
        now = self._clock.now_ns
        if late < 0:  # the counter stood still while time was stolen
            self._schedule(counter, now + 1)
            return
        if alarm.period:
            alarm.expiry += (late // alarm.period + 1) * alarm.period
            self._schedule(counter, now + self._minimal_period_ns)
        else:
            del self._alarms[counter]
        self._expired(alarm.through_lvtt)
