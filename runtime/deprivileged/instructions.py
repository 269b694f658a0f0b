"""Port instructions of a kernel below privilege 0: they fault, are decoded here and done by the platform."""

from __future__ import annotations

from typing import TYPE_CHECKING

import iced_x86
from iced_x86 import Code

from runtime.cpu import flags as fl
from runtime.cpu.linear import LinearMemory
from runtime.deprivileged.operands import Operands, decode_at

if TYPE_CHECKING:
    from runtime.machine import Machine

__all__ = ["PortInstructions"]

STRING_BATCH = 4096
"""Elements of one string instruction done in one exit; the guest comes back for the rest."""
_WORD = 0xFFFFFFFF
_IN = {
    Code.IN_AL_IMM8: 1, Code.IN_AX_IMM8: 2, Code.IN_EAX_IMM8: 4,
    Code.IN_AL_DX: 1, Code.IN_AX_DX: 2, Code.IN_EAX_DX: 4,
}  # fmt: skip
_OUT = {
    Code.OUT_IMM8_AL: 1, Code.OUT_IMM8_AX: 2, Code.OUT_IMM8_EAX: 4,
    Code.OUT_DX_AL: 1, Code.OUT_DX_AX: 2, Code.OUT_DX_EAX: 4,
}  # fmt: skip
_INS = {Code.INSB_M8_DX: 1, Code.INSW_M16_DX: 2, Code.INSD_M32_DX: 4}
_OUTS = {Code.OUTSB_DX_M8: 1, Code.OUTSW_DX_M16: 2, Code.OUTSD_DX_M32: 4}


class PortInstructions:
    """IN, OUT, INS, OUTS at CS:EIP; `view` is the guest's memory. Methods may raise `PageFault`."""

    def __init__(self, machine: Machine, view: LinearMemory) -> None:
        self._machine = machine
        self._view = view

    def decode(self) -> iced_x86.Instruction | None:
        """The instruction at CS:EIP, None if it cannot be read or is not one."""
        return decode_at(self._machine.cpu, self._view)

    def emulate(self, insn: iced_x86.Instruction) -> bool:
        """Do it and step over it; False if it is no port instruction."""
        state = self._machine.cpu.state
        if insn.code in _IN or insn.code in _OUT:
            self._port(insn)
        elif insn.code in _INS or insn.code in _OUTS:
            reading = insn.code in _INS
            size = _INS[insn.code] if reading else _OUTS[insn.code]
            segment = fl.ES if reading else Operands.segment_index(insn)
            repeats = insn.has_rep_prefix or insn.has_repne_prefix
            if not self.string(size, reading, segment=segment, repeats=repeats):
                return True
        else:
            return False
        state.rip = insn.next_ip32
        return True

    def _port(self, insn: iced_x86.Instruction) -> None:
        gpr = self._machine.cpu.state.gpr
        immediate = any(insn.op_kind(i) == iced_x86.OpKind.IMMEDIATE8 for i in range(2))
        port = insn.immediate8 if immediate else gpr[fl.RDX] & 0xFFFF
        if insn.code in _OUT:
            self.output(port, _OUT[insn.code], gpr[fl.RAX])
        else:
            gpr[fl.RAX] = self.input(port, _IN[insn.code], gpr[fl.RAX])

    def output(self, port: int, size: int, value: int) -> None:
        """OUT: the low `size` bytes of `value`."""
        self._machine.port_out(port, size, value & ((1 << size * 8) - 1))

    def input(self, port: int, size: int, old: int) -> int:
        """IN: EAX afterwards, `old` being EAX before."""
        mask = (1 << size * 8) - 1
        return old & _WORD & ~mask | self._machine.port_in(port, size) & mask

    def string(self, size: int, reading: bool, *, segment: int, repeats: bool) -> bool:
        """INS or OUTS with the registers as they are. True when finished, False when there is more to do.

        The memory side comes first, so that a fault loses no data of the device.
        """
        machine, view = self._machine, self._view
        state = machine.cpu.state
        gpr = state.gpr
        count = gpr[fl.RCX] & _WORD if repeats else 1
        step = -size if machine.cpu.rflags & fl.DF else size
        index = fl.RDI if reading else fl.RSI
        base, port = state.segments[segment].base, gpr[fl.RDX] & 0xFFFF
        todo = min(count, STRING_BATCH)
        for _ in range(todo):
            linear = (base + gpr[index]) & _WORD
            if reading:
                view.write(linear, view.read(linear, size))
                view.write(linear, machine.port_in(port, size).to_bytes(size, "little"))
            else:
                machine.port_out(port, size, int.from_bytes(view.read(linear, size), "little"))
            gpr[index] = (gpr[index] + step) & _WORD
            if repeats:
                gpr[fl.RCX] = (gpr[fl.RCX] - 1) & _WORD
            if machine.is_ending:
                break
        return todo == count
