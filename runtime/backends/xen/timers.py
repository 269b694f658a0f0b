"""A vcpu's time: published vcpu_time_info, timers, watchdogs, run state (xen/arch/x86/time.c, common/sched).

Every time here is system time in ns since the machine started.
"""

from __future__ import annotations

from collections.abc import Callable

from runtime.backends.xen.frames import XenError
from runtime.backends.xen.layout import ERRNO, struct
from runtime.ports import AlarmHandle, Clock

__all__ = ["RUNSTATES", "Timers"]

RUNSTATES = ("running", "runnable", "blocked", "offline")
MAX_AHEAD_NS = 1 << 50
LATEST_NS = 1 << 60
"""The end of time, 36 years on: the machine's clock counts in parts of a ns."""
SUBSTITUTE_NS = 100_000_000
MIN_PERIOD_NS = 1_000_000
MAX_PERIOD_NS = (1 << 62) - 1
TSC_STABLE = 1
WATCHDOGS = 2
SECOND_NS = 1_000_000_000
REFRESH_NS = SECOND_NS
"""How old published time gets (EPOCH of time.c): guests that scale with 32 bits of ns rely on it."""
CYCLES_PER_NS_SHIFT = 32


class Timers:
    """The single-shot and periodic timers of one vcpu, the domain's watchdogs, and the run state."""

    def __init__(self, clock: Clock, tsc_hz: int) -> None:
        self.clock = clock
        self.tsc_hz = tsc_hz
        self.fired: Callable[[], None] = lambda: None
        self.watchdog_barked: Callable[[], None] = lambda: None
        self._version = 0
        self._single: AlarmHandle | None = None
        self._periodic: AlarmHandle | None = None
        self._watchdogs: dict[int, AlarmHandle] = {}
        self.period_ns = 0
        self.state = "running"
        self.state_since_ns = 0
        self.spent_ns = dict.fromkeys(RUNSTATES, 0)

    @property
    def now_ns(self) -> int:
        """System time."""
        return self.clock.now_ns

    # -- published time ------------------------------------------------------------------------

    def scale(self) -> tuple[int, int]:
        """(mul, shift) such that ns = ((ticks << shift) * mul) >> 32, with mul in the upper half of u32."""
        shift = 0
        while self._mul(shift) >= 1 << 32:
            shift += 1
        while self._mul(shift) < 1 << 31:
            shift -= 1
        return self._mul(shift), shift

    def _mul(self, shift: int) -> int:
        """2**32 times the ns of a tick, for ticks that are shifted left by `shift` first."""
        return (SECOND_NS << CYCLES_PER_NS_SHIFT - shift) // self.tsc_hz

    def time_info(self) -> bytes:
        """struct vcpu_time_info at this moment, under the next even version number."""
        mul, shift = self.scale()
        now = self.now_ns
        self._version = self._version + 2 & 0xFFFFFFFF
        data = struct("vcpu_time_info", 64).pack(
            version=self._version,
            tsc_timestamp=now * self.tsc_hz // SECOND_NS,
            system_time=now,
            tsc_to_system_mul=mul,
            tsc_shift=shift,
            flags=TSC_STABLE,
        )
        return bytes(data)

    def refresh(self, publish: Callable[[], None]) -> None:
        """Publish now and every second (local_time_calibration)."""
        publish()
        self.clock.schedule_in_background(self.now_ns + REFRESH_NS, lambda: self.refresh(publish))

    # -- timers --------------------------------------------------------------------------------

    def schedule(self, due_ns: int, callback: Callable[[], None]) -> AlarmHandle:
        """Call back at a time that a guest named: the past is now, and time ends some day."""
        return self.clock.schedule_at(min(max(due_ns, self.now_ns), LATEST_NS), callback)

    def _cancel(self, handle: AlarmHandle | None) -> None:
        if handle is not None:
            self.clock.cancel(handle)

    def set_timer(self, due_ns: int) -> None:
        """set_timer_op: absolute ns; 0 cancels; absurd values become 100 ms from now, as Xen has it."""
        if due_ns == 0:
            self.stop_single_shot()
        elif due_ns >= 1 << 63 or due_ns - self.now_ns >= MAX_AHEAD_NS:
            self.set_single_shot(self.now_ns + SUBSTITUTE_NS)
        else:
            self.set_single_shot(due_ns)

    def set_single_shot(self, due_ns: int) -> None:
        """The one-shot timer, which set_timer_op and VCPUOP_set_singleshot_timer share; a past time fires
        at once."""
        self._cancel(self._single)
        self._single = self.schedule(due_ns, self.fired)

    def stop_single_shot(self) -> None:
        """VCPUOP_stop_singleshot_timer."""
        self._cancel(self._single)
        self._single = None

    def set_periodic(self, period_ns: int) -> None:
        """VCPUOP_set_periodic_timer. Raises XenError(EINVAL) for a period under 1 ms or past all sense."""
        if not MIN_PERIOD_NS <= period_ns <= MAX_PERIOD_NS:
            raise XenError(ERRNO.EINVAL, f"period {period_ns} ns")
        self.stop_periodic()
        self.period_ns = period_ns
        self._arm_periodic(self.now_ns + period_ns)

    def _arm_periodic(self, due_ns: int) -> None:
        def tick() -> None:
            self.fired()
            if self.period_ns:
                self._arm_periodic(due_ns + self.period_ns)

        self._periodic = self.schedule(due_ns, tick)

    def stop_periodic(self) -> None:
        """VCPUOP_stop_periodic_timer."""
        self.period_ns = 0
        self._cancel(self._periodic)
        self._periodic = None

    def watchdog(self, identifier: int, timeout_s: int) -> int:
        """SCHEDOP_watchdog: identifier 0 asks for a new one (the result is its number), time 0 stops one.

        Raises XenError: EINVAL no such watchdog, ENOSPC both are in use.
        """
        if identifier > WATCHDOGS or (identifier == 0 and timeout_s == 0):
            raise XenError(ERRNO.EINVAL, f"watchdog {identifier} for {timeout_s} s")
        if identifier == 0:
            free = [i for i in range(1, WATCHDOGS + 1) if i not in self._watchdogs]
            if not free:
                raise XenError(ERRNO.ENOSPC, "both watchdogs are in use")
            self._wind(free[0], timeout_s)
            return free[0]
        if identifier not in self._watchdogs:
            raise XenError(ERRNO.EINVAL, f"watchdog {identifier} is not in use")
        self.clock.cancel(self._watchdogs.pop(identifier))
        if timeout_s:
            self._wind(identifier, timeout_s)
        return 0

    def _wind(self, identifier: int, timeout_s: int) -> None:
        due_ns = self.now_ns + timeout_s * SECOND_NS
        self._watchdogs[identifier] = self.schedule(due_ns, lambda: self.watchdog_barked())

    # -- run state -----------------------------------------------------------------------------

    def enter(self, state: str) -> None:
        """Change the run state, accounting the time spent in the old one."""
        now = self.now_ns
        self.spent_ns[self.state] += now - self.state_since_ns
        self.state, self.state_since_ns = state, now

    def runstate(self, width: int) -> bytes:
        """struct vcpu_runstate_info at this moment."""
        layout = struct("runstate_info", width)
        data = layout.pack(state=RUNSTATES.index(self.state), state_entry_time=self.state_since_ns)
        at, _ = layout.place("time")
        for index, name in enumerate(RUNSTATES):
            spent = self.spent_ns[name] + (self.now_ns - self.state_since_ns if name == self.state else 0)
            data[at + 8 * index : at + 8 * index + 8] = spent.to_bytes(8, "little")
        return bytes(data)
