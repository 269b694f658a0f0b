"""Far transfers of operand size 16 in a kernel below privilege 0 (SDM volume 2, CALL, JMP, RET).

The ABI has no form for them: its slots take and leave words of the code's width. A missed one is a far jump
or return whose words are of 16 bits; a call has pushed CS and IP, two bytes each, before it jumps.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from iced_x86 import Code, Instruction

from pvpatch.abi.spec import Call, Form, load_spec

__all__ = ["NarrowTransfer", "narrow_transfer"]


@dataclass(frozen=True)
class NarrowTransfer:
    """The call that stands for an instruction, its operands, and whether it pushes a return address first."""

    call: Call
    form: Form
    pushes: bool


_DIRECT = Form("", args=(("offset", "offset[op0]"), ("selector", "selector[op0]")))
_MEMORY = Form("", args=(("offset", "mem16[op0+0]"), ("selector", "mem16[op0+2]")))
_ON_STACK = (("offset", "stack16[0]"), ("selector", "stack16[2]"))
_FORMS: Mapping[int, tuple[str, Form, bool]] = {
    Code.JMP_PTR1616: ("far_jump", _DIRECT, False),
    Code.JMP_M1616: ("far_jump", _MEMORY, False),
    Code.CALL_PTR1616: ("far_jump", _DIRECT, True),
    Code.CALL_M1616: ("far_jump", _MEMORY, True),
    Code.RETFW: ("far_return", Form("", args=_ON_STACK, pops=4), False),
    Code.RETFW_IMM16: ("far_return", Form("", args=_ON_STACK, pops=4, pops_plus="op0"), False),
}


def narrow_transfer(instruction: Instruction) -> NarrowTransfer | None:
    """How a far transfer of operand size 16 is carried out; None for any other instruction."""
    found = _FORMS.get(instruction.code)
    if found is None:
        return None
    name, form, pushes = found
    return NarrowTransfer(next(call for call in load_spec().calls if call.name == name), form, pushes)
