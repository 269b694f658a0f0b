"""Following the code of a thunk and its slot with symbols for values, to see where the guest's values are.

A value is a symbol and a number that is added to it: what the register `n` held at the guest's instruction
is `(n, 0)`, its stack pointer minus 8 is `(SP, -8)`, a constant has no symbol; None is anything else. Words
that were pushed are kept by their distance from the guest's stack pointer. Thunks and slots only move
values and call, so this is enough; whatever else an instruction writes becomes None.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from iced_x86 import (
    Code,
    Decoder,
    FlowControl,
    Instruction,
    InstructionInfoFactory,
    MemorySizeExt,
    Mnemonic,
    OpAccess,
    OpKind,
    Register,
    RegisterExt,
)

__all__ = ["FLAGS", "RETURN", "SP", "State", "Value", "follow"]

Value = tuple[int | None, int] | None
SP, FLAGS, RETURN = 4, 16, 17
"""Symbols besides the numbers of registers: the flags, and the return address of a site that calls."""
_STEPS = 400
"""Instructions followed at most: the longest slot of our own has a tenth of that."""
_INFO = InstructionInfoFactory()
_WRITES = (OpAccess.WRITE, OpAccess.COND_WRITE, OpAccess.READ_WRITE, OpAccess.READ_COND_WRITE)
_NEAR = (OpKind.NEAR_BRANCH32, OpKind.NEAR_BRANCH64)
_IMMEDIATES = (
    OpKind.IMMEDIATE8, OpKind.IMMEDIATE16, OpKind.IMMEDIATE32, OpKind.IMMEDIATE64,
    OpKind.IMMEDIATE8TO16, OpKind.IMMEDIATE8TO32, OpKind.IMMEDIATE8TO64, OpKind.IMMEDIATE32TO64,
)  # fmt: skip


@dataclass
class State:
    """What registers (the last one is the flags) and pushed words hold, by distance from the site's SP."""

    registers: list[Value] = field(default_factory=lambda: [(number, 0) for number in range(FLAGS + 1)])
    words: dict[int, Value] = field(default_factory=dict)

    @classmethod
    def at_site(cls, word: int, *, called: bool) -> State:
        """As a thunk begins; `called`: a return address lies on the guest's stack."""
        state = cls()
        if called:
            state.registers[SP] = (SP, -word)
            state.words[-word] = (RETURN, 0)
        return state

    def copy(self) -> State:
        """For one of two ways."""
        return State(list(self.registers), dict(self.words))

    @property
    def depth(self) -> int | None:
        """Bytes below the site's stack pointer; None when the stack is elsewhere."""
        value = self.registers[SP]
        return -value[1] if value is not None and value[0] == SP else None


