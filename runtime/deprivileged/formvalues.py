"""The values that one form of an instruction takes and gives, in the words of the ABI's specification.

The vocabulary is that of `pvpatch.abi.spec`. Everything is read and written as the instruction itself
would do it; only SP stays where it is until a destination pushes.
"""

from __future__ import annotations

import re
from typing import Protocol

from iced_x86 import Instruction, MemorySizeExt, OpKind, Register, RegisterInfo

from pvpatch.abi.spec import SEGMENT_INDEX, Argument, Form
from runtime.cpu import flags as fl
from runtime.cpu.vcpu import VCpu
from runtime.deprivileged.operands import SEGMENTS, Operands
from runtime.memory import PageFault
from runtime.memory.paging import ERROR_WRITE

__all__ = [
    "ROLES",
    "FormValues",
    "GuestBytes",
    "address_mask",
    "put_argument",
    "result_value",
    "segment_base",
]

ROLES = {"eax": fl.RAX, "edx": fl.RDX, "ecx": fl.RCX, "ebx": fl.RBX, "esi": fl.RSI, "edi": fl.RDI}
"""The ABI's names of registers to those of the CPU state."""
_WORD = 0xFFFFFFFF
_UPPER_HALF = 0xFFFF0000
"""The flags that a POPF of 16 bits leaves alone."""
_SEGMENT_NUMBERS = {getattr(Register, name.upper()): number for name, number in SEGMENT_INDEX.items()}
_IN_MEMORY = re.compile(r"mem(\d+)\[op(\d)\+(\d+)\]")
_ON_STACK = re.compile(r"stack(\d+)\[(\d+)\]")
_PART = re.compile(r"(index|ea|offset|selector)\[op(\d)\]")


class GuestBytes(Protocol):
    """The guest's memory by linear address."""

    def read_linear(self, linear: int, length: int) -> bytes:
        """Raises `PageFault`."""

    def write_linear(self, linear: int, data: bytes) -> None:
        """Raises `PageFault`."""


def address_mask(cpu: VCpu) -> int:
    """The bits of an address in code of the present width."""
    return (1 << 64) - 1 if cpu.code_width == 64 else _WORD


def segment_base(cpu: VCpu, index: int) -> int:
    """Base of a segment as accesses see it: in 64-bit mode only FS and GS have one."""
    flat = cpu.code_width == 64 and index not in (fl.FS, fl.GS)
    return 0 if flat else int(cpu.state.segments[index].base)


def put_argument(cpu: VCpu, item: Argument, value: int) -> None:
    """Put an argument into its register, or its pair; one that travels on the stack has none."""
    width = 64 if cpu.code_width == 64 else 32
    for position, role in enumerate(_roles(item, width)):
        cpu.state.gpr[role] = value >> width * position & address_mask(cpu)


def result_value(cpu: VCpu, item: Argument) -> int:
    """What a slot has left in a result's register, or its pair."""
    width = 64 if cpu.code_width == 64 else 32
    parts = (int(cpu.state.gpr[role]) & address_mask(cpu) for role in _roles(item, width))
    value = sum(part << width * position for position, part in enumerate(parts))
    return value & (1 << (item.bits or width)) - 1


def _roles(item: Argument, width: int) -> list[int]:
    return [ROLES["e" + name[1:]] for name in item.registers(width)]


class FormValues:
    """One instruction on the CPU's state at the time of each question."""

    def __init__(self, cpu: VCpu, instruction: Instruction, memory: GuestBytes) -> None:
        self._cpu = cpu
        self._state = cpu.state
        self._mask = address_mask(cpu)
        self._instruction = instruction
        self._operands = Operands(cpu, instruction)
        self._memory = memory

    def source(self, text: str) -> int:
        """The value of a source word. Raises `PageFault`."""
        if text.startswith("reg:"):
            return int(self._state.gpr[ROLES[text[4:]]]) & self._mask
        if text.startswith("const:"):
            return int(text[6:]) & self._mask
        if text.startswith("pop"):
            popped = int.from_bytes(self._memory.read_linear(self._stack(0), self._popped()), "little")
            return popped if text == "pop" else popped | self._cpu.rflags & _UPPER_HALF
        if found := _ON_STACK.fullmatch(text):
            data = self._memory.read_linear(self._stack(int(found[2])), int(found[1]) // 8)
            return int.from_bytes(data, "little")
        place = self._place(text)
        if place is not None:
            return int.from_bytes(self._memory.read_linear(*place), "little")
        if text.startswith("op"):
            return self._operands.value(int(text[2])) & self._mask
        part = _PART.fullmatch(text)
        if part is None:
            raise ValueError(f"{text} is no source")
        return self._part(part[1], int(part[2]))

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
        place = self._pushed() if text.startswith("push") else self._place(text)
        if place is None:
            return
        try:
            present = self._memory.read_linear(*place)
        except PageFault as fault:
            raise PageFault(fault.linear, fault.error_code | ERROR_WRITE) from None
        self._memory.write_linear(place[0], present)

    def put(self, text: str, value: int) -> None:
        """Give a destination word its value. Raises `PageFault`."""
        pushes = text.startswith("push")
        place = self._pushed() if pushes else self._place(text)
        if place is not None:
            linear, size = place
            self._memory.write_linear(linear, (value & ((1 << 8 * size) - 1)).to_bytes(size, "little"))
        elif text.startswith("reg:"):
            self._state.gpr[ROLES[text[4:]]] = value & self._mask
        elif text.startswith("op"):
            register = self._instruction.op_register(int(text[2]))
            self._operands.set_register(register, value & (1 << 8 * int(RegisterInfo(register).size)) - 1)
        if pushes:
            self._state.gpr[fl.RSP] = int(self._state.gpr[fl.RSP]) - self._pushed()[1] & self._mask

    def taken(self, form: Form) -> int:
        """Bytes of the guest's stack that the form consumes before its call."""
        if form.pops:
            return form.pops + (self.source(form.pops_plus) if form.pops_plus else 0)
        return self._popped() if any(text.startswith("pop") for _, text in form.args) else 0

    def _popped(self) -> int:
        return int(self._instruction.stack_pointer_increment)

    def _pushed(self) -> tuple[int, int]:
        size = -int(self._instruction.stack_pointer_increment)
        return self._stack(-size), size

    def _stack(self, offset: int) -> int:
        """Linear address of what lies `offset` bytes above SP."""
        pointer = int(self._state.gpr[fl.RSP]) + offset & self._mask
        return segment_base(self._cpu, fl.SS) + pointer & self._mask

    def _place(self, text: str) -> tuple[int, int] | None:
        """Linear address and size in bytes of what a word says to be in memory."""
        if found := _IN_MEMORY.fullmatch(text):
            return self._linear() + int(found[3]) & self._mask, int(found[1]) // 8
        if text.startswith("op") and self._instruction.op_kind(int(text[2])) == OpKind.MEMORY:
            return self._linear(), int(MemorySizeExt.size(self._instruction.memory_size))
        return None

    def _linear(self) -> int:
        base = segment_base(self._cpu, SEGMENTS[self._instruction.memory_segment])
        return base + self._operands.offset() & self._mask
