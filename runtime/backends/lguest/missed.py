"""Missed sites of patched images on lguest: where its guest keeps what they need."""

from __future__ import annotations

from typing import TYPE_CHECKING

from runtime.backends.lguest.resident import place_of
from runtime.cpu import flags as fl

if TYPE_CHECKING:
    from runtime.backends.lguest.model import LguestModel
    from runtime.machine import Machine

__all__ = ["LguestSites"]


class LguestSites:
    """The `SiteHost` of one lguest guest."""

    def __init__(self, model: LguestModel) -> None:
        self._model = model

    @property
    def machine(self) -> Machine:
        """The machine."""
        return self._model.machine

    @property
    def flat_selectors(self) -> tuple[int, int]:
        """The host's own flat segments."""
        return self._model.build.kernel_code << 3, self._model.build.kernel_data << 3

    def read_linear(self, linear: int, length: int) -> bytes:
        """Guest memory. Raises `PageFault`."""
        return self._model.space.read_linear(linear, length)

    def write_linear(self, linear: int, data: bytes) -> None:
        """Write guest memory. Raises `PageFault`."""
        self._model.space.write_linear(linear, data)

    def _variable(self, name: str) -> int:
        return self._model.machine.memory.size + place_of(name)

    def load_variable(self, name: str) -> int:
        """A variable of the resident code."""
        return self._model.space.physical.load_u32(self._variable(name))

    def store_variable(self, name: str, value: int) -> None:
        """Set a variable of the resident code."""
        self._model.space.physical.store_u32(self._variable(name), value)

    def interrupt_flag(self) -> int:
        """`irq_enabled` of the shared page."""
        return self._model.shared.read("irq_enabled") & fl.IF

    def set_interrupt_flag(self, value: int) -> None:
        """Set `irq_enabled`."""
        self._model.shared.write("irq_enabled", value)
        self._model.interrupt_changed()
