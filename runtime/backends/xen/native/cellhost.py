"""Cells and missed sites of a native x86-64 kernel on Xen: all its segments are flat ones of Xen's."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pvpatch.abi.spec import load_spec
from runtime.backends.xen.frames import XenError
from runtime.backends.xen.native.resident import LOW_HOLE, page_of, place_of, resident
from runtime.cpu import flags as fl
from runtime.deprivileged.cells import CodeRange, LentStack
from runtime.deprivileged.frames import TrapVariables
from runtime.memory import PageFault

if TYPE_CHECKING:
    from runtime.backends.xen.native.model import TranslatedDomain

__all__ = ["NativeHost", "trap_variables"]

_LENT_STACK = page_of("stack") + 2048
"""The lower half of the stack for entries from user mode: nothing lives on it while the kernel runs."""


def trap_variables() -> TrapVariables:
    """Where traps64.s keeps the state of a trap; faults that a call itself raises name its routine."""
    names = {0: "rax", 1: "rcx", 2: "rdx", 4: "rsp", 6: "rsi", 7: "rdi", 10: "r10", 11: "r11"}
    kept = {number: f"S_{name}" for number, name in names.items()}
    labels = resident().labels
    entries = {labels[call.name]: call.number for call in load_spec().calls if call.name in labels}
    state = ("S_rip", "S_flags", "S_vector", "S_error", "S_cs")
    return TrapVariables(labels["trap_shown"], 64, *state, kept, entries)


class NativeHost:
    """The `CellHost`, `SiteHost` and `FrameHost` of one translated domain."""

    def __init__(self, model: TranslatedDomain) -> None:
        self._model = model
        self.stack = LentStack(model.machine.memory.size + _LENT_STACK, LOW_HOLE + _LENT_STACK)

    @property
    def in_kernel(self) -> bool:
        """The guest's kernel runs, not its user mode."""
        return self._model.traps.in_kernel

    @property
    def code_selector(self) -> int:
        """CS as the guest's kernel believes it to be."""
        return self.variable("V_segments") >> 32 * fl.CS & 0xFFFF

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

    def write_as_user(self, linear: int, data: bytes) -> None:
        """Write guest memory under the tables of the mode that runs. Raises `PageFault`."""
        self.write_linear(linear, data)

    def code_range(self, selector: int) -> CodeRange:
        """The kernel's code runs in flat segments; the slot checks the guest's descriptor."""
        return CodeRange(0, 0xFFFFFFFF)

    def page_fault(self, fault: PageFault) -> None:
        """Give the guest a page fault at the current EIP."""
        self._model.domain.cr2 = fault.linear
        self._model.traps.exception(fl.PAGE_FAULT, fault.error_code, True)

    def variable(self, name: str) -> int:
        """A variable of the code beside the guest, 64 bits."""
        return self._model.guest.load_u64(self._model.machine.memory.size + place_of(name))

    def set_variable(self, name: str, value: int) -> None:
        """Change it."""
        self._model.guest.store_u64(self._model.machine.memory.size + place_of(name), value)

    def code_base(self, selector: int) -> int:
        """All code segments are flat."""
        return 0
