"""Which ABI call a decoded instruction corresponds to: the `replaces` forms of the specification.

The specification names forms by mnemonic, operand patterns, width, operand size and
repeat prefix (vocabulary in `pvpatch.abi.spec`). This module only compares; it knows no call.
"""

from dataclasses import dataclass
from functools import cache

from iced_x86 import Instruction, Mnemonic, OpCodeInfo, OpKind, Register, RegisterInfo

from pvpatch.abi.spec import Call, Form, Kept, load_spec


@cache
def mnemonic_names() -> dict[int, str]:
    """Mnemonic number of iced -> lower-case name."""
    return {
        value: name.lower()
        for name, value in vars(Mnemonic).items()
        if name.isupper() and isinstance(value, int)
    }


@cache
def register_names() -> dict[int, str]:
    """Register number of iced -> lower-case name."""
    return {
        value: name.lower()
        for name, value in vars(Register).items()
        if name.replace("_", "").isalnum() and name.isupper() and isinstance(value, int)
    }


_IMMEDIATES = {
    OpKind.IMMEDIATE8, OpKind.IMMEDIATE8_2ND, OpKind.IMMEDIATE16, OpKind.IMMEDIATE32, OpKind.IMMEDIATE64,
    OpKind.IMMEDIATE8TO16, OpKind.IMMEDIATE8TO32, OpKind.IMMEDIATE8TO64, OpKind.IMMEDIATE32TO64,
}  # fmt: skip
_FAR = {OpKind.FAR_BRANCH16, OpKind.FAR_BRANCH32}
_FAR_MEMORY_MNEMONICS = {Mnemonic.JMP, Mnemonic.CALL}


@dataclass(frozen=True)
class Match:
    """What the specification says of one instruction: a call with the form, or why it stays."""

    call: Call | None = None
    form: Form | None = None
    kept: Kept | None = None


def _register_patterns(register: int) -> set[str]:
    info = RegisterInfo(register)
    patterns = {register_names()[register]}
    if Register.ES <= register <= Register.GS:
        patterns.add("sreg")
    elif Register.DR0 <= register <= Register.DR15:
        patterns.add("dr")
    elif Register.AL <= register <= Register.R15:
        patterns |= {"r", "rm"}
        if info.size == 2:
            patterns.add("r16")
    return patterns


def operand_patterns(instruction: Instruction) -> list[set[str]]:
    """For each operand, the pattern words of the specification that describe it."""
    result: list[set[str]] = []
    for index in range(instruction.op_count):
        kind = instruction.op_kind(index)
        if kind == OpKind.REGISTER:
            result.append(_register_patterns(instruction.op_register(index)))
        elif kind in _IMMEDIATES:
            result.append({"imm"})
        elif kind in _FAR:
            result.append({"far"})
        elif kind == OpKind.MEMORY:
            far = instruction.is_jmp_far_indirect or instruction.is_call_far_indirect
            result.append({"mfar"} if far else {"m", "rm"})
        else:
            result.append({"implied"})
    return result


def _fits(form: Form, instruction: Instruction, width: int, following: str) -> bool:
    if width not in form.widths or (form.next and form.next != following):
        return False
    repeated = instruction.has_rep_prefix or instruction.has_repne_prefix
    if form.rep is not None and form.rep != repeated:
        return False
    if form.opsize and OpCodeInfo(instruction.code).operand_size not in form.opsize:
        return False
    if not form.ops:
        return True
    patterns = operand_patterns(instruction)
    if len(form.ops) != len(patterns):
        return False
    return all(wanted in found for wanted, found in zip(form.ops, patterns, strict=True))


def match_form(instruction: Instruction, width: int, following: str = "") -> Match:
    """The call that replaces `instruction` in `width`-bit code, or the reason why it is kept.

    `following` is the mnemonic of the next instruction: forms of two instructions (`sti` + `hlt`)
    go first. An instruction that the specification does not name gives an empty match.
    """
    name = mnemonic_names()[instruction.mnemonic]
    spec = load_spec()
    for call, form in spec.forms_of(name):
        if _fits(form, instruction, width, following):
            return Match(call=call, form=form)
    for kept in spec.kept:
        if kept.insn == name and width in kept.widths:
            return Match(kept=kept)
    return Match()
