"""Missed sites of patched images on VMI: where its guest keeps what they need."""

from __future__ import annotations

from typing import TYPE_CHECKING

from runtime.backends.vmi.resident import FLAT_CODE, FLAT_DATA, place_of
from runtime.cpu import flags as fl
from runtime.deprivileged.missed import SiteHost

if TYPE_CHECKING:
    from runtime.backends.vmi.model import VmiModel

__all__ = ["VmiSites"]


class VmiSites(SiteHost):
    """The `SiteHost` of one VMI guest."""

    def __init__(self, model: VmiModel) -> None:
        super().__init__(model.machine, model.guest, place_of, (FLAT_CODE, FLAT_DATA))
        self._model = model

    def read_linear(self, linear: int, length: int) -> bytes:
        """Guest memory. Raises `PageFault`."""
        return self._model.view.read(linear, length)

    def write_linear(self, linear: int, data: bytes) -> None:
        """Write guest memory. Raises `PageFault`."""
        self._model.view.write(linear, data)

    def interrupt_flag(self) -> int:
        """The interrupt mask."""
        return fl.IF if self._model.interrupts_enabled else 0

    def set_interrupt_flag(self, value: int) -> None:
        """SetInterruptMask."""
        self._model.enable_interrupts(bool(value))
        self.machine.cpu.set_waiting(self._model.interrupts.waiting())
