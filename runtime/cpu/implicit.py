"""Which user instructions touch supervisor memory on their own account?

Loading a segment register, a far transfer or LAR reads descriptors, a call gate writes the inner
stack: the CPU checks these accesses as supervisor accesses whatever the privilege level (Intel SDM
vol. 3, 4.6). The TLB hook does not say which accesses those are, so such an instruction is run
once more with all of its accesses checked that way.
"""

from __future__ import annotations

import enum

import iced_x86

__all__ = ["DescriptorUse", "descriptor_use"]

_MNEMONICS = frozenset(
    getattr(iced_x86.Mnemonic, name)
    for name in (
        "LDS", "LES", "LFS", "LGS", "LSS", "LAR", "LSL", "VERR", "VERW",
    )
)  # fmt: skip
_RETURNS = frozenset(getattr(iced_x86.Mnemonic, name) for name in ("IRET", "IRETD", "IRETQ", "RETF"))
_SEGMENTS = frozenset(getattr(iced_x86.Register, name) for name in ("ES", "CS", "SS", "DS", "FS", "GS"))
_FAR_CODES = frozenset(
    value
    for name, value in vars(iced_x86.Code).items()
    if isinstance(value, int) and name.startswith(("CALL_PTR", "JMP_PTR", "CALL_M16", "JMP_M16"))
)


class DescriptorUse(enum.Enum):
    """Why an instruction reads descriptors."""

    NONE = enum.auto()
    LOAD = enum.auto()
    """It loads or inspects a selector; execution goes on behind it."""
    TRANSFER = enum.auto()
    """It goes to another code segment, or to the same one anew."""


def descriptor_use(instruction: iced_x86.Instruction) -> DescriptorUse:
    """What an instruction makes supervisor accesses for."""
    if instruction.mnemonic in _RETURNS or instruction.code in _FAR_CODES:
        return DescriptorUse.TRANSFER
    if instruction.mnemonic in _MNEMONICS:
        return DescriptorUse.LOAD
    moves = instruction.mnemonic in (iced_x86.Mnemonic.MOV, iced_x86.Mnemonic.POP)
    if moves and instruction.op0_kind == iced_x86.OpKind.REGISTER and instruction.op0_register in _SEGMENTS:
        return DescriptorUse.LOAD
    return DescriptorUse.NONE
