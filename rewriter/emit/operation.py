"""What an instruction does, in a form that can be compared: wherever it stands, however it is encoded."""

from __future__ import annotations

from iced_x86 import Decoder, Encoder, Instruction, OpKind, Register, RegisterExt

__all__ = ["operation", "survives_encoding"]

_IMMEDIATES = (
    OpKind.IMMEDIATE8,
    OpKind.IMMEDIATE8_2ND,
    OpKind.IMMEDIATE16,
    OpKind.IMMEDIATE32,
    OpKind.IMMEDIATE64,
    OpKind.IMMEDIATE8TO16,
    OpKind.IMMEDIATE8TO32,
    OpKind.IMMEDIATE8TO64,
    OpKind.IMMEDIATE32TO64,
)


def operation(instruction: Instruction) -> tuple[object, ...]:
    """What an instruction does: opcode, prefixes, every operand with absolute addresses."""
    operands: list[object] = []
    for index in range(instruction.op_count):
        kind = instruction.op_kind(index)
        operands.append(kind)
        if kind == OpKind.REGISTER:
            operands.append(instruction.op_register(index))
        elif kind == OpKind.MEMORY:
            operands += memory(instruction)
        elif kind in (OpKind.NEAR_BRANCH16, OpKind.NEAR_BRANCH32, OpKind.NEAR_BRANCH64):
            operands.append(instruction.near_branch_target)
        elif kind in (OpKind.FAR_BRANCH16, OpKind.FAR_BRANCH32):
            operands += [instruction.far_branch_selector, instruction.far_branch32]
        elif kind in _IMMEDIATES:
            operands.append(instruction.immediate(index))
    prefixes = (
        instruction.has_lock_prefix,
        instruction.has_rep_prefix,
        instruction.has_repne_prefix,
        instruction.segment_prefix,
    )
    return instruction.code, prefixes, tuple(operands)


def memory(instruction: Instruction) -> list[object]:
    """Address and segment of a memory operand, the displacement at the width of the address."""
    narrow = instruction.memory_base == Register.NONE and instruction.memory_displ_size == 4
    narrow = narrow or RegisterExt.size(instruction.memory_base or instruction.memory_index) == 4
    mask = 0xFFFFFFFF if narrow else 2**64 - 1
    return [
        instruction.memory_base,
        instruction.memory_index,
        instruction.memory_index_scale,
        instruction.memory_displacement & mask,
    ]


def survives_encoding(instruction: Instruction, bits: int) -> bool:
    """Whether the encoder writes an instruction that decodes to the same operation."""
    encoder = Encoder(bits)
    try:
        encoder.encode(instruction, instruction.ip)
    except ValueError:
        return False
    written = Decoder(bits, encoder.take_buffer(), ip=instruction.ip).decode()
    return operation(written) == operation(instruction)
