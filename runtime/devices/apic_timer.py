"""The local APIC's timer: one-shot, periodic, and by TSC deadline.

As everywhere here nothing ticks: the count is computed when it is read, and an event is scheduled only
for an expiry that can interrupt. Source: Intel SDM vol. 3, chapter "APIC", section "APIC Timer".
"""

from __future__ import annotations

from collections.abc import Callable

from runtime.ports import AlarmHandle, Clock

__all__ = ["TSC_PER_NS", "ApicTimer"]

TSC_PER_NS = 2
"""The CPU's time-stamp counter runs at 2 GHz."""

_MASKED = 1 << 16
_ONE_SHOT, _PERIODIC, _DEADLINE = 0, 1, 2
_MIN_PERIOD_NS = 20_000
"""Periodic expiries closer than this are merged, as the 8254's are: no handler could take them apart."""
_MASK32, _MASK64 = (1 << 32) - 1, (1 << 64) - 1


class ApicTimer:
    """Counts down at 1 GHz divided by the divide register (as QEMU's does). `expire` requests its interrupt.

    While `waiting` says that the interrupt is requested and not yet taken, further expiries change nothing
    and none are scheduled; `resume` must be called when it is taken.
    """

    def __init__(self, clock: Clock, expire: Callable[[], None], waiting: Callable[[], bool]) -> None:
        self._clock = clock
        self._expire = expire
        self._waiting = waiting
        self._event: AlarmHandle | None = None
        self.lvt = _MASKED
        """Its entry in the local vector table: mask in bit 16, mode in bits 17 and 18."""
        self.divide = 0
        self.initial = 0
        self._started_ns = 0
        self._deadline = 0

    @property
    def _mode(self) -> int:
        return self.lvt >> 17 & 3

    @property
    def _shift(self) -> int:
        """Binary logarithm of the divisor: bits 0, 1 and 3 of the divide register, where 111 is 1."""
        return ((self.divide & 3 | self.divide >> 1 & 4) + 1) & 7

    def write_lvt(self, value: int) -> None:
        """Set the entry. Going to or from deadline mode disarms the timer."""
        self._settle()
        if (self._mode == _DEADLINE) != (value >> 17 & 3 == _DEADLINE):
            self.initial = self._deadline = 0
        self.lvt = value
        self._arm()

    def write_divide(self, value: int) -> None:
        """Set the divide register; a count that runs goes on from where it is."""
        self._settle()
        left = self.current
        self.divide = value & 0xB
        if left:
            self._started_ns = self._clock.now_ns - (self.initial - left << self._shift)
        self._arm()

    def write_initial(self, value: int) -> None:
        """Start a count (0 stops); ignored in deadline mode."""
        if self._mode == _DEADLINE:
            return
        self._settle()
        self.initial = value & _MASK32
        self._started_ns = self._clock.now_ns
        self._arm()

    @property
    def current(self) -> int:
        """The current count."""
        if self._mode == _DEADLINE or not self.initial:
            return 0
        passed = self._clock.now_ns - self._started_ns >> self._shift
        if self._mode == _PERIODIC:
            return self.initial - passed % self.initial
        return max(0, self.initial - passed)

    @property
    def deadline(self) -> int:
        """IA32_TSC_DEADLINE: 0 when nothing is awaited."""
        self._settle()
        return self._deadline

    def write_deadline(self, value: int) -> None:
        """Write IA32_TSC_DEADLINE; ignored in other modes."""
        if self._mode != _DEADLINE:
            return
        self._settle()
        self._deadline = value & _MASK64
        self._arm()

    def resume(self) -> None:
        """The last request was taken: the next expiry matters again."""
        if self._event is None:
            self._arm()

    def stop(self) -> None:
        """Power-up state: nothing counts."""
        self.lvt, self.divide, self.initial, self._deadline = _MASKED, 0, 0, 0
        self._arm()

    # -- events ---------------------------------------------------------------------------------

    def _settle(self) -> None:
        """An expiry that is due has been, though its event comes only at the next block."""
        if self._event is not None and self._event.due_ns <= self._clock.now_ns:
            self._clock.cancel(self._event)
            self._fire()

    def _next_expiry(self) -> int | None:
        """Virtual time of the next expiry, or None."""
        now = self._clock.now_ns
        if self._mode == _DEADLINE:
            return max(now, -(-self._deadline // TSC_PER_NS)) if self._deadline else None
        if not self.initial:
            return None
        period = self.initial << self._shift
        if self._mode == _PERIODIC:
            following = self._started_ns + ((now - self._started_ns) // period + 1) * period
            return max(following, now + _MIN_PERIOD_NS) if period < _MIN_PERIOD_NS else following
        end = self._started_ns + period
        return end if end > now else None

    def _arm(self) -> None:
        if self._event is not None:
            self._clock.cancel(self._event)
            self._event = None
        # A deadline is over when it is reached, whether or not it interrupts.
        if self._mode != _DEADLINE and (self.lvt & _MASKED or self._waiting()):
            return
        due = self._next_expiry()
        if due is not None:
            self._event = self._clock.schedule_at(due, self._fire)

    def _fire(self) -> None:
        self._event = None
        if self._mode == _DEADLINE:
            self._deadline = 0
        if not self.lvt & _MASKED:
            self._expire()
        if self._mode == _PERIODIC:
            self._arm()