@dataclass(frozen=True)
class _Step:
    """One instruction in a state."""

    state: State
    instruction: Instruction
    bits: int

    @property
    def word(self) -> int:
        return self.bits // 8

    # -- operands ----------------------------------------------------------------------------------

    def address(self) -> Value:
        """Of the memory operand; None where it depends on what is not known."""
        instruction = self.instruction
        if instruction.is_ip_rel_memory_operand:
            return None, int(instruction.ip_rel_memory_address)
        displacement = int(instruction.memory_displacement)
        base: Value = (None, displacement - (1 << 64) if displacement >> 63 else displacement)
        if self.bits == 32 and base is not None and base[1] >> 31:
            base = None, base[1] - (1 << 32)
        for register, scale in (
            (instruction.memory_base, 1),
            (instruction.memory_index, instruction.memory_index_scale),
        ):
            if register != Register.NONE:
                base = _sum(base, _scaled(self.register(register), scale))
        return base

    def register(self, register: int) -> Value:
        """Of a general register; shorter ones only where they are constant."""
        number, size = _number(register), RegisterExt.size(register)
        if number is None:
            return None
        value = self.state.registers[number]
        if size == self.word or value is None:
            return value
        return (None, value[1] & (1 << 8 * size) - 1) if value[0] is None else None

    def set_register(self, register: int, value: Value) -> None:
        number, size = _number(register), RegisterExt.size(register)
        if number is None:
            return
        if size != self.word and (size != 4 or value is None or value[0] is not None):
            value = None
        self.state.registers[number] = value

    def load(self, address: Value, size: int) -> Value:
        if address is None or address[0] != SP or size != self.word:
            return None
        return self.state.words.get(address[1])

    def store(self, address: Value, size: int, value: Value) -> None:
        if address is None or address[0] != SP:
            return
        words, at = self.state.words, address[1]
        for place in [place for place in words if place < at + size and at < place + self.word]:
            del words[place]
        if size == self.word:
            words[at] = value

    def read(self, index: int) -> Value:
        """An explicit operand."""
        instruction = self.instruction
        kind = instruction.op_kind(index)
        if kind == OpKind.REGISTER:
            return self.register(instruction.op_register(index))
        if kind == OpKind.MEMORY:
            return self.load(self.address(), self.memory_size)
        if kind in _IMMEDIATES:
            return None, int(instruction.immediate(index)) & (1 << self.bits) - 1
        return None

    def write(self, index: int, value: Value) -> None:
        if self.instruction.op_kind(index) == OpKind.REGISTER:
            self.set_register(self.instruction.op_register(index), value)
        else:
            self.store(self.address(), self.memory_size, value)

    @property
    def memory_size(self) -> int:
        return int(MemorySizeExt.size(self.instruction.memory_size))

    def push(self, value: Value) -> None:
        registers = self.state.registers
        registers[SP] = _sum(registers[SP], (None, -self.word))
        self.store(registers[SP], self.word, value)

    def pop(self) -> Value:
        registers = self.state.registers
        value = self.load(registers[SP], self.word)
        registers[SP] = _sum(registers[SP], (None, self.word))
        return value

    # -- the instruction -----------------------------------------------------------------------------

    def run(self) -> list[int]:
        """Change the state; the addresses at which it may go on."""
        instruction = self.instruction
        flow = instruction.flow_control
        behind = int(instruction.next_ip)
        if flow in (FlowControl.NEXT, FlowControl.INTERRUPT):
            self._work()
            return [behind]
        if flow == FlowControl.CALL and instruction.op_kind(0) in _NEAR:
            self.push((None, behind))
            return [int(instruction.near_branch_target)]
        if flow == FlowControl.CONDITIONAL_BRANCH:
            return [behind, int(instruction.near_branch_target)]
        if flow == FlowControl.UNCONDITIONAL_BRANCH and instruction.is_jmp_short_or_near:
            return [int(instruction.near_branch_target)]
        through_memory = instruction.is_jmp_near_indirect and instruction.op0_kind == OpKind.MEMORY
        if instruction.is_call_far or through_memory:
            return self._answered_elsewhere(behind)
        if flow == FlowControl.RETURN and instruction.code in (Code.RETND, Code.RETNQ):
            return _known(self.pop())
        if flow == FlowControl.INDIRECT_BRANCH and instruction.op_kind(0) == OpKind.REGISTER:
            return _known(self.read(0))
        return []

    def _answered_elsewhere(self, behind: int) -> list[int]:
        """A backend's code beside the guest does the call, and comes back: behind its far call, or as RET
        would. It keeps what is no result, and where that is nobody needs to know."""
        stack = self.state.registers[SP]
        self.state.registers = [None] * len(self.state.registers)
        self.state.registers[SP] = stack
        return [behind] if self.instruction.is_call_far else _known(self.pop())

    def _work(self) -> None:
        instruction = self.instruction
        mnemonic = instruction.mnemonic
        if mnemonic == Mnemonic.PUSH and abs(instruction.stack_pointer_increment) == self.word:
            self.push(self.read(0))
        elif mnemonic == Mnemonic.POP and instruction.stack_pointer_increment == self.word:
            self.write(0, self.pop())
        elif mnemonic == Mnemonic.MOV:
            self.write(0, self.read(1))
        elif mnemonic == Mnemonic.LEA:
            self.set_register(instruction.op0_register, self.address())
        elif mnemonic == Mnemonic.XCHG:
            first, second = self.read(0), self.read(1)
            self.write(0, second)
            self.write(1, first)
        elif instruction.code in (Code.PUSHFD, Code.PUSHFQ) and self._full_flags():
            self.push(self.state.registers[FLAGS])
        elif instruction.code in (Code.POPFD, Code.POPFQ) and self._full_flags():
            self.state.registers[FLAGS] = self.pop()
        else:
            self._forget()

    def _full_flags(self) -> bool:
        return abs(int(self.instruction.stack_pointer_increment)) == self.word

    def _forget(self) -> None:
        """What an instruction of the guest's own writes is unknown afterwards."""
        info = _INFO.info(self.instruction)
        moved = int(self.instruction.stack_pointer_increment)
        for used in info.used_memory():
            if used.access in _WRITES and _number(used.base) == SP and used.index == Register.NONE:
                place = _sum(self.state.registers[SP], (None, _signed(int(used.displacement))))
                self.store(place, int(MemorySizeExt.size(used.memory_size)) or 1, None)
        for used in info.used_registers():
            if used.access in _WRITES and (number := _number(used.register)) is not None and number != SP:
                self.state.registers[number] = None
        if moved:
            self.state.registers[SP] = _sum(self.state.registers[SP], (None, moved))
        elif any(u.access in _WRITES and _number(u.register) == SP for u in info.used_registers()):
            self.state.registers[SP] = self._adjusted()
        if self.instruction.rflags_modified:
            self.state.registers[FLAGS] = None

    def _adjusted(self) -> Value:
        """The stack pointer after ADD or SUB of a constant."""
        sign = {Mnemonic.ADD: 1, Mnemonic.SUB: -1}.get(self.instruction.mnemonic)
        amount = self.read(1) if sign is not None and self.instruction.op_count == 2 else None
        if sign is None or amount is None or amount[0] is not None:
            return None
        return _sum(self.state.registers[SP], (None, sign * _signed(amount[1], self.bits)))


