"""One counter of an Intel 8254, computed from the clock instead of counted.

A counter never ticks here: its output and value are functions of the CLK pulse number, so an
idle counter costs nothing. Source: Intel 8254 data sheet (order 231164-005), "Mode definitions".
Time is a number of CLK pulses (`tick`) since the machine started.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Counter8254"]

_SOFTWARE = (0, 4)
_TRIGGERED = (1, 5)
_PERIODIC = (2, 3)


@dataclass(frozen=True)
class _Run:
    """Counting since `start`, the pulse that loaded `count` into the counting element."""

    start: int
    count: int
    high_first: bool = True
    """Mode 3 only: whether the first half cycle is the high one."""

    @property
    def high(self) -> int:
        """Mode 3: pulses of the high half; the longer one for an odd count."""
        return (self.count + 1) // 2

    def phase(self, tick: int) -> int:
        """Mode 3: pulses since the last start of a high half."""
        return (tick - self.start + (0 if self.high_first else self.high)) % self.count

    def half_end(self, tick: int) -> int:
        """Mode 3: the first pulse after `tick` that ends a half cycle."""
        phase = self.phase(tick)
        return tick + (self.high - phase if phase < self.high else self.count - phase)

    def cycle_end(self, tick: int) -> int:
        """Mode 2: the first pulse after `tick` that reloads the counter."""
        return tick + self.count - (tick - self.start) % self.count


class Counter8254:
    """A counter with its count register, latches, gate and output."""

    def __init__(self, gate: bool) -> None:
        self.gate = gate
        self.mode = 0
        self.bcd = False
        self.access = 3
        self._run: _Run | None = None
        self._held: int | None = None
        """Pulses counted when the gate stopped counting, None while it counts."""
        self._next: tuple[int, int] | None = None
        """(pulse, count) at which a periodic counter takes a new count."""
        self._register = 0
        self._low_byte: int | None = None
        self._latched: list[int] = []
        self._status: int | None = None
        self._read_high = False

    # -- programming ----------------------------------------------------------------------

    def control(self, value: int) -> None:
        """A control word other than a latch command: stops the counter until a count is written."""
        self.access = value >> 4 & 3
        mode = value >> 1 & 7
        self.mode = mode & 3 if mode > 5 else mode
        self.bcd = bool(value & 1)
        self._run = self._held = self._next = self._low_byte = self._status = None
        self._latched = []
        self._read_high = False
        self._register = 0

    def write(self, value: int, tick: int) -> None:
        """One byte of a new count."""
        if self.access == 1:
            self._load(value, tick)
        elif self.access == 2:
            self._load(value << 8, tick)
        elif self._low_byte is None:
            self._low_byte = value
            if self.mode == 0:
                self._run = None
        else:
            low, self._low_byte = self._low_byte, None
            self._load(value << 8 | low, tick)

    def _load(self, register: int, tick: int) -> None:
        self._sync(tick)
        self._register = self._decode(register) or self._modulus
        if self.mode in _PERIODIC:
            self._register = max(self._register, 2)  # a count of 1 is illegal there
        if self.mode in _TRIGGERED:
            return
        if self.mode in _PERIODIC and self._run is not None and self.gate and tick >= self._run.start:
            end = self._run.half_end(tick) if self.mode == 3 else self._run.cycle_end(tick)
            self._next = (end, self._register)
        else:
            self._start(tick)

    def _start(self, tick: int) -> None:
        """Load the counting element at the next pulse."""
        self._run = _Run(tick + 1, self._register)
        self._next = None
        self._held = None if self.gate or self.mode in _TRIGGERED else 0

    def set_gate(self, level: bool, tick: int) -> None:
        """Drive the GATE input."""
        if level == self.gate:
            return
        self._sync(tick)
        self.gate = level
        if self.mode in _TRIGGERED:
            if level and self._register:
                self._start(tick)
        elif self._run is None:
            return
        elif self.mode in _PERIODIC:
            if level:
                self._start(tick)
            else:
                self._held = max(0, tick - self._run.start)
        elif level:
            self._run = _Run(tick - (self._held or 0), self._run.count)
            self._held = None
        else:
            self._held = max(0, tick - self._run.start)

    def _sync(self, tick: int) -> None:
        """Let a pending count of a periodic counter take effect if its pulse has come."""
        if self._next is None or self._run is None or tick < self._next[0]:
            return
        self._run = self._after_next()
        self._next = None

    def _after_next(self) -> _Run:
        """The run that begins when the pending count is loaded."""
        assert self._run is not None and self._next is not None
        pulse, count = self._next
        return _Run(pulse, count, self.mode != 3 or self._run.phase(pulse) == 0)

    # -- what the counter shows -------------------------------------------------------------

    @property
    def _modulus(self) -> int:
        return 10_000 if self.bcd else 0x10000

    def _decode(self, register: int) -> int:
        if not self.bcd:
            return register
        thousands, hundreds, tens, ones = (register >> shift & 15 for shift in (12, 8, 4, 0))
        return (thousands * 1000 + hundreds * 100 + tens * 10 + ones) % 10_000

    def _encode(self, value: int) -> int:
        value %= self._modulus
        if not self.bcd:
            return value
        return value // 1000 << 12 | value // 100 % 10 << 8 | value // 10 % 10 << 4 | value % 10

    def _elapsed(self, run: _Run, tick: int) -> int:
        return self._held if self._held is not None else max(0, tick - run.start)

    def output(self, tick: int) -> bool:
        """Level of OUT."""
        self._sync(tick)
        run = self._run
        if run is None or tick < run.start:
            return self.mode != 0
        elapsed = self._elapsed(run, tick)
        if self.mode == 0:
            return elapsed >= run.count
        if self.mode == 1:
            return elapsed >= run.count
        if self.mode in _PERIODIC and self._held is not None:
            return True
        if self.mode == 2:
            return (tick - run.start) % run.count != run.count - 1
        if self.mode == 3:
            return run.phase(tick) < run.high
        return elapsed != run.count

    def value(self, tick: int) -> int:
        """The counting element, as read (BCD if so programmed)."""
        self._sync(tick)
        run = self._run
        if run is None:
            return self._encode(self._register)
        elapsed = self._elapsed(run, tick)
        if self.mode == 2:
            return self._encode(run.count - elapsed % run.count)
        if self.mode == 3:
            phase = run.phase(run.start + elapsed)
            half = phase if phase < run.high else phase - run.high
            return self._encode(run.count - run.count % 2 - 2 * half)
        return self._encode(run.count - elapsed)

    def null_count(self, tick: int) -> bool:
        """True until the count last written is in the counting element."""
        self._sync(tick)
        if self._next is not None or self._low_byte is not None or self._run is None:
            return True
        return tick < self._run.start

    def next_rise(self, tick: int) -> int | None:
        """The first pulse after `tick` at which OUT goes from low to high, None if it never will."""
        self._sync(tick)
        run = self._run
        if run is None or self._held is not None:
            return None
        if self.mode in _PERIODIC:
            return self._next_periodic_rise(run, max(tick, run.start))
        pulse = run.start + run.count + (1 if self.mode > 3 else 0)
        return pulse if pulse > tick else None

    def _next_periodic_rise(self, run: _Run, tick: int) -> int:
        if self.mode == 2:
            return run.cycle_end(tick)
        rise = tick + run.count - run.phase(tick)
        if self._next is None or rise <= self._next[0]:
            return rise
        after = self._after_next()
        return after.start if after.high_first else after.start + after.count - after.high

    # -- reading ------------------------------------------------------------------------------

    def latch_count(self, tick: int) -> None:
        """Counter latch command; ignored while an earlier latch has not been read."""
        if self._latched:
            return
        value = self.value(tick)
        low, high = value & 0xFF, value >> 8
        self._latched = {1: [low], 2: [high]}.get(self.access, [low, high])

    def latch_status(self, tick: int) -> None:
        """Read-back of the status byte; ignored while an earlier one has not been read."""
        if self._status is None:
            self._status = (
                self.output(tick) << 7
                | self.null_count(tick) << 6
                | self.access << 4
                | self.mode << 1
                | int(self.bcd)
            )

    def read(self, tick: int) -> int:
        """One byte: latched status first, then the latched count, then the running count."""
        if self._status is not None:
            status, self._status = self._status, None
            return status
        if self._latched:
            return self._latched.pop(0)
        value = self.value(tick)
        if self.access == 3:
            self._read_high = not self._read_high
            return value & 0xFF if self._read_high else value >> 8
        return value >> 8 if self.access == 2 else value & 0xFF
