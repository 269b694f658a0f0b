"""Moving a guest's instruction into a thunk at a fixed address, out of code that copies itself.

The site is a CALL through memory, so the return address on top of the stack is the only
thing that knows where the code runs: everything relative is computed from it. ``anchor`` is
the linked address that this return address stands for.
"""

from __future__ import annotations

from iced_x86 import (
    Code,
    Instruction,
    InstructionInfoFactory,
    Mnemonic,
    OpAccess,
    OpKind,
    Register,
    RegisterExt,
)

from rewriter.emit.assembly import SP, Assembly, Label, Place
from rewriter.emit.binding import Refused, number_of, place_of
from rewriter.emit.relocate import ends_block, is_direct_branch, is_direct_call

__all__ = ["check_absolute", "finish_absolute", "relocate_absolute"]

_INFO = InstructionInfoFactory()
_STACK_POINTERS = (Register.SP, Register.ESP, Register.RSP)
_SIMPLE_PUSH = (Code.PUSH_R64, Code.PUSH_R32)
_SIMPLE_POP = (Code.POP_R64, Code.POP_R32)
_PUSH_IMMEDIATE = (Code.PUSHD_IMM8, Code.PUSHD_IMM32, Code.PUSHQ_IMM8, Code.PUSHQ_IMM32)


def check_absolute(instruction: Instruction, bits: int, last: bool) -> str:
    """Why an instruction that can be moved nearby cannot be moved to a fixed address; else empty."""
    try:
        relocate_absolute(Assembly(bits), instruction, instruction.next_ip, last)
    except (Refused, OverflowError) as reason:
        return str(reason)
    return ""


def relocate_absolute(asm: Assembly, instruction: Instruction, anchor: int, last: bool) -> None:
    """Append a moved instruction; Refused when it depends on where it stands in a way not covered."""
    if is_direct_branch(instruction):
        _branch(asm, instruction, anchor)
    elif is_direct_call(instruction):
        if not last:
            raise Refused("a call in the middle")
        _call(asm, instruction, anchor)
    elif ends_block(instruction):
        if instruction.mnemonic != Mnemonic.RET:
            raise Refused("an indirect jump")
        asm.move_stack(asm.word)
        asm.add(instruction.copy(), origin=instruction.ip)
    elif instruction.is_ip_rel_memory_operand:
        _relative_load(asm, instruction, anchor)
    elif instruction.code in _SIMPLE_PUSH + _PUSH_IMMEDIATE:
        _push(asm, instruction)
    elif instruction.code in _SIMPLE_POP and instruction.op0_register not in _STACK_POINTERS:
        asm.load(number_of(instruction.op0_register), Place(SP, displacement=asm.word))
        asm.pop_at(Place(SP))
    elif instruction.mnemonic in (Mnemonic.ADD, Mnemonic.SUB) and _is_immediate_to_stack_pointer(instruction):
        _adjust(asm, instruction)
    else:
        _plain(asm, instruction)


def finish_absolute(asm: Assembly, anchor: int, end: int) -> None:
    """Return to ``end`` of the window."""
    _bump(asm, end - anchor)
    asm.ret()


def _bump(asm: Assembly, delta: int) -> None:
    """Add to the return address on top of the stack without touching a flag."""
    if delta:
        asm.push(0)
        asm.load(0, Place(SP, displacement=asm.word))
        asm.address(0, Place(0, displacement=delta))
        asm.store(Place(SP, displacement=asm.word), 0)
        asm.pop(0)


def _branch(asm: Assembly, instruction: Instruction, anchor: int) -> None:
    delta = instruction.near_branch_target - anchor
    if instruction.is_jmp_short_or_near:
        _bump(asm, delta)
        asm.ret()
        return
    if not instruction.is_jcc_short_or_near:
        raise Refused("LOOP or JECXZ")
    skip = Label("not taken")
    inverse = instruction.copy()
    inverse.negate_condition_code()
    inverse.as_near_branch()
    asm.add(inverse, target=skip)
    _bump(asm, delta)
    asm.ret()
    asm.place(skip)


def _call(asm: Assembly, instruction: Instruction, anchor: int) -> None:
    """The return address becomes the call's own; the target goes below it and is returned to."""
    _bump(asm, instruction.next_ip - anchor)
    asm.move_stack(-asm.word)
    asm.push(0)
    asm.load(0, Place(SP, displacement=2 * asm.word))
    asm.address(0, Place(0, displacement=instruction.near_branch_target - instruction.next_ip))
    asm.store(Place(SP, displacement=asm.word), 0)
    asm.pop(0)
    asm.ret()


