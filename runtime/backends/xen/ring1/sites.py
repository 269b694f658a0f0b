"""Missed sites of patched images on Xen: where its guest keeps what they need."""

from __future__ import annotations

from typing import TYPE_CHECKING

from runtime.backends.xen.frames import XenError
from runtime.backends.xen.ring1.resident import place_of
from runtime.backends.xen.selectors import FLAT
from runtime.cpu import flags as fl
from runtime.deprivileged.missed import SiteHost
from runtime.memory import PageFault

if TYPE_CHECKING:
    from runtime.backends.xen.ring1.model import XenRing1

__all__ = ["RingOneSites"]


class RingOneSites(SiteHost):
    """The `SiteHost` of one translated pv32 domain."""

    def __init__(self, model: XenRing1) -> None:
        flat = FLAT[32]["kernel_cs"], FLAT[32]["kernel_ss"]
        super().__init__(model.machine, model.guest, place_of, flat)
        self._model = model

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

    def interrupt_flag(self) -> int:
        """The guest's IF."""
        return self.load_variable("LD_irq_enabled") & fl.IF

    def set_interrupt_flag(self, value: int) -> None:
        """Set the guest's IF; an event that waited for it is raised anew."""
        self.store_variable("LD_irq_enabled", value & fl.IF)
        if value & fl.IF and self.load_variable("LD_irq_pending"):
            self._model.domain.events.mark_upcall()
