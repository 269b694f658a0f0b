"""The specification as data: well formed, consistent, and refused with a clear error where it is not."""

from __future__ import annotations

from importlib import resources

import iced_x86
import pytest

from pvpatch.abi.spec import REGISTERS, SpecError, load_spec, parse_spec, register

TEXT = resources.files("pvpatch.abi").joinpath("abi.toml").read_text(encoding="utf-8")
SPEC = load_spec()
ICED = {name.lower() for name in vars(iced_x86.Mnemonic) if name.isupper()}


def test_numbers_are_dense_and_equal_to_the_place() -> None:
    assert [call.number for call in SPEC.calls] == list(range(len(SPEC.calls)))
    assert all(SPEC.by_number(call.number) is SPEC.call(call.name) for call in SPEC.calls)


def test_slots_and_body_fit_the_page() -> None:
    assert SPEC.header_size + len(SPEC.calls) * SPEC.slot_size < SPEC.page_size


def test_mnemonics_are_those_of_the_decoder() -> None:
    for call in SPEC.calls:
        for form in call.replaces:
            assert form.insn in ICED
            assert not form.next or form.next in ICED
    assert {kept.insn for kept in SPEC.kept} <= ICED


def test_nothing_is_both_replaced_and_kept() -> None:
    replaced = {(f.insn, width) for call in SPEC.calls for f in call.replaces for width in f.widths}
    kept = {(item.insn, width) for item in SPEC.kept for width in item.widths if not item.rest}
    rest = {item.insn for item in SPEC.kept if item.rest}
    assert not replaced & kept
    assert rest <= {insn for insn, _ in replaced}


def test_every_call_says_why_and_every_value_has_a_unit() -> None:
    for call in SPEC.calls:
        assert call.why.endswith(".")
        assert all(item.unit for item in (*call.args, *call.results))


def test_no_register_carries_two_arguments() -> None:
    for call in SPEC.calls:
        for width, _ in call.bare:
            for items in (call.args, call.results):
                names = [name for item in items for name in item.registers(width)]
                assert len(names) == len(set(names)), call.name


def test_time_is_never_in_cycles() -> None:
    for call in SPEC.in_group("time"):
        if call.name not in ("tsc_read", "tscp_read"):
            assert all("ns" in item.unit or "error" in item.unit for item in (*call.args, *call.results))


def test_calls_without_a_stack_take_nothing_from_it() -> None:
    for call in SPEC.calls:
        if call.stack == 0:
            assert call.kind == "jump"
            assert not call.stack_in


def test_registers_by_width() -> None:
    assert [register(name, 64) for name in REGISTERS] == ["rax", "rdx", "rcx", "rbx", "rsi", "rdi"]
    with pytest.raises(SpecError):
        register("ebp", 32)


def test_feature_mask() -> None:
    assert SPEC.feature_mask("clock", "console") == 1 | 1 << 5
    with pytest.raises(SpecError):
        SPEC.feature_mask("teleport")


def test_forms_of_prefers_pairs() -> None:
    forms = SPEC.forms_of("sti")
    assert [call.name for call, _ in forms][-1] == "irq_enable"
    assert {form.next for _, form in forms} == {"hlt", "mwait", ""}


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("number = 7\n", "number = 8\n", "used once"),
        ("number = 107\n", "number = 200\n", "dense"),
        ("retired = []", "retired = [5]", "used once"),
        ('name = "clts"\ngroup = "registers"', 'name = "clts"\ngroup = "nowhere"', "group nowhere"),
        ('name = "halt"', 'name = "iret"', "used twice"),
        ('kind = "jump"', 'kind = "leap"', "leap"),
        ('flags = "zf"', 'flags = "pf"', "flags pf"),
        ('args = {port = "reg:edx"}', 'args = {gate = "reg:edx"}', "arguments"),
        ('results = {flags = "push"}', 'results = {flags = "throw"}', "destination"),
        ('args = {flags = "pop"}', 'args = {flags = "conjure"}', "source"),
        ('ops = ["r", "cr0"]', 'ops = ["r", "cr99"]', "operand pattern"),
        ('absent = "i386 has no CR8"', 'absent = ""', "absent and bare"),
        ('feature = "alarm"', 'feature = "bell"', "feature bell"),
        ("[abi]", "[abo]", "cannot be read"),
        ("major = 1", "major = ", "cannot be read"),
    ],
)
def test_contradictions_are_refused(old: str, new: str, words: str) -> None:
    assert old in TEXT
    with pytest.raises(SpecError, match=words):
        parse_spec(TEXT.replace(old, new, 1))
