"""What a guest below privilege 0 is shown of its own faults: the unwinder at work in the code beside it.

That code keeps the state of the trap it is delivering in variables, whatever path the trap came by: a fault
of the guest's, one of the code itself on behalf of a slot, a gate that cannot be used. Before it looks the
guest's handler up it stops at a HLT. Here the variables become those of the instruction that the guest
believes to run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Protocol

from runtime.cpu import flags as fl
from runtime.cpu.delivery import Event
from runtime.deprivileged.cells import Cells
from runtime.deprivileged.gates import TableHost, gate_at_slot
from runtime.deprivileged.missed import MissedSites
from runtime.unwind.unwinder import Context

if TYPE_CHECKING:
    from runtime.machine import Machine

__all__ = ["FrameHost", "TrapFrames", "TrapVariables"]

_FAULTS = frozenset({
    fl.DE, fl.BR, fl.UD, fl.NM, fl.DOUBLE_FAULT, fl.TS_FAULT, fl.NP, fl.SS_FAULT, fl.GP, fl.PAGE_FAULT,
    fl.MF, fl.AC_FAULT, fl.XM,
})  # fmt: skip
"""Exceptions that are reported at their instruction."""
_SELECTOR_FAULTS = frozenset({fl.TS_FAULT, fl.NP, fl.GP})
"""What a far transfer to a descriptor that the real tables have not can raise."""
_INT_N = 0x1000
"""What the vector says beside of an INT n."""


@dataclass(frozen=True)
class TrapVariables:
    """Names of the variables: of RIP, flags, vector, error code and CS, and by number of the registers that
    are kept in one; the other registers are the guest's still. `stop` is the linear address of the HLT."""

    stop: int
    bits: int
    rip: str
    flags: str
    vector: str
    error: str
    selector: str
    registers: Mapping[int, str]
    entries: Mapping[int, int] = field(default_factory=dict)
    """Addresses that stand for a slot, and the number of its call."""


class FrameHost(TableHost, Protocol):
    """What this needs of a hypervisor."""

    def set_variable(self, name: str, value: int) -> None:
        """Change it."""

    def code_base(self, selector: int) -> int:
        """Base of the kernel's code segment of that selector."""


class TrapFrames:
    """The traps of one machine on their way to the guest's handlers."""

    def __init__(
        self, machine: Machine, host: FrameHost, variables: TrapVariables, cells: Cells, missed: MissedSites
    ) -> None:
        self._machine = machine
        self._host = host
        self._names = variables
        self._cells = cells
        self._missed = missed

    def answered(self, event: Event) -> bool:
        """Was that fault the HLT?"""
        state = self._machine.cpu.state
        if event.vector != fl.GP or event.software or event.error_code or state.rip != self._names.stop:
            return False
        self._machine.stats.exits["trap_shown"] += 1
        self._machine.stats.take_back(event.vector)
        self._show()
        state.rip = self._names.stop + 1
        return True

    def _show(self) -> None:
        presenter = self._machine.presenter
        kind = self._host.variable(self._names.vector)
        vector = kind & 0xFF
        software = bool(kind & _INT_N) or vector not in _FAULTS
        before = self._context()
        number = self._names.entries.get(before.rip)
        refused = None if software else self._refused(vector, before, number)
        if presenter is None:
            if refused is not None:
                self._end(refused, before)
            return
        context = self._missed.withdrawn(self._cells.withdrawn(before), number)
        if number is not None and context is before:
            context = presenter.unwinder.at_slot(context, number)
        shown = presenter.presented(context, Event(vector, software=software))
        self._machine.clock.spend_ns(presenter.cost_ns())
        context = context if shown is None else shown.context
        if not software:
            context = replace(context, flags=context.flags | fl.RF)
        if context != before:
            self._put(context)
        if refused is not None:
            self._end(refused, context)

    def _refused(self, vector: int, context: Context, number: int | None) -> str | None:
        """The gate or TSS that the real tables have not, if that is why a slot faulted."""
        if vector not in _SELECTOR_FAULTS:
            return None
        error_code = self._host.variable(self._names.error)
        return gate_at_slot(self._machine, self._host, context, number, error_code)

    def _end(self, refused: str, context: Context) -> None:
        where, backend = context.code_base + context.rip, self._machine.capabilities.name
        self._machine.crash(
            f"the far transfer at {where:#x} names a {refused}, which is not offered on {backend}"
        )

    def _context(self) -> Context:
        state, names, host = self._machine.cpu.state, self._names, self._host
        registers = [int(value) for value in state.gpr]
        for number, name in names.registers.items():
            registers[number] = host.variable(name)
        mask = (1 << names.bits) - 1
        return Context(
            rip=host.variable(names.rip),
            registers=tuple(value & mask for value in registers),
            flags=host.variable(names.flags),
            bits=names.bits,
            code_base=host.code_base(host.variable(names.selector)),
            stack_base=0 if names.bits == 64 else int(state.segments[fl.SS].base),
        )

    def _put(self, context: Context) -> None:
        state, names, host = self._machine.cpu.state, self._names, self._host
        for number, value in enumerate(context.registers):
            name = names.registers.get(number)
            if name is None:
                state.gpr[number] = value
            else:
                host.set_variable(name, value)
        host.set_variable(names.rip, context.rip)
        host.set_variable(names.flags, context.flags)
