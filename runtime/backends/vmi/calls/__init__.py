"""The calls behind the ROM: where a VMCALL stands says which one it is.

A handler takes the arguments that interface.toml lists and gives the values for the result registers in
order (None for none). It may raise `PageFault` or `CpuFault`: the guest gets the fault at the ROM's
instruction and comes back to it, as for an instruction of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from runtime.backends.vmi.calls.control import control_handlers
from runtime.backends.vmi.calls.cpu import cpu_handlers
from runtime.backends.vmi.calls.memory import memory_handlers
from runtime.backends.vmi.calls.ports import port_handlers
from runtime.backends.vmi.calls.tables import table_handlers
from runtime.backends.vmi.calls.time import time_handlers
from runtime.backends.vmi.interface import VmiCall
from runtime.cpu import flags as fl
from runtime.cpu.delivery import CpuFault
from runtime.memory import PageFault

if TYPE_CHECKING:
    from runtime.backends.vmi.model import VmiModel

__all__ = ["CLOBBERED", "CallTable", "Handler"]

Handler = Callable[..., tuple[int, ...] | int | None]
CLOBBERED = 0xDEAD_C0DE
"""What a call leaves in registers that it may destroy: a guest that relies on them fails here."""
EXIT_COST_NS = 500
"""What the hypervisor takes for itself at every call that leaves the ROM: stolen time."""
_VMCALL_LENGTH = 3
_WORD = 0xFFFFFFFF
_REGISTERS = {
    "eax": fl.RAX, "ecx": fl.RCX, "edx": fl.RDX, "ebx": fl.RBX, "esi": fl.RSI, "edi": fl.RDI,
}  # fmt: skip


class CallTable:
    """Dispatch and register convention."""

    def __init__(self, model: VmiModel) -> None:
        self._model = model
        self._handlers: dict[str, Handler] = {
            **cpu_handlers(model),
            **table_handlers(model),
            **memory_handlers(model),
            **port_handlers(model),
            **time_handlers(model),
        }
        self._control = control_handlers(model)

    def handler(self, name: str) -> Handler:
        """What carries out a call that returns to its caller."""
        return self._handlers[name]

    def enter(self, linear: int) -> bool:
        """The VMCALL at `linear`: False if no call of the ROM's is there."""
        model = self._model
        found = model.text.exits.get(linear)
        if found is None:
            return False
        call = model.known.calls[found]
        model.count(f"vmi_{call.name}")
        model.machine.trace("hypercall", number=call.number, name=call.name)
        model.counters.steal(EXIT_COST_NS)
        model.on_call()
        try:
            control = self._control.get(call.name)
            if control is not None:
                control()
            else:
                self._answer(call)
        except PageFault as fault:
            model.page_fault(fault)
        except CpuFault as fault:
            model.fault(fault)
        return True

    def _answer(self, call: VmiCall) -> None:
        state = self._model.machine.cpu.state
        gpr = state.gpr
        answer = self._handlers[call.name](*(self._argument(where) for where in call.arguments))
        values = answer if isinstance(answer, tuple) else () if answer is None else (answer,)
        if len(values) != len(call.result):
            return  # not finished: the guest executes the VMCALL again
        if call.clobbers == "c":
            gpr[fl.RAX] = gpr[fl.RCX] = gpr[fl.RDX] = CLOBBERED
        for name, value in zip(call.result, values, strict=True):
            gpr[_REGISTERS[name]] = value & _WORD
        state.rip += _VMCALL_LENGTH

    def _argument(self, where: str) -> int:
        """A register, or a word above the return address."""
        state = self._model.machine.cpu.state
        if where in _REGISTERS:
            return int(state.gpr[_REGISTERS[where]]) & _WORD
        return self._model.stack_word(1 + int(where[1:]))
