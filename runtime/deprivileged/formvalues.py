"""The values that one form of an instruction takes and gives, in the words of the ABI's specification.

The vocabulary is that of `pvpatch.abi.spec`, without the words for the stack. Everything is read and
written as the instruction itself would do it, in 32-bit code.
"""

from __future__ import annotations

import re
from typing import Protocol

from iced_x86 import Instruction, MemorySizeExt, OpKind, Register

from pvpatch.abi.spec import SEGMENT_INDEX
from runtime.cpu import flags as fl
from runtime.cpu.vcpu import VCpu
from runtime.deprivileged.operands import SEGMENTS, Operands

__all__ = ["ROLES", "FormValues", "GuestBytes"]

ROLES = {"eax": fl.RAX, "edx": fl.RDX, "ecx": fl.RCX, "ebx": fl.RBX, "esi": fl.RSI, "edi": fl.RDI}
"""The ABI's names of registers to those of the CPU state."""
_WORD = 0xFFFFFFFF
_SEGMENT_NUMBERS = {getattr(Register, name.upper()): number for name, number in SEGMENT_INDEX.items()}
_IN_MEMORY = re.compile(r"mem(\d+)\[op(\d)\+(\d+)\]")
_PART = re.compile(r"(index|ea|offset|selector)\[op(\d)\]")


class GuestBytes(Protocol):
    """The guest's memory by linear address."""

    def read_linear(self, linear: int, length: int) -> bytes:
        """Raises `PageFault`."""

    def write_linear(self, linear: int, data: bytes) -> None:
        """Raises `PageFault`."""


class FormValues:
    """One instruction on the CPU's state at the time of each question."""

    def __init__(self, cpu: VCpu, instruction: Instruction, memory: GuestBytes) -> None:
        self._state = cpu.state
        self._instruction = instruction
        self._operands = Operands(cpu, instruction)
        self._memory = memory

    def source(self, text: str) -> int:
        """The value of a source word. Raises `PageFault`."""
        if text.startswith("reg:"):
            return int(self._state.gpr[ROLES[text[4:]]]) & _WORD
        if text.startswith("const:"):
            return int(text[6:]) & _WORD
        place = self._place(text)
        if place is not None:
            return int.from_bytes(self._memory.read_linear(*place), "little")
        if text.startswith("op"):
            return self._operands.value(int(text[2])) & _WORD
        found = _PART.fullmatch(text)
        if found is None:
            raise ValueError(f"no cell has the source {text}")
        return self._part(found[1], int(found[2]))

    def _part(self, what: str, index: int) -> int:
        instruction = self._instruction
        if what == "index":
            register = instruction.op_register(index)
            return _SEGMENT_NUMBERS.get(register, self._operands.number(register))
        if what == "ea":
            based = instruction.memory_segment in (Register.FS, Register.GS)
            return self._linear() if based else self._operands.offset()
        if what == "selector":
            return int(instruction.far_branch_selector)
        wide = instruction.op_kind(index) == OpKind.FAR_BRANCH32
        return int(instruction.far_branch32 if wide else instruction.far_branch16)

    def probe(self, text: str) -> None:
        """Make sure that a destination word can be written. Raises `PageFault`."""
        place = self._place(text)
        if place is not None:
            self._memory.write_linear(place[0], self._memory.read_linear(*place))

    def put(self, text: str, value: int) -> None:
        """Give a destination word its value. Raises `PageFault`."""
        place = self._place(text)
        if place is not None:
            linear, size = place
            self._memory.write_linear(linear, (value & ((1 << 8 * size) - 1)).to_bytes(size, "little"))
        elif text.startswith("reg:"):
            self._state.gpr[ROLES[text[4:]]] = value & _WORD
        elif text.startswith("op"):
            self._operands.set_register(self._instruction.op_register(int(text[2])), value)

    def _place(self, text: str) -> tuple[int, int] | None:
        """Linear address and size in bytes of what a word says to be in memory."""
        if found := _IN_MEMORY.fullmatch(text):
            return self._linear() + int(found[3]) & _WORD, int(found[1]) // 8
        if text.startswith("op") and self._instruction.op_kind(int(text[2])) == OpKind.MEMORY:
            return self._linear(), int(MemorySizeExt.size(self._instruction.memory_size))
        return None

    def _linear(self) -> int:
        segment = self._state.segments[SEGMENTS[self._instruction.memory_segment]]
        return int(segment.base) + self._operands.offset() & _WORD
