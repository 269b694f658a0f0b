"""MC146818 real-time clock and the PC's CMOS memory behind ports 0x70 and 0x71.

The clock starts at a fixed date and follows virtual time, so a run does not depend on the host.
Source: Motorola MC146818A data sheet; CMOS locations as IBM's AT BIOS uses them.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from runtime.devices.interfaces import NANOSECONDS, IrqLine
from runtime.ports import AlarmHandle, Clock

__all__ = ["DEFAULT_EPOCH", "Rtc"]

DEFAULT_EPOCH = datetime(2024, 1, 1, tzinfo=UTC)
"""The date at the start of every run."""

_SECONDS, _SECONDS_ALARM, _MINUTES, _MINUTES_ALARM, _HOURS, _HOURS_ALARM = range(6)
_WEEKDAY, _DAY, _MONTH, _YEAR, _A, _B, _C, _D = range(6, 14)
_CENTURY = 0x32
_A_UIP = 0x80
_B_SET, _B_PIE, _B_AIE, _B_UIE, _B_BINARY, _B_24H = 0x80, 0x40, 0x20, 0x10, 0x04, 0x02
_C_IRQF, _C_PF, _C_AF, _C_UF = 0x80, 0x40, 0x20, 0x10
_D_VALID = 0x80
_UIP_NS = 2_228_000
"""UIP rises 244 us before the update, which takes 1984 us with a 32.768 kHz crystal."""

_TIME_REGISTERS = (_SECONDS, _MINUTES, _HOURS, _WEEKDAY, _DAY, _MONTH, _YEAR, _CENTURY)


class Rtc:
    """The clock, its interrupts on IRQ8, and 128 bytes of memory that describe the machine."""

    ports: tuple[int, ...] = (0x70, 0x71)

    def __init__(
        self, clock: Clock, irq: IrqLine, memory_bytes: int, epoch: datetime = DEFAULT_EPOCH
    ) -> None:
        self._clock = clock
        self._irq = irq
        self._index = 0
        self._base = epoch
        """Date and time at virtual time `_base_ns`."""
        self._base_ns = 0
        self._halted_at: datetime | None = None
        self._cmos = bytearray(128)
        self._cmos[_A] = 0x26
        self._cmos[_B] = _B_24H
        self._flags = 0
        self._flags_ns = 0
        self._event: AlarmHandle | None = None
        self._describe(memory_bytes)

    def _describe(self, memory_bytes: int) -> None:
        """Memory sizes and equipment where firmware leaves them."""
        kib = memory_bytes >> 10
        base = min(639, kib)
        above_1m = min(max(kib - 1024, 0), 0xFFFF)
        above_16m = min(max(kib - 16 * 1024, 0) >> 6, 0xFFFF)
        for low, value in ((0x15, base), (0x17, above_1m), (0x30, above_1m), (0x34, above_16m)):
            self._cmos[low : low + 2] = value.to_bytes(2, "little")
        self._cmos[0x14] = 0x06  # a coprocessor, a mouse port, VGA, no floppy
        checksum = sum(self._cmos[0x10:0x2E])
        self._cmos[0x2E], self._cmos[0x2F] = checksum >> 8 & 0xFF, checksum & 0xFF

    # -- time -----------------------------------------------------------------------------------

    def _now(self) -> datetime:
        if self._halted_at is not None:
            return self._halted_at
        seconds = (self._clock.now_ns - self._base_ns) // NANOSECONDS
        try:
            return self._base + timedelta(seconds=seconds)
        except OverflowError:
            return self._base

    def _fields(self, when: datetime) -> dict[int, int]:
        hour = when.hour
        control = self._cmos[_B]
        if not control & _B_24H:
            hour = (hour + 11) % 12 + 1
        values = {
            _SECONDS: when.second,
            _MINUTES: when.minute,
            _HOURS: hour,
            _WEEKDAY: when.isoweekday() % 7 + 1,
            _DAY: when.day,
            _MONTH: when.month,
            _YEAR: when.year % 100,
            _CENTURY: when.year // 100,
        }
        encoded = {register: self._encode(value) for register, value in values.items()}
        encoded[_CENTURY] = when.year // 100 // 10 << 4 | when.year // 100 % 10
        if not control & _B_24H and when.hour >= 12:
            encoded[_HOURS] |= 0x80
        return encoded

    def _encode(self, value: int) -> int:
        return value if self._cmos[_B] & _B_BINARY else value // 10 << 4 | value % 10

    def _decode(self, value: int) -> int:
        return value if self._cmos[_B] & _B_BINARY else (value >> 4) * 10 + (value & 15)

    def _set_time(self, register: int, value: int) -> None:
        """Change one field; a date that does not exist is brought to the nearest one that does."""
        now = self._now()
        fields = self._fields(now)
        fields[register] = value
        hours = fields[_HOURS]
        hour = self._decode(hours & 0x7F)
        if not self._cmos[_B] & _B_24H:
            hour = hour % 12 + (12 if hours & 0x80 else 0)
        century = (fields[_CENTURY] >> 4) * 10 + (fields[_CENTURY] & 15)
        year = min(max(century * 100 + self._decode(fields[_YEAR]) % 100, 1), 9998)
        start = datetime(year, min(max(self._decode(fields[_MONTH]), 1), 12), 1, tzinfo=UTC)
        last = (start.replace(day=28) + timedelta(days=4)).replace(day=1) - timedelta(days=1)
        moved = start.replace(
            day=min(max(self._decode(fields[_DAY]), 1), last.day),
            hour=min(hour, 23),
            minute=min(self._decode(fields[_MINUTES]), 59),
            second=min(self._decode(fields[_SECONDS]), 59),
        )
        if self._halted_at is not None:
            self._halted_at = moved
        else:
            self._base += moved - now

    # -- interrupts -------------------------------------------------------------------------------

    @property
    def _period_ns(self) -> int:
        """Period of the periodic interrupt, 0 when the divider or the rate selects none."""
        rate = self._cmos[_A] & 0x0F
        if rate == 0 or self._cmos[_A] & 0x70 != 0x20:
            return 0
        return (1 << (rate - 1 if rate > 2 else rate + 6)) * NANOSECONDS // 32768

    def _collect(self) -> None:
        """Raise the flags whose moment has come since they were looked at last."""
        now, before = self._clock.now_ns, self._flags_ns
        self._flags_ns = now
        if self._period_ns and now // self._period_ns > before // self._period_ns:
            self._flags |= _C_PF
        if self._halted_at is not None:
            return
        passed = (now - self._base_ns) // NANOSECONDS - (before - self._base_ns) // NANOSECONDS
        if passed > 0:
            self._flags |= _C_UF
            current = self._now()
            if any(self._alarm_at(current - timedelta(seconds=ago)) for ago in range(min(passed, 3600))):
                self._flags |= _C_AF

    def _alarm_at(self, when: datetime) -> bool:
        """True if the alarm registers match; 0xC0 and above mean any value."""
        fields = self._fields(when)
        pairs = ((_SECONDS, _SECONDS_ALARM), (_MINUTES, _MINUTES_ALARM), (_HOURS, _HOURS_ALARM))
        return all(self._cmos[alarm] >= 0xC0 or self._cmos[alarm] == fields[field] for field, alarm in pairs)

    def _update(self) -> None:
        """Drive IRQ8 and wait for the next moment that an enabled interrupt may have."""
        self._collect()
        active = bool(self._flags & self._cmos[_B] & (_C_PF | _C_AF | _C_UF))
        self._irq(active)
        if self._event is not None:
            self._clock.cancel(self._event)
            self._event = None
        now = self._clock.now_ns
        moments = []
        if self._cmos[_B] & _B_PIE and self._period_ns:
            moments.append((now // self._period_ns + 1) * self._period_ns)
        if self._cmos[_B] & (_B_AIE | _B_UIE) and self._halted_at is None:
            moments.append(now + NANOSECONDS - (now - self._base_ns) % NANOSECONDS)
        if moments and not active:
            self._event = self._clock.schedule_at(min(moments), self._update)

    # -- registers --------------------------------------------------------------------------------

    def read(self, port: int) -> int:
        """Read the register chosen by port 0x70, which itself cannot be read."""
        if port == 0x70:
            return 0xFF
        index = self._index
        if index == _A:
            return self._cmos[_A] & 0x7F | (_A_UIP if self._updating() else 0)
        if index == _C:
            self._collect()
            flags, self._flags = self._flags, 0
            active = flags & self._cmos[_B] & (_C_PF | _C_AF | _C_UF)
            self._update()
            return flags | (_C_IRQF if active else 0)
        if index == _D:
            return _D_VALID
        if index in _TIME_REGISTERS:
            return self._fields(self._now())[index]
        return self._cmos[index]

    def _updating(self) -> bool:
        left = NANOSECONDS - (self._clock.now_ns - self._base_ns) % NANOSECONDS
        return self._halted_at is None and left <= _UIP_NS

    def write(self, port: int, value: int) -> None:
        """Choose a register (bit 7 is the NMI mask, which masks nothing here) or write it."""
        if port == 0x70:
            self._index = value & 0x7F
            return
        index = self._index
        if index in (_C, _D):
            return
        if index in _TIME_REGISTERS:
            self._set_time(index, value)
            return
        if index == _B:
            self._write_control(value)
        else:
            self._cmos[index] = value & 0x7F if index == _A else value
        if index <= _B:
            self._update()

    def _write_control(self, value: int) -> None:
        """Register B. SET stops the clock, so that it can be written field by field."""
        if value & _B_SET and self._halted_at is None:
            self._halted_at = self._now()
        elif not value & _B_SET and self._halted_at is not None:
            self._base, self._halted_at = self._halted_at, None
            self._base_ns = self._flags_ns = self._clock.now_ns
        self._cmos[_B] = value & ~_B_UIE if value & _B_SET else value
