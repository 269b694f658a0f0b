"""Registers and memory operands of a decoded instruction, read from and written to the CPU state."""

from __future__ import annotations

from iced_x86 import (
    Decoder,
    DecoderOptions,
    Instruction,
    Mnemonic,
    OpKind,
    Register,
    RegisterExt,
    RegisterInfo,
)

from runtime.cpu import flags as fl
from runtime.cpu.linear import LinearMemory
from runtime.cpu.vcpu import VCpu

__all__ = ["SEGMENTS", "Operands", "decode_at", "is_undefined_move", "mnemonic_name"]

_GPR = (
    Register.RAX, Register.RCX, Register.RDX, Register.RBX,
    Register.RSP, Register.RBP, Register.RSI, Register.RDI,
    Register.R8, Register.R9, Register.R10, Register.R11,
    Register.R12, Register.R13, Register.R14, Register.R15,
)  # fmt: skip
_INDEX = {register: index for index, register in enumerate(_GPR)}
SEGMENTS = {
    Register.ES: fl.ES, Register.CS: fl.CS, Register.SS: fl.SS,
    Register.DS: fl.DS, Register.FS: fl.FS, Register.GS: fl.GS,
}  # fmt: skip
"""Which segment register of the CPU state each is."""
_MNEMONICS: dict[int, str] = {
    value: name.lower() for name, value in vars(Mnemonic).items() if name.isupper() and isinstance(value, int)
}
_IMMEDIATES = range(OpKind.IMMEDIATE8, OpKind.IMMEDIATE32TO64 + 1)


def mnemonic_name(instruction: Instruction) -> str:
    """The mnemonic in lower case, as iced names it."""
    return _MNEMONICS.get(instruction.mnemonic, "?")


def decode_at(cpu: VCpu, linear: LinearMemory) -> Instruction | None:
    """The instruction that RIP is on, or None where no valid one can be read."""
    code = _code_at(cpu, linear)
    if not code:
        return None
    instruction = Decoder(cpu.code_width, code, ip=cpu.state.rip).decode()
    return None if instruction.is_invalid else instruction


def is_undefined_move(cpu: VCpu, linear: LinearMemory) -> bool:
    """Is RIP on a MOV to or from a control or debug register that does not exist?

    CR1, CR5 to CR7, CR9 to CR15, DR8 to DR15 (SDM vol. 2, MOV). The decoder knows such a MOV only if it is
    not to judge it.
    """
    code = _code_at(cpu, linear)
    if not code or not Decoder(cpu.code_width, code).decode().is_invalid:
        return False
    found = Decoder(cpu.code_width, code, DecoderOptions.NO_INVALID_CHECK).decode()
    return found.mnemonic == Mnemonic.MOV and any(
        first <= found.op_register(index) <= last
        for index in range(found.op_count)
        for first, last in ((Register.CR0, Register.CR15), (Register.DR0, Register.DR15))
    )


def _code_at(cpu: VCpu, linear: LinearMemory) -> bytes:
    return linear.try_read(cpu.state.segments[fl.CS].base + cpu.state.rip, 15)


class Operands:
    """Operand access for one instruction."""

    def __init__(self, cpu: VCpu, instruction: Instruction) -> None:
        self.cpu = cpu
        self.instruction = instruction

    def register(self, register: int) -> int:
        """The value of a general register of any size, zero-extended."""
        full = RegisterExt.full_register(register)
        value = int(self.cpu.state.gpr[_INDEX[full]])
        if Register.AH <= register <= Register.BH:
            value >>= 8
        size = RegisterInfo(register).size
        return value & ((1 << 8 * int(size)) - 1)

    def set_register(self, register: int, value: int) -> None:
        """Write a general register as the CPU does: 32-bit writes clear the upper half."""
        index = _INDEX[RegisterExt.full_register(register)]
        size = RegisterInfo(register).size
        old = int(self.cpu.state.gpr[index])
        if size >= 4:
            self.cpu.state.gpr[index] = value & ((1 << 8 * size) - 1)
            return
        shift = 8 if Register.AH <= register <= Register.BH else 0
        mask = ((1 << 8 * size) - 1) << shift
        self.cpu.state.gpr[index] = old & ~mask | value << shift & mask

    def value(self, index: int) -> int:
        """A register or immediate operand."""
        kind = self.instruction.op_kind(index)
        if kind == OpKind.REGISTER:
            return self.register(self.instruction.op_register(index))
        if kind in _IMMEDIATES:
            return int(self.instruction.immediate(index))
        raise ValueError(f"operand {index} of {self.instruction} is neither a register nor a number")

    def offset(self) -> int:
        """Where in its segment the memory operand is."""
        instruction = self.instruction
        offset, bits = instruction.memory_displacement, self.cpu.code_width
        if not instruction.is_ip_rel_memory_operand:
            for register, scale in (
                (instruction.memory_base, 1), (instruction.memory_index, instruction.memory_index_scale),
            ):  # fmt: skip
                if register != Register.NONE:
                    offset += self.register(register) * scale
                    bits = 8 * int(RegisterInfo(register).size)
        return int(offset) & ((1 << bits) - 1)

    @staticmethod
    def segment_index(instruction: Instruction) -> int:
        """Index of the segment register of the memory operand."""
        return SEGMENTS.get(instruction.memory_segment, fl.DS)

    def number(self, register: int) -> int:
        """Which control or debug register (CR3 -> 3)."""
        return int(RegisterInfo(register).number)

    def skip(self) -> None:
        """Go on behind the instruction."""
        self.cpu.state.rip = int(self.instruction.next_ip) & ((1 << 64) - 1)
