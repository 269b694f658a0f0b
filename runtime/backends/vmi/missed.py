"""Missed sites of patched images on VMI: where its guest keeps what they need."""

from __future__ import annotations

from typing import TYPE_CHECKING

from runtime.backends.vmi.resident import FLAT_CODE, FLAT_DATA, place_of
from runtime.cpu import flags as fl

if TYPE_CHECKING:
    from runtime.backends.vmi.model import VmiModel
    from runtime.machine import Machine

__all__ = ["VmiSites"]


class VmiSites:
    """The `SiteHost` of one VMI guest."""

    def __init__(self, model: VmiModel) -> None:
        self._model = model

    @property
    def machine(self) -> Machine:
        """The machine."""
        return self._model.machine

    @property
    def flat_selectors(self) -> tuple[int, int]:
        """The resident code's own segments."""
        return FLAT_CODE & ~3, FLAT_DATA & ~3

    def read_linear(self, linear: int, length: int) -> bytes:
        """Guest memory. Raises `PageFault`."""
        return self._model.view.read(linear, length)

    def write_linear(self, linear: int, data: bytes) -> None:
        """Write guest memory. Raises `PageFault`."""
        self._model.view.write(linear, data)

    def _variable(self, name: str) -> int:
        return self._model.machine.memory.size + place_of(name)

    def load_variable(self, name: str) -> int:
        """A variable of the resident code."""
        return self._model.guest.load_u32(self._variable(name))

    def store_variable(self, name: str, value: int) -> None:
        """Set a variable of the resident code."""
        self._model.guest.store_u32(self._variable(name), value)

    def interrupt_flag(self) -> int:
        """The interrupt mask."""
        return fl.IF if self._model.interrupts_enabled else 0

    def set_interrupt_flag(self, value: int) -> None:
        """SetInterruptMask."""
        self._model.enable_interrupts(bool(value))
        self.machine.cpu.set_waiting(self._model.interrupts.waiting())
