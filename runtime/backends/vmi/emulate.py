"""Privileged instructions that a VMI kernel keeps native: they fault at privilege 1 and are carried out.

Linux leaves RDMSR, WRMSR and RDPMC as they are under VMI and relies on the hypervisor beneath, which emulated
whatever faulted. An instruction does here what the call that replaces it does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from iced_x86 import Instruction, Mnemonic, Register

from runtime.cpu import flags as fl
from runtime.deprivileged.operands import Operands

if TYPE_CHECKING:
    from runtime.backends.vmi.model import VmiModel

__all__ = ["KernelInstructions"]

_WORD = 0xFFFFFFFF
_CONTROL_REGISTERS = (0, 2, 3, 4)


class KernelInstructions:
    """Carries out one instruction of the kernel's; methods may raise `PageFault` and `CpuFault`."""

    def __init__(self, model: VmiModel) -> None:
        self._model = model

    def emulate(self, instruction: Instruction) -> bool:
        """Do it and step over it; False for an instruction that is not among them."""
        work = _INSTRUCTIONS.get(instruction.mnemonic)
        operands = Operands(self._model.machine.cpu, instruction)
        if work is None or not work(self, operands):
            return False
        operands.skip()
        return True

    def _call(self, name: str, *arguments: int) -> tuple[int, ...]:
        """The call of that name; its results."""
        answer = self._model.calls.handler(name)(*arguments)
        return answer if isinstance(answer, tuple) else () if answer is None else (answer,)

    def _read_pair(self, name: str) -> bool:
        """RDMSR, RDPMC: ECX says which, EDX:EAX is the value."""
        gpr = self._model.machine.cpu.state.gpr
        gpr[fl.RAX], gpr[fl.RDX] = self._call(name, int(gpr[fl.RCX]) & _WORD)
        return True

    def _write_msr(self, _operands: Operands) -> bool:
        gpr = self._model.machine.cpu.state.gpr
        self._call("WRMSR", *(int(gpr[index]) & _WORD for index in (fl.RAX, fl.RDX, fl.RCX)))
        return True

    def _move(self, operands: Operands) -> bool:
        """MOV to and from control and debug registers."""
        instruction = operands.instruction
        for index in (0, 1):
            register, general = instruction.op_register(index), instruction.op_register(1 - index)
            number, write = operands.number(register), index == 0
            if Register.CR0 <= register <= Register.CR15 and number in _CONTROL_REGISTERS:
                if write:
                    self._call(f"SetCR{number}", operands.register(general))
                else:
                    operands.set_register(general, self._model.read_shared(f"cr{number}"))
                return True
            if Register.DR0 <= register <= Register.DR15:
                if write:
                    self._call("SetDR", number, operands.register(general))
                else:
                    operands.set_register(general, self._call("GetDR", number)[0])
                return True
        return False

    def _invalidate(self, operands: Operands) -> bool:
        segment = self._model.machine.cpu.state.segments[operands.segment_index(operands.instruction)]
        self._call("InvalPage", (int(segment.base) + operands.offset()) & _WORD)
        return True

    def _clear_task_switched(self, _operands: Operands) -> bool:
        self._call("CLTS")
        return True

    def _nothing(self, _operands: Operands) -> bool:
        """WBINVD: the emulated machine has no caches."""
        return True


_INSTRUCTIONS: dict[int, Callable[[KernelInstructions, Operands], bool]] = {
    Mnemonic.RDMSR: lambda self, _operands: self._read_pair("RDMSR"),
    Mnemonic.RDPMC: lambda self, _operands: self._read_pair("RDPMC"),
    Mnemonic.WRMSR: KernelInstructions._write_msr,
    Mnemonic.MOV: KernelInstructions._move,
    Mnemonic.INVLPG: KernelInstructions._invalidate,
    Mnemonic.CLTS: KernelInstructions._clear_task_switched,
    Mnemonic.WBINVD: KernelInstructions._nothing,
}
