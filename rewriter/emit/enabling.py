"""When the call that stands for STI is made, given the instruction in its shadow.

A backend may let an interrupt in as soon as the call enables it. On hardware none comes before the next
instruction is done (SDM vol. 2, STI), so the call comes behind an instruction that neither faults nor sees
the flag, and not at all before one that decides the flag itself.
"""

from __future__ import annotations

from enum import Enum

from iced_x86 import FlowControl, Instruction, Mnemonic, OpKind, RegisterExt

__all__ = ["Enabling", "enabling"]

_DECIDES = frozenset({
    Mnemonic.CLI, Mnemonic.POPF, Mnemonic.POPFD, Mnemonic.POPFQ, Mnemonic.IRET, Mnemonic.IRETD,
    Mnemonic.IRETQ,
})  # fmt: skip
"""What IF is behind these does not depend on what it was."""
_QUIET = frozenset({
    Mnemonic.NOP, Mnemonic.PAUSE, Mnemonic.MOV, Mnemonic.LEA, Mnemonic.XOR, Mnemonic.AND, Mnemonic.OR,
    Mnemonic.ADD, Mnemonic.SUB, Mnemonic.INC, Mnemonic.DEC, Mnemonic.CMP, Mnemonic.TEST, Mnemonic.NEG,
    Mnemonic.NOT, Mnemonic.MOVZX, Mnemonic.MOVSX, Mnemonic.SHL, Mnemonic.SHR, Mnemonic.SAR,
})  # fmt: skip
"""What cannot fault as long as no operand is in memory."""


class Enabling(Enum):
    """Where the call stands: before what is in the shadow, behind it, or nowhere."""

    FIRST = "first"
    LAST = "last"
    NEVER = "never"


def enabling(opener: Instruction, covered: Instruction) -> Enabling:
    """How `opener`, the site whose shadow `covered` stands in, becomes a call."""
    if opener.mnemonic != Mnemonic.STI:
        return Enabling.FIRST
    if covered.mnemonic in _DECIDES:
        return Enabling.NEVER
    kinds = [covered.op_kind(index) for index in range(covered.op_count)]
    inside = OpKind.MEMORY not in kinds or covered.mnemonic in (Mnemonic.NOP, Mnemonic.LEA)
    segments = covered.mnemonic == Mnemonic.MOV and any(
        kind == OpKind.REGISTER and not _is_general(covered.op_register(index))
        for index, kind in enumerate(kinds)
    )
    quiet = covered.mnemonic in _QUIET and covered.flow_control == FlowControl.NEXT
    return Enabling.LAST if quiet and inside and not segments else Enabling.FIRST


def _is_general(register: int) -> bool:
    return bool(RegisterExt.is_gpr(register))
