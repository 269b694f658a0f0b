"""Missed sites of patched images on lguest: where its guest keeps what they need."""

from __future__ import annotations

from typing import TYPE_CHECKING

from runtime.backends.lguest.resident import place_of
from runtime.cpu import flags as fl
from runtime.deprivileged.missed import SiteHost

if TYPE_CHECKING:
    from runtime.backends.lguest.model import LguestModel

__all__ = ["LguestSites"]


class LguestSites(SiteHost):
    """The `SiteHost` of one lguest guest."""

    def __init__(self, model: LguestModel) -> None:
        build = model.build
        flat = build.kernel_code << 3, build.kernel_data << 3
        super().__init__(model.machine, model.space.physical, place_of, flat)
        self._model = model

    def read_linear(self, linear: int, length: int) -> bytes:
        """Guest memory. Raises `PageFault`."""
        return self._model.view.read(linear, length)

    def write_linear(self, linear: int, data: bytes) -> None:
        """Write guest memory. Raises `PageFault`."""
        self._model.view.write(linear, data)

    def interrupt_flag(self) -> int:
        """`irq_enabled` of the shared page."""
        return self._model.shared.read("irq_enabled") & fl.IF

    def set_interrupt_flag(self, value: int) -> None:
        """Set `irq_enabled`."""
        self._model.shared.write("irq_enabled", value)
        self._model.interrupt_changed()
