"""A vcpu's time: published vcpu_time_info, timers, run state (xen/arch/x86/time.c, common/schedule.c).

Every time here is system time in ns since the machine started.
"""

from __future__ import annotations

from collections.abc import Callable

from runtime.backends.xen.frames import PhysicalMemory, XenError
from runtime.backends.xen.layout import ERRNO, struct
from runtime.ports import AlarmHandle, Clock

__all__ = ["RUNSTATES", "Timers"]

RUNSTATES = ("running", "runnable", "blocked", "offline")
MAX_AHEAD_NS = 1 << 50
SUBSTITUTE_NS = 100_000_000
MIN_PERIOD_NS = 1_000_000
TSC_STABLE = 1


class Timers:
    """The single-shot and periodic timers of one vcpu, and its run state."""

    def __init__(self, clock: Clock, memory: PhysicalMemory, tsc_hz: int) -> None:
        self.clock = clock
        self.memory = memory
        self.tsc_hz = tsc_hz
        self.fired: Callable[[], None] = lambda: None
        self._timer: AlarmHandle | None = None
        self._single: AlarmHandle | None = None
        self._periodic: AlarmHandle | None = None
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
        shift, mul = 0, (1_000_000_000 << 32) // self.tsc_hz
        while mul >= 1 << 32:
            shift, mul = shift + 1, mul >> 1
        while mul < 1 << 31:
            shift, mul = shift - 1, mul << 1
        return mul, shift

    def publish(self, address: int, tsc: int) -> None:
        """Write vcpu_time_info at a machine address, version odd while it changes."""
        layout = struct("vcpu_time_info", 64)
        at, _ = layout.place("version")
        version = int.from_bytes(self.memory.load(address + at, 4), "little") + 2 & 0xFFFFFFFE
        mul, shift = self.scale()
        data = layout.pack(
            version=version,
            tsc_timestamp=tsc,
            system_time=self.now_ns,
            tsc_to_system_mul=mul,
            tsc_shift=shift,
            flags=TSC_STABLE,
        )
        self.memory.store(address, bytes(data))

    # -- timers --------------------------------------------------------------------------------

    def _cancel(self, handle: AlarmHandle | None) -> None:
        if handle is not None:
            self.clock.cancel(handle)

    def set_timer(self, due_ns: int) -> None:
        """set_timer_op: absolute ns; 0 cancels; absurd values become 100 ms from now, as Xen has it."""
        self._cancel(self._timer)
        self._timer = None
        if due_ns == 0:
            return
        if due_ns >= 1 << 63 or due_ns - self.now_ns > MAX_AHEAD_NS:
            due_ns = self.now_ns + SUBSTITUTE_NS
        self._timer = self.clock.schedule_at(due_ns, self.fired)

    def set_single_shot(self, due_ns: int, must_be_future: bool) -> None:
        """VCPUOP_set_singleshot_timer. Raises XenError(ETIME as EINVAL) never: a past time fires at once."""
        self._cancel(self._single)
        self._single = self.clock.schedule_at(max(due_ns, self.now_ns), self.fired)

    def stop_single_shot(self) -> None:
        """VCPUOP_stop_singleshot_timer."""
        self._cancel(self._single)
        self._single = None

    def set_periodic(self, period_ns: int) -> None:
        """VCPUOP_set_periodic_timer. Raises XenError(EINVAL) for a period under 1 ms."""
        if period_ns < MIN_PERIOD_NS:
            raise XenError(ERRNO.EINVAL, f"period {period_ns} ns is under 1 ms")
        self.stop_periodic()
        self.period_ns = period_ns
        self._arm_periodic(self.now_ns + period_ns)

    def _arm_periodic(self, due_ns: int) -> None:
        def tick() -> None:
            self.fired()
            if self.period_ns:
                self._arm_periodic(due_ns + self.period_ns)

        self._periodic = self.clock.schedule_at(due_ns, tick)

    def stop_periodic(self) -> None:
        """VCPUOP_stop_periodic_timer."""
        self.period_ns = 0
        self._cancel(self._periodic)
        self._periodic = None

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
