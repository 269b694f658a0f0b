"""Missed sites of patched images on Xen: where its guest keeps what they need."""

from __future__ import annotations

from typing import TYPE_CHECKING

from runtime.backends.xen.frames import XenError
from runtime.backends.xen.ring1.resident import place_of
from runtime.backends.xen.selectors import FLAT
from runtime.cpu import flags as fl
from runtime.memory import PageFault

if TYPE_CHECKING:
    from runtime.backends.xen.ring1.model import XenRing1
    from runtime.machine import Machine

__all__ = ["RingOneSites"]


class RingOneSites:
    """The `SiteHost` of one translated pv32 domain."""

    def __init__(self, model: XenRing1) -> None:
        self._model = model

    @property
    def machine(self) -> Machine:
        """The machine."""
        return self._model.machine

    @property
    def flat_selectors(self) -> tuple[int, int]:
        """Xen's flat segments, with RPL 0."""
        return FLAT[32]["kernel_cs"] & ~3, FLAT[32]["kernel_ss"] & ~3

    def read_linear(self, linear: int, length: int) -> bytes:
        """Guest memory. Raises `PageFault`."""
        try:
            return self._model.domain.space.read(linear, length)
        except XenError:
            raise PageFault(linear, 0) from None

    def write_linear(self, linear: int, data: bytes) -> None:
        """Write guest memory. Raises `PageFault`."""
        try:
            self._model.domain.space.write(linear, data)
        except XenError:
            raise PageFault(linear, 2) from None

    def _variable(self, name: str) -> int:
        return self._model.machine.memory.size + place_of(name)

    def load_variable(self, name: str) -> int:
        """A variable of the resident code."""
        return self._model.guest.load_u32(self._variable(name))

    def store_variable(self, name: str, value: int) -> None:
        """Set a variable of the resident code."""
        self._model.guest.store_u32(self._variable(name), value)

    def interrupt_flag(self) -> int:
        """The guest's IF."""
        return self.load_variable("LD_irq_enabled") & fl.IF

    def set_interrupt_flag(self, value: int) -> None:
        """Set the guest's IF; an event that waited for it is raised anew."""
        self.store_variable("LD_irq_enabled", value & fl.IF)
        if value & fl.IF and self.load_variable("LD_irq_pending"):
            self._model.domain.events.mark_upcall()