def follow(
    start: int,
    arrived: Callable[[int], bool],
    state: State,
    bits: int,
    fetch: Callable[[int], bytes],
) -> Iterator[tuple[int, State]]:
    """Where code that begins at `start` may arrive, and in which states, nearest first.

    `fetch` gives the bytes at an address, none where the code ends.
    """
    pending = [(start, state)]
    seen: set[tuple[int, Value]] = set()
    for _ in range(_STEPS):
        if not pending:
            return
        at, now = pending.pop(0)
        if arrived(at):
            yield at, now.copy()
        top = now.registers[SP]
        if (at, top) in seen:
            continue
        seen.add((at, top))
        instruction = Decoder(bits, fetch(at), ip=at).decode()
        if instruction.is_invalid:
            continue
        for way in _Step(now, instruction, bits).run():
            pending.append((way & (1 << bits) - 1, now.copy()))


def _number(register: int) -> int | None:
    """Architectural number of a general register, None for any other."""
    if not RegisterExt.is_gpr(register):
        return None
    return int(RegisterExt.number(RegisterExt.full_register(register)))


def _sum(first: Value, second: Value) -> Value:
    if first is None or second is None or (first[0] is not None and second[0] is not None):
        return None
    return first[0] if first[0] is not None else second[0], first[1] + second[1]


def _scaled(value: Value, scale: int) -> Value:
    if value is None or scale == 1:
        return value
    return (None, value[1] * scale) if value[0] is None else None


def _known(value: Value) -> list[int]:
    return [value[1]] if value is not None and value[0] is None else []


def _signed(value: int, bits: int = 64) -> int:
    value &= (1 << bits) - 1
    return value - (1 << bits) if value >> bits - 1 else value
