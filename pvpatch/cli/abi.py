"""`pvpatch abi`: the unified ABI as a table, as JSON, as a C header, and as the Markdown reference."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from pvpatch.abi.document import ROW_HEAD, call_rows, document
from pvpatch.abi.errors import PvpatchError
from pvpatch.abi.header import c_header
from pvpatch.abi.reference import reference

__all__ = ["abi_app"]

abi_app = typer.Typer(help="The unified ABI: list, C header, reference.", no_args_is_help=True)


def _write(text: str, path: str) -> None:
    """To standard output for "-", else to a file that is complete or absent."""
    if path == "-":
        sys.stdout.write(text)
        return
    target = Path(path)
    partial = target.with_name(target.name + ".part")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(target)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise PvpatchError(f"cannot write {path}: {error.strerror}", "choose another place") from error


@abi_app.command("list")
def list_calls(
    json_file: Annotated[str, typer.Option("--json", metavar="FILE", help="JSON; - is stdout")] = "",
    group: Annotated[str, typer.Option(help="only the calls of this group")] = "",
) -> None:
    """Every call with number, registers, flags and the instructions it stands for."""
    rows = call_rows(group)
    if json_file:
        _write(json.dumps(document(), indent=2) + "\n", json_file)
    if json_file == "-":
        return
    if sys.stdout.isatty():
        table = Table(*ROW_HEAD, title="The unified paravirt ABI")
        for row in rows:
            table.add_row(*row)
        Console().print(table)
        return
    widths = [max(len(row[column]) for row in [ROW_HEAD, *rows]) for column in range(len(ROW_HEAD))]
    for row in [ROW_HEAD, *rows]:
        line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        sys.stdout.write(line.rstrip() + "\n")


@abi_app.command("header")
def header(
    output: Annotated[str, typer.Option("--output", "-o", metavar="FILE", help="- is standard output")] = "-",
) -> None:
    """The C header: call numbers, feature bits and structure layouts, for both widths."""
    _write(c_header(), output)


@abi_app.command("reference")
def write_reference(
    output: Annotated[str, typer.Option("--output", "-o", metavar="FILE", help="- is standard output")] = "-",
) -> None:
    """The Markdown reference (docs/abi.md is its committed output)."""
    _write(reference(), output)
