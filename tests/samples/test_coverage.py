"""The native samples use every instruction form that the ABI replaces, at both widths."""

from __future__ import annotations

import pytest

from pvpatch.abi.forms import match_form, mnemonic_names
from pvpatch.abi.spec import Form, load_spec
from tests.samples.images import instructions

NOT_USED = {
    (32, "sysret"): "SYSRET in 32-bit protected mode is AMD's alone, and no i386 kernel uses it",
}

SAMPLE = {32: "native-i386", 64: "native-x86_64"}


def _used(width: int) -> set[tuple[str, Form]]:
    found: set[tuple[str, Form]] = set()
    for bits, instruction, following in instructions(SAMPLE[width]):
        name = mnemonic_names()[following.mnemonic] if following is not None else ""
        match = match_form(instruction, bits, name)
        if bits == width and match.call is not None and match.form is not None:
            found.add((match.call.name, match.form))
    return found


def _wanted(width: int) -> list[tuple[str, Form]]:
    return [
        (call.name, form)
        for call in load_spec().calls
        for form in call.replaces
        if width in form.widths and (width, form.insn) not in NOT_USED
    ]


@pytest.mark.parametrize("width", [32, 64])
def test_every_replaced_form_occurs(width: int) -> None:
    used = _used(width)
    missing = [
        (name, form.insn, form.next, form.ops, form.opsize, form.rep)
        for name, form in _wanted(width)
        if (name, form) not in used
    ]
    assert missing == []


@pytest.mark.parametrize("width", [32, 64])
def test_what_is_left_out_is_really_left_out(width: int) -> None:
    names = {form.insn for _, form in _used(width)}
    assert not {insn for bits, insn in NOT_USED if bits == width} & names


def test_the_64_bit_sample_holds_both_widths() -> None:
    mixed = {bits for bits, _, _ in instructions("native-x86_64")}
    assert mixed == {32, 64}
