"""Everything generated from the specification: the committed reference, the JSON, the command's output."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest
from typer.testing import CliRunner

from pvpatch.abi.document import ROW_HEAD, SCHEMA, call_rows, document
from pvpatch.abi.errors import PvpatchError, UsageError
from pvpatch.abi.header import c_header
from pvpatch.abi.mappings import load_mapping
from pvpatch.abi.reference import reference
from pvpatch.abi.spec import SpecError, load_spec
from pvpatch.cli.abi import abi_app

ROOT = Path(__file__).parents[2]
RUNNER = CliRunner()


def test_the_committed_reference_is_up_to_date() -> None:
    committed = (ROOT / "docs" / "abi.md").read_text(encoding="utf-8")
    assert committed == reference(), "run `pvpatch abi reference -o docs/abi.md`"


def test_the_reference_names_every_call_and_every_mapping() -> None:
    text = reference()
    for call in load_spec().calls:
        assert f"### {call.number} `{call.name}`" in text
        assert call.why in text
    for interface in ("vmi", "lguest", "kvm", "xen", "pvops"):
        for table in load_mapping(interface).tables:
            assert f"#### {table.title}" in text


def test_reference_tables_are_whole() -> None:
    """Every row of a Markdown table has as many cells as its head."""
    width = 0
    for line in reference().splitlines():
        cells = line.replace("\\|", "").count("|")
        if not line.startswith("|"):
            width = 0
            continue
        width = width or cells
        assert cells == width, line


def test_the_document_is_of_its_schema() -> None:
    schema = json.loads((ROOT / "docs" / "schema" / "abi-1.json").read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.Draft202012Validator(schema).validate(document())


def test_list_in_a_pipe_is_plain_text() -> None:
    result = RUNNER.invoke(abi_app, ["list"])
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert lines[0].split() == list(ROW_HEAD)
    assert len(lines) == 1 + len(load_spec().calls)
    assert "\x1b" not in result.stdout


def test_list_of_a_group() -> None:
    result = RUNNER.invoke(abi_app, ["list", "--group", "time"])
    assert len(result.stdout.splitlines()) == 1 + len(load_spec().in_group("time"))
    with pytest.raises(UsageError, match="no group"):
        call_rows("times")


def test_json_on_standard_output_is_nothing_but_json() -> None:
    result = RUNNER.invoke(abi_app, ["list", "--json", "-"])
    data = json.loads(result.stdout)
    assert data["schema"] == SCHEMA
    assert [call["number"] for call in data["calls"]] == list(range(len(load_spec().calls)))


def test_json_to_a_file(tmp_path: Path) -> None:
    target = tmp_path / "abi.json"
    result = RUNNER.invoke(abi_app, ["list", "--json", str(target)])
    assert result.exit_code == 0
    assert json.loads(target.read_text(encoding="utf-8")) == document()
    assert result.stdout.startswith("number")


def test_an_unwritable_place_is_one_clear_error(tmp_path: Path) -> None:
    result = RUNNER.invoke(abi_app, ["header", "-o", str(tmp_path / "no" / "such" / "folder")])
    assert isinstance(result.exception, PvpatchError)
    assert "cannot write" in str(result.exception)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("command", "text"), [("header", c_header), ("reference", reference)])
def test_generators_print_what_they_generate(command: str, text: object, tmp_path: Path) -> None:
    assert callable(text)
    assert RUNNER.invoke(abi_app, [command]).stdout == text()
    target = tmp_path / "out"
    assert RUNNER.invoke(abi_app, [command, "-o", str(target)]).stdout == ""
    assert target.read_text(encoding="utf-8") == text()


def test_unknown_interfaces_are_refused() -> None:
    with pytest.raises(SpecError, match="no mapping"):
        load_mapping("hyperv")
    with pytest.raises(SpecError, match="no table"):
        load_mapping("kvm").table("hypercall")
