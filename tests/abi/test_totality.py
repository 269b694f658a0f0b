"""The tables are total: nothing sensitive, and no number of another interface, is left without an answer."""

from __future__ import annotations

import re
import tomllib
from functools import cache
from pathlib import Path
from typing import Any

import iced_x86
import pytest

from pvpatch.abi.forms import match_form
from pvpatch.abi.mappings import INTERFACES, load_mapping
from pvpatch.abi.spec import load_spec

HERE = Path(__file__).parent


@cache
def required(name: str) -> dict[str, dict[str, Any]]:
    return tomllib.loads((HERE / f"required_{name}.toml").read_text(encoding="utf-8"))


INSTRUCTIONS = [
    pytest.param(int(width), name, bytes.fromhex(code), call, id=f"{width}-{name}")
    for width, rows in required("instructions").items()
    for name, (code, call) in rows.items()
]


@pytest.mark.parametrize(("width", "name", "code", "call"), INSTRUCTIONS)
def test_every_sensitive_instruction_has_one_answer(width: int, name: str, code: bytes, call: str) -> None:
    instruction = iced_x86.Decoder(width, code).decode()
    assert instruction.len == len(code), f"{name} is not one instruction"
    found = match_form(instruction, width)
    if call == "-":
        assert found.call is None and found.kept is not None and found.kept.reason, name
    else:
        assert found.call is not None, name
        assert found.call.name == call


def test_every_instruction_the_decoder_calls_privileged_has_an_answer() -> None:
    spec = load_spec()
    answered = {(form.insn, width) for call in spec.calls for form in call.replaces for width in form.widths}
    answered |= {(kept.insn, width) for kept in spec.kept for width in kept.widths}
    names = {number: name.lower() for name, number in vars(iced_x86.Mnemonic).items() if name.isupper()}
    privileged = set()
    for name, code in vars(iced_x86.Code).items():
        if name.isupper() and isinstance(code, int) and iced_x86.OpCodeInfo(code).is_privileged:
            info = iced_x86.OpCodeInfo(code)
            modes = [width for width, exists in ((32, info.mode32), (64, info.mode64)) if exists]
            privileged |= {(names[info.mnemonic], width) for width in modes}
    assert len(privileged) > 150
    assert not privileged - answered


@pytest.mark.parametrize("interface", INTERFACES)
def test_every_number_of_the_interface_is_mapped(interface: str) -> None:
    mapping = load_mapping(interface)
    for table, numbers in required(interface).items():
        rows = {row.number: row for row in mapping.table(table).rows}
        asked = {int(number, 0): name for number, name in numbers.items()}
        assert not set(asked) - set(rows), f"{interface} {table}: not mapped"
        assert not set(rows) - set(asked), f"{interface} {table}: invented"


@pytest.mark.parametrize(
    ("interface", "table"),
    [
        ("vmi", "calls"),
        ("lguest", "2.6.23"),
        ("lguest", "2.6.24"),
        ("lguest", "2.6.32"),
        ("pvops", "6.1-xxl"),
    ],
)
def test_names_are_those_of_the_interface(interface: str, table: str) -> None:
    def plain(name: str) -> str:
        return re.sub(r"[^a-z0-9]", "", name.lower()).replace("lazymode", "lazy")

    rows = {row.number: row.name for row in load_mapping(interface).table(table).rows}
    for number, name in required(interface)[table].items():
        assert plain(rows[int(number, 0)]) == plain(name)


def test_xen_hypercalls_bear_their_names() -> None:
    rows = {row.number: row.name for row in load_mapping("xen").table("hypercalls").rows}
    for number, name in required("xen")["hypercalls"].items():
        assert rows[int(number)] in (name, "mca")


def test_counts_of_the_published_interfaces() -> None:
    counts = {
        (interface, table.name): len(table.rows)
        for interface in INTERFACES
        for table in load_mapping(interface).tables
    }
    assert counts["vmi", "calls"] == 74
    assert [counts["lguest", era] for era in ("2.6.23", "2.6.24", "2.6.32")] == [16, 15, 17]
    assert counts["kvm", "hypercalls"] == 12
    assert counts["xen", "hypercalls"] == 42 + 8
    assert counts["pvops", "6.1-xxl"] == 84


def test_every_low_level_call_is_reached_from_somewhere() -> None:
    """A call nobody needs would be ballast: each replaces an instruction or stands for a number elsewhere."""
    for call in load_spec().calls:
        used = any(load_mapping(interface).users_of(call.name) for interface in INTERFACES)
        assert call.replaces or used, call.name


@pytest.mark.parametrize("width", [32, 64])
@pytest.mark.parametrize("code", ["660fb210", "660fb410", "660fb510"], ids=["lss", "lfs", "lgs"])
def test_a_far_pointer_of_16_bits_is_kept_for_its_operand_size(width: int, code: str) -> None:
    found = match_form(iced_x86.Decoder(width, bytes.fromhex(code)).decode(), width)
    assert found.kept is not None
    assert "16-bit operand size" in found.kept.reason
    assert "16-bit code" not in found.kept.reason
