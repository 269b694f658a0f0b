"""From an instruction to a binding: the specification's operand bindings, applied.

The vocabulary is that of ``pvpatch.abi.spec`` (module documentation there). What cannot be
bound faithfully is refused with a reason; nothing is approximated.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import cache

from iced_x86 import Instruction, MemorySizeExt, OpKind, Register, RegisterExt

from pvpatch.abi.spec import SEGMENT_INDEX, Call, Form, load_spec
from rewriter.emit.assembly import GPR16, GPR32, GPR64, SP, Place
from rewriter.emit.operands import (
    Address,
    Binding,
    Destination,
    HalfOfResult,
    Immediate,
    InMemory,
    InRegister,
    OnStack,
    Source,
)

__all__ = ["Refused", "bind", "number_of", "place_of"]

_MEMORY = re.compile(r"mem(\d+)\[op(\d)\+(\d+)\]")
_STACKED = re.compile(r"stack(\d+)\[(\d+)\]")
_HALF = re.compile(r"pop16\[(\w+)\]")
_INDEXED = re.compile(r"(index|ea|offset|selector)\[op(\d)\]")
_LOW_BYTES = (
    Register.AL,
    Register.CL,
    Register.DL,
    Register.BL,
    Register.SPL,
    Register.BPL,
    Register.SIL,
    Register.DIL,
)


class Refused(Exception):
    """This instruction cannot be turned into its call here; the text says why."""


@cache
def _numbers() -> dict[int, tuple[int, int]]:
    """iced register -> (architectural number, size in bytes)."""
    table: dict[int, tuple[int, int]] = {}
    for size, names in ((8, GPR64), (4, GPR32), (2, GPR16)):
        table |= {getattr(Register, name): (number, size) for number, name in enumerate(names)}
    table |= {register: (number, 1) for number, register in enumerate(_LOW_BYTES)}
    table |= {getattr(Register, f"R{number}L"): (number, 1) for number in range(8, 16)}
    return table


@cache
def _named() -> dict[str, int]:
    return {
        name.lower(): value
        for name, value in vars(Register).items()
        if name.isupper() and isinstance(value, int)
    }


def number_of(register: int) -> int:
    """Architectural number of a general register; Refused for any other."""
    found = _numbers().get(register)
    if found is None:
        raise Refused("an operand is no general register")
    return found[0]


def _role(name: str) -> int:
    """Architectural number of an ABI register role (an i386 name)."""
    return GPR32.index(name.upper())


def place_of(instruction: Instruction, bits: int) -> Place:
    """The memory operand of an instruction; Refused for 16-bit addressing."""
    segment = instruction.segment_prefix
    if instruction.is_ip_rel_memory_operand:
        if instruction.memory_base == Register.EIP:
            raise Refused("its operand is relative to EIP in 64-bit code")
        return Place(displacement=instruction.ip_rel_memory_address, rip=True, segment=segment)
    numbers: list[int | None] = []
    size = 0
    for register in (instruction.memory_base, instruction.memory_index):
        if register == Register.NONE:
            numbers.append(None)
            continue
        number, register_size = _numbers()[register]
        size = register_size
        numbers.append(number)
    size = size or instruction.memory_displ_size
    if size == 2:
        raise Refused("its operand uses 16-bit addressing")
    displacement = instruction.memory_displacement
    if displacement >> 63:
        displacement -= 1 << 64
    elif bits == 32 and displacement >> 31 and numbers != [None, None]:
        displacement -= 1 << 32
    return Place(
        numbers[0],
        numbers[1],
        instruction.memory_index_scale,
        displacement,
        segment,
        address_size=0 if size * 8 == bits else 4,
    )


@dataclass
class _Binder:
    """One instruction being bound."""

    instruction: Instruction
    bits: int
    pushes: int = 0
    pops: int = 0
    notes: list[str] = field(default_factory=list)

    @property
    def word(self) -> int:
        return self.bits // 8

    def place(self, offset: int = 0) -> Place:
        return place_of(self.instruction, self.bits).plus(offset)

    def operand(self, index: int) -> InRegister | InMemory | Immediate:
        """An explicit operand."""
        instruction = self.instruction
        kind = instruction.op_kind(index)
        if kind == OpKind.MEMORY:
            return InMemory(self.place(), self._memory_size())
        if kind != OpKind.REGISTER:
            return Immediate(instruction.immediate(index) & 0xFFFFFFFF)
        number, size = self._general(instruction.op_register(index))
        return InRegister(number, size)

    def _general(self, register: int) -> tuple[int, int]:
        found = _numbers().get(register)
        if found is None:
            raise Refused("an operand is a register that the binding does not know")
        return found

    def _memory_size(self) -> int:
        return int(MemorySizeExt.size(self.instruction.memory_size))

    def index(self, operand: int) -> int:
        """The number of a segment, debug or control register operand."""
        register = self.instruction.op_register(operand)
        if RegisterExt.is_segment_register(register):
            name = next(name for name in SEGMENT_INDEX if _named()[name] == register)
            return SEGMENT_INDEX[name]
        return int(RegisterExt.number(register))

    def source(self, text: str, bits: int) -> Source:
        """What a source word of the specification means here."""
        if text.startswith("op"):
            return _cut(self.operand(int(text[2])), bits)
        if text.startswith("reg:"):
            return InRegister(_role(text[4:]), self.word)
        if text.startswith("const:"):
            return Immediate(int(text[6:]) & 0xFFFFFFFF)
        if text == "pop":
            if self.instruction.stack_pointer_increment != self.word:
                raise Refused("it pops 16 bits")
            self.pops = self.word
            return OnStack(0, self.word)
        if found := _HALF.fullmatch(text):
            self.pops = 2
            return HalfOfResult(load_spec().call(found[1]).number, 0)
        if found := _MEMORY.fullmatch(text):
            return InMemory(self.place(int(found[3])), int(found[1]) // 8)
        if found := _STACKED.fullmatch(text):
            return OnStack(int(found[2]), int(found[1]) // 8)
        found = _INDEXED.fullmatch(text)
        assert found is not None, text
        return self._indexed(found[1], int(found[2]))

    def _indexed(self, what: str, operand: int) -> Source:
        instruction = self.instruction
        if what == "index":
            return Immediate(self.index(operand))
        if what == "ea":
            if instruction.memory_segment in (Register.FS, Register.GS):
                raise Refused("its address is relative to the base of FS or GS")
            return Address(self.place())
        if what == "offset":
            wide = instruction.op_kind(operand) == OpKind.FAR_BRANCH32
            return Immediate(instruction.far_branch32 if wide else instruction.far_branch16)
        return Immediate(instruction.far_branch_selector)

    def destination(self, text: str) -> Destination | None:
        """What a destination word means here; None for ``discard``."""
        if text == "discard":
            return None
        if text == "push":
            if self.instruction.stack_pointer_increment != -self.word:
                raise Refused("it pushes 16 bits")
            self.pushes = self.word
            return OnStack(-self.word, self.word)
        if text == "push16":
            self.pushes = 2
            return OnStack(-2, 2)
        if text.startswith("reg:"):
            return InRegister(_role(text[4:]), self.word)
        if found := _MEMORY.fullmatch(text):
            return InMemory(self.place(int(found[3])), int(found[1]) // 8)
        operand = self.operand(int(text[2]))
        if isinstance(operand, Immediate):
            raise Refused("a result goes to an immediate")
        if isinstance(operand, InRegister) and operand.number == SP:
            raise Refused("a result goes to the stack pointer")
        return operand


def _cut(source: InRegister | InMemory | Immediate, bits: int) -> Source:
    """The part of an operand that the argument counts: selectors are 16 bits of whatever register."""
    if bits and not isinstance(source, Immediate) and source.size * 8 > bits:
        if isinstance(source, InRegister):
            return InRegister(source.number, max(bits // 8, 2))
        return InMemory(source.place, bits // 8)
    return source


def bind(call: Call, form: Form, instruction: Instruction, bits: int) -> Binding:
    """The binding of an instruction to its call; Refused with the reason when there is none."""
    _check_string(instruction, form, bits)
    binder = _Binder(instruction, bits)
    sources = dict(form.args)
    inputs: list[tuple[int, Source]] = []
    stack: dict[int, Source] = {}
    for argument in call.args:
        if argument.name not in sources:
            continue
        source = binder.source(sources[argument.name], argument.bits)
        if argument.stack_index is not None:
            stack[argument.stack_index] = source
        else:
            inputs.append((_role(argument.reg), source))
    outputs, discards = _results(call, form, binder)
    copies = tuple(_copy(binder, target, source) for target, source in form.also)
    extra = int(binder.instruction.immediate(int(form.pops_plus[2]))) if form.pops_plus else 0
    loads_ss = call.name == "segment_load" and (_role("edx"), Immediate(SEGMENT_INDEX["ss"])) in inputs
    return Binding(
        call=call.name,
        number=call.number,
        jump=call.kind == "jump",
        inputs=tuple(inputs),
        outputs=outputs,
        discards=discards,
        copies=copies,
        stack_arguments=tuple(stack[index] for index in sorted(stack)),
        pushes=binder.pushes,
        pops=binder.pops + form.pops + extra,
        loads_ss=loads_ss,
        length=2 if form.next else 1,
    )


def _results(
    call: Call, form: Form, binder: _Binder
) -> tuple[tuple[tuple[int, Destination], ...], frozenset[int]]:
    destinations = dict(form.results)
    outputs: list[tuple[int, Destination]] = []
    discards: set[int] = set()
    for result in call.results:
        destination = binder.destination(destinations.get(result.name, "discard"))
        if destination is None:
            discards.add(_role(result.reg))
            continue
        natural = isinstance(destination, InRegister) and destination.number == _role(result.reg)
        if natural and result.bits in (8, 16):
            destination = InRegister(_role(result.reg), binder.word)  # the call keeps the other bits
        outputs.append((_role(result.reg), destination))
    return tuple(outputs), frozenset(discards)


def _copy(binder: _Binder, target: str, source: str) -> tuple[Source, Destination]:
    operand = binder.operand(int(target[2]))
    if isinstance(operand, Immediate):
        raise Refused("a value goes to an immediate")
    return binder.source(source, 0), operand


def _check_string(instruction: Instruction, form: Form, bits: int) -> None:
    """INS and OUTS work on the segments and address size that the call assumes."""
    if form.insn[:3] not in ("ins", "out") or not instruction.is_string_instruction:
        return
    kinds = {instruction.op_kind(index) for index in range(instruction.op_count)}
    wanted = (
        {OpKind.MEMORY_ESEDI, OpKind.MEMORY_SEG_ESI}
        if bits == 32
        else {OpKind.MEMORY_ESRDI, OpKind.MEMORY_SEG_RSI}
    )
    if not kinds & wanted:
        raise Refused("a string instruction with another address size")
    if instruction.segment_prefix not in (Register.NONE, Register.DS):
        raise Refused("a string instruction with a segment override")
