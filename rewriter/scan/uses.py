"""What code does with an address that it takes: does it read there, as data, or does it copy what is there?

An address of text in a register may be that of a function, of a string, of a table, or of code that is to run
somewhere else. The code from where it is taken is followed a little way, into calls too, with what registers
and stack slots hold; the first loads, string instructions and comparisons through the address settle it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from iced_x86 import (
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

from rewriter.scan.block import Read
from rewriter.scan.explore import Explorer

__all__ = ["data_uses"]

BUDGET = 96
"""Instructions that one taken address is followed."""
DEPTH = 2
"""Calls into which it is followed."""
LOOK_BACK = 12
"""Instructions before a repeated string instruction in which its count may be set."""

_INFO = InstructionInfoFactory()
_WRITES = (OpAccess.WRITE, OpAccess.READ_WRITE, OpAccess.COND_WRITE, OpAccess.READ_COND_WRITE)
_NEAR = (OpKind.NEAR_BRANCH16, OpKind.NEAR_BRANCH32, OpKind.NEAR_BRANCH64)
_IMMEDIATES = range(OpKind.IMMEDIATE8, OpKind.IMMEDIATE32TO64 + 1)
_STRING_KINDS = {
    OpKind.MEMORY_SEG_ESI: Register.RSI,
    OpKind.MEMORY_SEG_RSI: Register.RSI,
    OpKind.MEMORY_SEG_SI: Register.RSI,
    OpKind.MEMORY_ESEDI: Register.RDI,
    OpKind.MEMORY_ESRDI: Register.RDI,
    OpKind.MEMORY_ESDI: Register.RDI,
}
_MOVS = (Mnemonic.MOVSB, Mnemonic.MOVSW, Mnemonic.MOVSD, Mnemonic.MOVSQ)
_TAKES = (Mnemonic.MOV, Mnemonic.LEA, Mnemonic.PUSH, Mnemonic.POP)
"""How code takes an address: POP takes that behind the call that led there."""
_ARITHMETIC = (Mnemonic.ADD, Mnemonic.SUB, Mnemonic.INC, Mnemonic.DEC)
_CALL_CLOBBERS = tuple(getattr(Register, name) for name in ("RAX", "RCX", "RDX", "R8", "R9", "R10", "R11"))


def _full(register: int) -> int:
    return int(RegisterExt.full_register(register)) if register else 0


def _place_register(instruction: Instruction, operand: int) -> int:
    """The full register that an operand is, else NONE."""
    if instruction.op_count <= operand or instruction.op_kind(operand) != OpKind.REGISTER:
        return int(Register.NONE)
    return _full(instruction.op_register(operand))


@dataclass(frozen=True, slots=True)
class _Pointer:
    """The taken address plus what was added; `moves` when it has been stepped."""

    address: int
    moves: bool = False


@dataclass
class _State:
    """What registers and stack slots hold; slots and `sp` count from the first stack pointer seen."""

    at: int
    registers: dict[int, _Pointer]
    slots: dict[int, _Pointer] = field(default_factory=dict)
    sp: int = 0
    frame: int | None = None
    depth: int = 0

    def fork(self, at: int) -> _State:
        return replace(self, at=at, registers=dict(self.registers), slots=dict(self.slots))

    def key(self) -> tuple[object, ...]:
        """Where it is, and in which registers a pointer is or has moved: a loop is gone through twice."""
        moved = ((register, pointer.moves) for register, pointer in self.registers.items())
        return self.at, self.depth, tuple(sorted(moved))

    def holds_nothing(self) -> bool:
        return not self.registers and not self.slots


def data_uses(explorer: Explorer, address: int, takers: Iterable[int]) -> list[Read]:
    """What the code that takes `address` reads there; empty when it is seen to read nothing."""
    found: list[Read] = []
    for taker in sorted(takers):
        width = explorer.width_at(taker)
        if width in (32, 64):
            found += _Follower(explorer, address, width).run(taker)
    return found


class _Follower:
    def __init__(self, explorer: Explorer, address: int, width: int) -> None:
        self.explorer = explorer
        self.address = address
        self.width = width
        self.word = width // 8
        self.found: list[Read] = []

    def run(self, taker: int) -> list[Read]:
        work, seen = [_State(taker, {})], set[tuple[object, ...]]()
        for count in range(BUDGET):
            if not work:
                break
            state = work.pop()
            instruction = self._decode(state.at)
            key = state.key()
            if instruction is None or key in seen:
                continue
            seen.add(key)
            if count:
                self._look(state, instruction)
            self._step(state, instruction, first=not count)
            if state.holds_nothing():
                continue
            work += self._successors(state, instruction)
        return self.found

    def _decode(self, address: int) -> Instruction | None:
        region = self.explorer.space.find(address)
        if region is None or self.explorer.width_at(address) != self.width:
            return None
        return self.explorer.decoder.instruction_at(address, self.width, region).copy()

    def _note(self, pointer: _Pointer, size: int, *, copied: bool = False) -> None:
        target = self.explorer.space.resolve(pointer.address)
        if target is not None:
            self.found.append(Read(target, 0 if pointer.moves else size, copied))

    # ---- reads ------------------------------------------------------------------------------

    def _look(self, state: _State, instruction: Instruction) -> None:
        """Note the memory operands of one instruction that lead through a held address."""
        for index in range(instruction.op_count):
            kind = instruction.op_kind(index)
            if kind in _STRING_KINDS:
                pointer = state.registers.get(_STRING_KINDS[kind])
                if pointer is not None:
                    copied = instruction.mnemonic in _MOVS and _STRING_KINDS[kind] == Register.RSI
                    self._note(pointer, self._string_size(instruction), copied=copied)
            elif kind == OpKind.MEMORY and instruction.mnemonic not in (Mnemonic.LEA, Mnemonic.NOP):
                self._look_through(state, instruction)

    def _look_through(self, state: _State, instruction: Instruction) -> None:
        base, index = _full(instruction.memory_base), _full(instruction.memory_index)
        size = max(int(MemorySizeExt.size(instruction.memory_size)), 1)
        for register, other in ((base, index), (index, base)):
            pointer = state.registers.get(register)
            if pointer is not None and register not in (Register.RSP, Register.NONE):
                moved = self._add(pointer.address, instruction.memory_displacement)
                self._note(_Pointer(moved, pointer.moves or bool(other)), size)

    def _add(self, address: int, delta: int) -> int:
        return (address + delta) & ((1 << self.width) - 1)

    def _string_size(self, instruction: Instruction) -> int:
        """Bytes that a string instruction covers; 0 when its count is not seen."""
        size = max(int(MemorySizeExt.size(instruction.memory_size)), 1)
        if not (instruction.has_rep_prefix or instruction.has_repne_prefix):
            return 0  # LODS in a loop
        for before in self._before(instruction.ip):
            for used in _INFO.info(before).used_registers():
                if _full(used.register) == Register.RCX and used.access in _WRITES:
                    constant = before.mnemonic == Mnemonic.MOV and before.op1_kind in _IMMEDIATES
                    return size * int(before.immediate(1)) if constant else 0
            if before.flow_control != FlowControl.NEXT:
                break
        return 0

    def _before(self, address: int) -> Iterable[Instruction]:
        region = self.explorer.space.find(address)
        if region is None:
            return
        lengths, offset = self.explorer.lengths[region.index], address - region.vaddr
        for _ in range(LOOK_BACK):
            back = next((n for n in range(1, 16) if offset >= n and lengths[offset - n] == n), 0)
            if not back:
                return
            offset -= back
            instruction = self._decode(region.vaddr + offset)
            if instruction is None:
                return
            yield instruction

    # ---- what the instruction leaves behind -------------------------------------------------

    def _step(self, state: _State, instruction: Instruction, *, first: bool) -> None:
        value = self._value(state, instruction, first=first)
        self._move_stack(state, instruction, value)
        target = _full(instruction.op0_register) if instruction.op0_kind == OpKind.REGISTER else 0
        string = any(instruction.op_kind(index) in _STRING_KINDS for index in range(instruction.op_count))
        for used in _INFO.info(instruction).used_registers():
            register = _full(used.register)
            if used.access in _WRITES and register in state.registers:
                kept = state.registers[register]
                if string or (instruction.mnemonic in _ARITHMETIC and register == target):
                    state.registers[register] = _Pointer(kept.address, moves=True)
                else:
                    del state.registers[register]
        if value is not None and target and instruction.mnemonic != Mnemonic.PUSH:
            state.registers[target] = value

    def _value(self, state: _State, instruction: Instruction, *, first: bool) -> _Pointer | None:
        """The held address that an instruction moves into its first operand."""
        mnemonic = instruction.mnemonic
        if first:
            return _Pointer(self.address) if mnemonic in _TAKES else None
        if mnemonic == Mnemonic.LEA:
            pointer = state.registers.get(_full(instruction.memory_base))
            if pointer is None:
                return None
            moved = self._add(pointer.address, instruction.memory_displacement)
            return _Pointer(moved, pointer.moves or instruction.memory_index != Register.NONE)
        if mnemonic not in (Mnemonic.MOV, Mnemonic.PUSH, Mnemonic.POP):
            return None
        source = 0 if mnemonic == Mnemonic.PUSH else 1
        if mnemonic == Mnemonic.POP:
            return state.slots.get(state.sp)
        if instruction.op_kind(source) == OpKind.REGISTER:
            return state.registers.get(_full(instruction.op_register(source)))
        if instruction.op_kind(source) == OpKind.MEMORY:
            place = self._slot(state, instruction)
            return None if place is None else state.slots.get(place)
        return None

    def _slot(self, state: _State, instruction: Instruction) -> int | None:
        """The stack slot that a memory operand names."""
        if instruction.memory_index != Register.NONE:
            return None
        displacement = int(instruction.memory_displacement)
        sign = 1 << (self.width - 1)
        displacement = ((displacement + sign) & ((1 << self.width) - 1)) - sign
        base = _full(instruction.memory_base)
        if base == Register.RSP:
            return state.sp + displacement
        if base == Register.RBP and state.frame is not None:
            return state.frame + displacement
        return None

    def _move_stack(self, state: _State, instruction: Instruction, value: _Pointer | None) -> None:
        mnemonic = instruction.mnemonic
        if mnemonic == Mnemonic.MOV and instruction.op0_kind == OpKind.MEMORY:
            place = self._slot(state, instruction)
            if place is not None:
                self._store(state, place, value)
        elif mnemonic == Mnemonic.PUSH:
            state.sp -= self.word
            self._store(state, state.sp, value)
        elif mnemonic == Mnemonic.POP:
            state.sp += self.word
        elif _place_register(instruction, 0) == Register.RSP:
            if mnemonic in (Mnemonic.ADD, Mnemonic.SUB) and instruction.op1_kind in _IMMEDIATES:
                amount = int(instruction.immediate(1))
                amount -= (amount >> (self.width - 1)) << self.width
                state.sp += amount if mnemonic == Mnemonic.ADD else -amount
        elif mnemonic == Mnemonic.MOV and _place_register(instruction, 0) == Register.RBP:
            state.frame = state.sp if _place_register(instruction, 1) == Register.RSP else None

    def _store(self, state: _State, place: int, value: _Pointer | None) -> None:
        if value is not None:
            state.slots[place] = value
        else:
            state.slots.pop(place, None)

    # ---- the ways on ------------------------------------------------------------------------

    def _successors(self, state: _State, instruction: Instruction) -> list[_State]:
        flow = instruction.flow_control
        near = instruction.op_count and instruction.op0_kind in _NEAR
        target = instruction.near_branch_target & ((1 << self.width) - 1) if near else 0
        if flow == FlowControl.NEXT:
            return [state.fork(instruction.next_ip)]
        if flow == FlowControl.CONDITIONAL_BRANCH:
            return [state.fork(instruction.next_ip), state.fork(target)]
        if flow == FlowControl.UNCONDITIONAL_BRANCH:
            return [state.fork(target)] if near else []
        if flow in (FlowControl.CALL, FlowControl.INDIRECT_CALL) and instruction.mnemonic == Mnemonic.CALL:
            return self._call(state, instruction.next_ip, target if near else 0)
        return []

    def _call(self, state: _State, behind: int, callee: int) -> list[_State]:
        after = state.fork(behind)
        for register in _CALL_CLOBBERS:
            after.registers.pop(register, None)
        result = [after]
        if callee and state.depth < DEPTH:
            inside = state.fork(callee)
            inside.depth, inside.sp = state.depth + 1, state.sp - self.word
            result.append(inside)
        return result