def _relative_load(asm: Assembly, instruction: Instruction, anchor: int) -> None:
    """LEA and MOV into a general register."""
    full = instruction.code in (Code.LEA_R64_M, Code.MOV_R64_RM64) and instruction.op1_kind == OpKind.MEMORY
    if not full or instruction.op0_register in _STACK_POINTERS:
        raise Refused("an operand relative to RIP")
    number = number_of(instruction.op0_register)
    place = Place(
        number, displacement=instruction.ip_rel_memory_address - anchor, segment=instruction.segment_prefix
    )
    asm.load(number, Place(SP))
    if instruction.code == Code.LEA_R64_M:
        asm.address(number, place)
    else:
        asm.load(number, place)


def _push(asm: Assembly, instruction: Instruction) -> None:
    """The return address moves down and the pushed value takes its old place."""
    if instruction.op0_kind == OpKind.REGISTER and instruction.op0_register in _STACK_POINTERS:
        raise Refused("PUSH of the stack pointer")
    asm.push_at(Place(SP))
    home = Place(SP, displacement=asm.word)
    if instruction.op0_kind == OpKind.REGISTER:
        asm.store(home, number_of(instruction.op0_register))
    else:
        asm.store_value(home, instruction.immediate(0))


def _is_immediate_to_stack_pointer(instruction: Instruction) -> bool:
    return (
        instruction.op0_kind == OpKind.REGISTER
        and instruction.op0_register in (Register.ESP, Register.RSP)
        and instruction.op1_kind
        in (OpKind.IMMEDIATE8TO32, OpKind.IMMEDIATE32, OpKind.IMMEDIATE8TO64, OpKind.IMMEDIATE32TO64)
    )


def _adjust(asm: Assembly, instruction: Instruction) -> None:
    """ADD or SUB of a constant: the same sum is made in another register, so the flags are the same."""
    amount = instruction.immediate(1)
    if not asm.word <= amount <= 1 << 16:
        raise Refused("it changes the stack pointer")
    summed = instruction.copy()
    summed.op0_register = asm.register(0)
    word = asm.word
    asm.push(0)
    asm.address(0, Place(SP, displacement=2 * word))
    asm.add(summed)
    if instruction.mnemonic == Mnemonic.ADD:
        asm.load(0, Place(SP, displacement=word))
        asm.store(Place(SP, displacement=word + amount), 0)
        asm.pop(0)
        asm.move_stack(amount)
        return
    asm.move_stack(-amount)
    asm.load(0, Place(SP, displacement=amount + word))
    asm.store(Place(SP, displacement=word), 0)
    asm.load(0, Place(SP, displacement=amount))
    asm.move_stack(word)


def _plain(asm: Assembly, instruction: Instruction) -> None:
    """Anything else: it may use the stack pointer only as the base of its memory operand."""
    if instruction.stack_pointer_increment or instruction.is_stack_instruction:
        raise Refused("it moves the stack pointer")
    uses = [
        used
        for used in _INFO.info(instruction).used_registers()
        if RegisterExt.full_register(used.register) == Register.RSP
    ]
    if any(used.access != OpAccess.READ for used in uses):
        raise Refused("it changes the stack pointer")
    operands = [
        instruction.op_register(index)
        for index in range(instruction.op_count)
        if instruction.op_kind(index) == OpKind.REGISTER
    ]
    if any(register in _STACK_POINTERS for register in operands):
        raise Refused("it reads the stack pointer")
    moved = instruction.copy()
    if uses:
        _shift(moved, asm)
    asm.add(moved, origin=instruction.ip)


def _shift(instruction: Instruction, asm: Assembly) -> None:
    """A memory operand based on the stack pointer, one word further."""
    place = place_of(instruction, asm.bits)
    if place.base != SP:
        raise Refused("it uses the stack pointer in an unusual way")
    displacement = place.displacement + asm.word
    if not -(1 << 31) <= displacement < 1 << 31:
        raise Refused("its displacement is at the limit")
    instruction.memory_displacement = displacement & (2**64 - 1 if asm.bits == 64 else 2**32 - 1)
    instruction.memory_displ_size = 1 if -128 <= displacement < 128 else asm.word
