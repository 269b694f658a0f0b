"""`pvpatch scan`: its streams, its JSON against the schema, its failures."""

from __future__ import annotations

import io
import json
from pathlib import Path

import jsonschema
import pytest
import typer
from rich.console import Console
from typer.testing import CliRunner

from pvpatch.abi.errors import PvpatchError
from pvpatch.cli.scan import scan_command
from pvpatch.report.scan import render_scan_rich, render_scan_text, scan_document
from rewriter.scan import scan_image
from tests.scan.images import flat_image

SCHEMA = json.loads((Path(__file__).parents[2] / "docs/schema/scan-1.json").read_text(encoding="utf-8"))

app = typer.Typer()
app.command()(scan_command)


@pytest.fixture
def multiboot(tmp_path: Path) -> Path:
    """A multiboot image with an address header: cli; mov cr3,eax; hlt; jmp."""
    base, header = 0x100000, [0x1BADB002, 0x10000]
    code = b"\xfa\x0f\x22\xd8\xf4\xeb\xfd".ljust(64, b"\x90")
    header += [(-sum(header)) & 0xFFFFFFFF, base, base, base + 96, base + 96, base + 32]
    path = tmp_path / "kernel.bin"
    path.write_bytes(b"".join(word.to_bytes(4, "little") for word in header) + code)
    return path


def test_json_on_standard_output_is_all_there_is(multiboot: Path) -> None:
    result = CliRunner().invoke(app, [str(multiboot), "--json", "-"])
    assert result.exit_code == 0
    document = json.loads(result.stdout)
    jsonschema.validate(document, SCHEMA)
    assert document["totals"]["by_kind"] == {"cli": 1, "hlt": 1, "mov_to_cr": 1}
    assert [site["bytes"] for site in document["sites"]] == ["fa", "0f22d8", "f4"]


def test_json_file_beside_the_text(multiboot: Path, tmp_path: Path) -> None:
    out = tmp_path / "scan.json"
    result = CliRunner().invoke(app, [str(multiboot), "--json", str(out)])
    assert result.exit_code == 0
    assert "kind\tmov_to_cr\t1" in result.stdout
    jsonschema.validate(json.loads(out.read_text(encoding="utf-8")), SCHEMA)


def test_the_same_image_gives_the_same_document(multiboot: Path) -> None:
    first, second = (CliRunner().invoke(app, [str(multiboot), "--json", "-"]).stdout for _ in range(2))
    assert first == second


def test_a_missing_file_is_one_clear_error(tmp_path: Path) -> None:
    out = tmp_path / "scan.json"
    result = CliRunner().invoke(app, [str(tmp_path / "none"), "--json", str(out)])
    assert isinstance(result.exception, PvpatchError)
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written(multiboot: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, [str(multiboot), "--json", str(tmp_path / "no" / "where.json")])
    assert isinstance(result.exception, PvpatchError)


def test_schema_accepts_every_dialect_and_context() -> None:
    image = flat_image(bytes.fromhex("0f01c1 cd82 cd1f 660f01150000 0000 0f0115000000 00 c3"))
    jsonschema.validate(scan_document(image, scan_image(image)), SCHEMA)


def test_terminal_and_plain_text_say_the_same_totals() -> None:
    image = flat_image(b"\xfa\xfb\xf4\xc3")
    result = scan_image(image)
    stream = io.StringIO()
    render_scan_rich(image, result, Console(file=stream, width=120))
    plain = render_scan_text(image, result)
    for kind in ("cli", "sti", "hlt"):
        assert f"kind\t{kind}\t1" in plain
        assert kind in stream.getvalue()
