"""Interrupts: INTR of the PC's 8259s and the one vector of LVTT, held back by the shared page's IF word.

Nothing is delivered while EIP is in the hypervisor's part of the address space, except by the calls that
say so (EnableInterrupts, SetInterruptMask, IRET, Halt): an interrupted ROM would show in the frame.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from runtime.cpu import flags as fl
from runtime.cpu.delivery import Event
from runtime.deprivileged.retry import Retry
from runtime.memory import PageFault

if TYPE_CHECKING:
    from runtime.backends.vmi.model import VmiModel

__all__ = ["Interrupts"]

_TIMER_LINE = 0
_RET = 0xC3
_FIRST_VECTOR = 16
"""A local APIC takes no lower vector."""


class Interrupts:
    """What waits, and whether it may come now."""

    def __init__(self, model: VmiModel) -> None:
        self._model = model
        self._retry = Retry(model.machine.clock)
        self._lvtt_waits = False
        self.lvtt = model.known.lvtt_masked

    def alarm(self, through_lvtt: bool) -> None:
        """An alarm has expired."""
        if not through_lvtt:
            line = self._model.machine.platform.pic.line(_TIMER_LINE)
            line(False)
            line(True)
        elif not self.lvtt & self._model.known.lvtt_masked and self.lvtt & 0xFF >= _FIRST_VECTOR:
            self._lvtt_waits = True
            self._model.machine.cpu.set_waiting(self.waiting())

    def pending(self) -> bool:
        """Something waits."""
        return self._lvtt_waits or self._model.machine.platform.has_interrupt()

    def waiting(self) -> bool:
        """True if something is to be delivered as soon as the CPU's interrupt window opens; tells the ROM so.

        The window is the IF word, or, while resident code runs, the CS that the guest does not use.
        """
        model = self._model
        pending = self.pending()
        model.write_shared("pending", int(pending))
        if not pending or model.halted:
            return pending
        model.watch_interrupt_flag()
        if not model.interrupts_enabled or not model.in_own_code() or self._at_return():
            return True
        self._retry.ask()
        return model.watch_resident_code()

    def _at_return(self) -> bool:
        """EIP is on the RET of a ROM call that has been answered."""
        linear = self._model.code_linear() - self._model.text.start
        return 0 <= linear < len(self._model.text.code) and self._model.text.code[linear] == _RET

    def deliver(self) -> None:
        """Deliver what waits, at the current EIP; a ROM call that is answered returns first."""
        if self._at_return():
            try:
                self._model.return_from_call()
            except PageFault as fault:
                self._model.page_fault(fault)
                return
        if self._model.in_own_code():
            return
        self._take()

    def _take(self) -> None:
        if self._lvtt_waits:
            self._lvtt_waits = False
            vector = self.lvtt & 0xFF
        else:
            vector = self._model.machine.platform.acknowledge()
        self._model.deliver(Event(vector, external=True))
        self._model.write_shared("pending", int(self.pending()))

    def deliver_pending(self) -> None:
        """At the end of a call that enables interrupts: what waits comes at once."""
        if self.pending() and self._model.interrupts_enabled:
            self._model.machine.cpu.state.hflags &= ~fl.HF_INHIBIT_IRQ
            self._take()
