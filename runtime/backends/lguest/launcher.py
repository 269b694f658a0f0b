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

from runtime.cpu import flags as fl
from runtime.memory import PageFault

if TYPE_CHECKING:
    from runtime.backends.lguest.model import LguestModel

__all__ = ["Launcher", "mnemonic_name"]

_LONGEST = 15
_STRING_BATCH = 4096
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
_SEGMENTS = {
    Register.ES: fl.ES, Register.CS: fl.CS, Register.SS: fl.SS,
    Register.DS: fl.DS, Register.FS: fl.FS, Register.GS: fl.GS,
}  # fmt: skip


_MNEMONIC_NAMES: dict[int, str] = {
    value: name.lower() for name, value in vars(Mnemonic).items() if name.isupper() and isinstance(value, int)
}


def mnemonic_name(insn: iced_x86.Instruction) -> str:
    """The mnemonic in lower case, as iced names it."""
    return _MNEMONIC_NAMES.get(insn.mnemonic, "?")


class Launcher:
    """Decodes and emulates what faulted at the guest's privilege level."""

    def __init__(self, model: LguestModel) -> None:
        self._model = model

    def decode(self) -> iced_x86.Instruction | None:
        """The instruction at CS:EIP, None if it cannot be read or is not one."""
        state = self._model.machine.cpu.state
        linear = (state.segments[fl.CS].base + state.rip) & _WORD
        raw = b""
        for at in range(_LONGEST):
            try:
                raw += self._model.space.read_linear((linear + at) & _WORD, 1)
            except PageFault:
                break
        decoded = iced_x86.Decoder(32, raw, ip=state.rip & _WORD).decode()
        return None if decoded.is_invalid else decoded

    def emulate(self, insn: iced_x86.Instruction) -> bool:
        """Do it and step over it; False if the guest must get its #GP."""
        if insn.code in _IN or insn.code in _OUT:
            self._port(insn)
        elif insn.code in _INS or insn.code in _OUTS:
            if not self._string(insn):
                return True
        elif insn.mnemonic == Mnemonic.CLI:
            pass  # lguest skips it: interrupts are a word in the shared page
        elif insn.code in (Code.MOV_CR_R32, Code.MOV_R32_CR):
            if not self._control(insn):
                return False
        else:
            return False
        state = self._model.machine.cpu.state
        state.rip = insn.next_ip32
        return True

    # -- ports ---------------------------------------------------------------------------------

    def _port(self, insn: iced_x86.Instruction) -> None:
        gpr = self._model.machine.cpu.state.gpr
        immediate = any(insn.op_kind(i) == iced_x86.OpKind.IMMEDIATE8 for i in range(2))
        port = insn.immediate8 if immediate else gpr[fl.RDX] & 0xFFFF
        self._model.count("io")
        if insn.code in _OUT:
            size = _OUT[insn.code]
            self._model.machine.port_out(port, size, gpr[fl.RAX] & ((1 << size * 8) - 1))
            return
        size = _IN[insn.code]
        mask = (1 << size * 8) - 1
        gpr[fl.RAX] = gpr[fl.RAX] & _WORD & ~mask | self._model.machine.port_in(port, size) & mask

    def _string(self, insn: iced_x86.Instruction) -> bool:
        """INS or OUTS. True when finished, False when the guest must execute it again."""
        state = self._model.machine.cpu.state
        gpr = state.gpr
        reading = insn.code in _INS
        size = _INS[insn.code] if reading else _OUTS[insn.code]
        repeats = insn.has_rep_prefix or insn.has_repne_prefix
        count = gpr[fl.RCX] & _WORD if repeats else 1
        step = -size if self._model.machine.cpu.rflags & fl.DF else size
        index = fl.RDI if reading else fl.RSI
        segment = state.segments[fl.ES if reading else _SEGMENTS.get(insn.memory_segment, fl.DS)]
        port = gpr[fl.RDX] & 0xFFFF
        todo = min(count, _STRING_BATCH)
        self._model.count("io_string")
        for _ in range(todo):
            linear = (segment.base + gpr[index]) & _WORD
            try:
                self._element(linear, port, size, reading)
            except PageFault as fault:
                self._model.page_fault(fault.linear, fault.error_code)
                return False
            gpr[index] = (gpr[index] + step) & _WORD
            if repeats:
                gpr[fl.RCX] = (gpr[fl.RCX] - 1) & _WORD
        return todo == count

    def _element(self, linear: int, port: int, size: int, reading: bool) -> None:
        """One element; the memory side is tried first, so that a fault loses no device data."""
        space, machine = self._model.space, self._model.machine
        if not reading:
            data = space.read_linear(linear, size)
            machine.port_out(port, size, int.from_bytes(data, "little"))
            return
        space.write_linear(linear, space.read_linear(linear, size))
        space.write_linear(linear, machine.port_in(port, size).to_bytes(size, "little"))

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
