"""Cycle counters, alarms and the wall clock; the local APIC's timer vector, which is all there is of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from runtime.devices.rtc import DEFAULT_EPOCH

if TYPE_CHECKING:
    from runtime.backends.vmi.calls import Handler
    from runtime.backends.vmi.model import VmiModel

__all__ = ["time_handlers"]

_NS_PER_S = 1_000_000_000
_WORD = 0xFFFFFFFF
_APIC_REGISTER = 0xFF0


def _pair(value: int) -> tuple[int, int]:
    return value & _WORD, value >> 32 & _WORD


class _Time:
    def __init__(self, model: VmiModel) -> None:
        self._model = model
        self._alarm = model.known.alarm

    def _counter(self, flags: int) -> str | None:
        """The counter that the low byte names, None for none."""
        index = flags & self._alarm.counter_mask
        return self._alarm.counters[index] if index < len(self._alarm.counters) else None

    def read(self, which: int) -> tuple[int, int]:
        """GetCycleCounter; a counter that does not exist stands at 0."""
        index = which if which < len(self._alarm.counters) else None
        return (0, 0) if index is None else _pair(self._model.counters.read(self._alarm.counters[index]))

    def set_alarm(self, flags: int, expiry: int, expiry_high: int, period: int, period_high: int) -> None:
        """SetAlarm: one alarm per counter; a period counts only with the periodic flag."""
        counter = self._counter(flags)
        if counter is None:
            return
        repeats = period_high << 32 | period if flags & self._alarm.periodic else 0
        self._model.counters.arm(
            counter, expiry_high << 32 | expiry, repeats, through_lvtt=bool(flags & self._alarm.wired_lvtt)
        )

    def cancel(self, flags: int) -> int:
        """CancelAlarm."""
        counter = self._counter(flags)
        return int(counter is not None and self._model.counters.cancel(counter))

    def wallclock(self) -> tuple[int, int]:
        """GetWallclockTime: nanoseconds since 1970, UTC."""
        return _pair(int(DEFAULT_EPOCH.timestamp()) * _NS_PER_S + self._model.machine.clock.now_ns)

    def apic_write(self, address: int, value: int) -> None:
        """APICWrite: only the timer's vector exists."""
        if address & _APIC_REGISTER == self._model.known.lvtt:
            self._model.interrupts.lvtt = value & (self._model.known.lvtt_masked | 0xFF)

    def apic_read(self, address: int) -> int:
        """APICRead: 0 for what does not exist."""
        return self._model.interrupts.lvtt if address & _APIC_REGISTER == self._model.known.lvtt else 0


def time_handlers(model: VmiModel) -> dict[str, Handler]:
    """Call name -> handler. The wall clock of this host is never stepped, so it is never `updated`."""
    time = _Time(model)
    return {
        "GetCycleFrequency": lambda: _pair(model.counters.frequency),
        "GetCycleCounter": time.read,
        "SetAlarm": time.set_alarm,
        "CancelAlarm": time.cancel,
        "GetWallclockTime": time.wallclock,
        "WallclockUpdated": lambda: 0,
        "APICWrite": time.apic_write,
        "APICRead": time.apic_read,
    }
