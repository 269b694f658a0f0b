"""Pending interrupts: 32 of them, a mask in the shared page, level style, no end of interrupt.

Interrupt 0 is the clock event. Interrupt 1 is INTR of the launcher's 8259 pair, which the guest
acknowledges at the chips themselves (their poll command, or an EOI after reading their registers),
so it stays pending for as long as the chips ask.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from runtime.deprivileged.retry import Retry

if TYPE_CHECKING:
    from runtime.backends.lguest.model import LguestModel
    from runtime.ports import AlarmHandle

__all__ = ["Interrupts"]

_FLAG = 0x200


class Interrupts:
    """What waits for the guest, and whether it may come now."""

    def __init__(self, model: LguestModel) -> None:
        self._model = model
        self._latched = 0
        self._alarm: AlarmHandle | None = None
        self._retry = Retry(model.machine.clock)
        self.quiet_range = (0, 0)
        """EIP range in which the guest wants no interrupts (noirq_start, noirq_end)."""

    def set_clock(self, delta_ns: int) -> None:
        """SET_CLOCKEVENT: one shot, `delta_ns` from now; 0 stops it."""
        clock = self._model.machine.clock
        if self._alarm is not None:
            clock.cancel(self._alarm)
            self._alarm = None
        if delta_ns:
            self._alarm = clock.schedule_at(clock.now_ns + delta_ns, self._clock_fired)

    def _clock_fired(self) -> None:
        self._alarm = None
        self.raise_interrupt(self._model.interface.clock_interrupt)

    def raise_interrupt(self, number: int) -> None:
        """A device of the host asks for attention."""
        self._latched |= 1 << number
        self._model.interrupt_changed()

    def pending(self) -> int:
        """Bitmap of the interrupts that wait and are not blocked."""
        if self._model.shared.address is None:
            return 0
        waiting = self._latched
        if self._model.machine.platform.has_interrupt():
            waiting |= 1 << self._model.interface.controller_interrupt
        return waiting & ~self._model.shared.read("blocked_interrupts")

    def waiting(self) -> bool:
        """True if one is to be delivered as soon as interrupts are enabled; tells the guest so.

        In the quiet range the answer is no, and the question is asked again a moment later.
        """
        if not self.pending():
            return False
        if self._model.halted:
            return True
        if not self._model.shared.read("irq_enabled"):
            self._model.shared.write("irq_pending", _FLAG)
            return True
        if self._is_quiet():
            self._model.shared.write("irq_pending", _FLAG)
            self._retry.ask()
            return False
        return True

    def _is_quiet(self) -> bool:
        start, end = self.quiet_range
        return start <= self._model.machine.cpu.state.rip & 0xFFFFFFFF < end

    def send(self) -> None:
        """Deliver the first pending interrupt if the guest may take it now."""
        model = self._model
        pending = self.pending()
        if not pending:
            if not self._latched:
                model.shared.write("irq_pending", 0)
            return
        if model.halted:
            model.wake()
            model.shared.write("irq_enabled", _FLAG)
        elif self._is_quiet():
            return
        elif not model.shared.read("irq_enabled"):
            model.shared.write("irq_pending", _FLAG)
            return
        number = (pending & -pending).bit_length() - 1
        vector = model.interface.first_vector + number
        model.write_timestamp()
        if model.traps.deliver(vector, None, fault=False):
            self._latched &= ~(1 << number)
            model.machine.stats.interrupts[vector] += 1
            model.machine.trace("interrupt", vector=vector)
        if not pending & (pending - 1):
            model.shared.write("irq_pending", 0)
