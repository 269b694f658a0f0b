"""The launcher's part: privileged instructions of the guest that fault, as lguest 4.2 and later do it.

lguest's host hands a #GP(0) of the guest to its launcher, which emulates IN and OUT against its
devices. Ours has the PC's devices. Two things go beyond lguest and are options of this host: writes
of CR0 and CR4 take effect for the bits WP, TS, EM, MP, PAE and the FPU enables (a real lguest fixes
them when its kernel is compiled), and string I/O works.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import iced_x86
from iced_x86 import Code, Mnemonic, Register

from runtime.deprivileged.instructions import PortInstructions
from runtime.memory import PageFault

if TYPE_CHECKING:
    from runtime.backends.lguest.model import LguestModel

__all__ = ["Launcher"]

_WORD = 0xFFFFFFFF


class Launcher:
    """Decodes and emulates what faulted at the guest's privilege level."""

    def __init__(self, model: LguestModel) -> None:
        self._model = model
        self._ports = PortInstructions(model.machine, model.view)

    def decode(self) -> iced_x86.Instruction | None:
        """The instruction at CS:EIP, None if it cannot be read or is not one."""
        return self._ports.decode()

    def emulate(self, insn: iced_x86.Instruction) -> bool:
        """Do it and step over it; False if the guest must get its #GP."""
        try:
            if self._ports.emulate(insn):
                self._model.count("io")
                return True
        except PageFault as fault:
            self._model.page_fault(fault.linear, fault.error_code)
            return True
        if insn.code in (Code.MOV_CR_R32, Code.MOV_R32_CR):
            if not self._control(insn):
                return False
        elif insn.mnemonic != Mnemonic.CLI:  # lguest skips it: interrupts are a word in the shared page
            return False
        self._model.machine.cpu.state.rip = insn.next_ip32
        return True

    # -- control registers ---------------------------------------------------------------------

    def _control(self, insn: iced_x86.Instruction) -> bool:
        gpr = self._model.machine.cpu.state.gpr
        writing = insn.code == Code.MOV_CR_R32
        first, second = insn.op0_register, insn.op1_register
        control, general = (first, second) if writing else (second, first)
        if control not in (Register.CR0, Register.CR4):
            return False
        index = general - Register.EAX
        self._model.count("control_register")
        if writing:
            value = gpr[index] & _WORD
            if control == Register.CR0:
                self._model.set_cr0(value)
            else:
                self._model.set_cr4(value)
        else:
            gpr[index] = self._model.cr0 if control == Register.CR0 else self._model.cr4
        return True
