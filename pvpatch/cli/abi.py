"""`pvpatch abi`: the unified ABI as table, JSON, C header and reference."""

from __future__ import annotations

import json
import sys
from typing import Annotated

import typer
from rich.console import Console

from pvpatch.abi.comparison import comparison
from pvpatch.abi.document import ROW_HEAD, call_rows, document
from pvpatch.abi.header import c_header
from pvpatch.abi.reference import reference
from pvpatch.report.outfile import write_output
from pvpatch.report.tables import WIDE, table

__all__ = ["abi_app"]

abi_app = typer.Typer(help="The unified ABI: list, C header, reference.", no_args_is_help=True)


def _show(rows: list[tuple[str, ...]]) -> None:
    """A table; on a narrow terminal without group, kind and flags."""
    console = Console()
    hidden = () if console.width >= WIDE else ("group", "kind", "flags")
    kept = [index for index, name in enumerate(ROW_HEAD) if name not in hidden]
    names = [ROW_HEAD[index] for index in kept]
    shown = table(*names, title="The unified paravirt ABI", numbers=("number",), whole=("name", "kind"))
    for row in rows:
        shown.add_row(*(row[index] for index in kept))
    console.print(shown)
    if hidden:
        console.print(f"[dim]a wider terminal also shows {', '.join(hidden)}[/]")


@abi_app.command("list")
def list_calls(
    json_file: Annotated[str, typer.Option("--json", metavar="FILE", help="JSON; - is stdout")] = "",
    group: Annotated[str, typer.Option(help="only the calls of this group")] = "",
) -> None:
    """Every call with number, registers, flags and the instructions it stands for."""
    rows = call_rows(group)
    if json_file:
        write_output(json_file, json.dumps(document(), indent=2) + "\n")
    if json_file == "-":
        return
    if sys.stdout.isatty():
        _show(rows)
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
    write_output(output, c_header())


@abi_app.command("reference")
def write_reference(
    output: Annotated[str, typer.Option("--output", "-o", metavar="FILE", help="- is standard output")] = "-",
) -> None:
    """The Markdown reference (docs/abi.md is its committed output)."""
    write_output(output, reference())


@abi_app.command("comparison")
def write_comparison(
    output: Annotated[str, typer.Option("--output", "-o", metavar="FILE", help="- is standard output")] = "-",
) -> None:
    """Every call against VMI, lguest, KVM, Xen and pv_ops, in Markdown (the tables of docs/one-abi.md)."""
    write_output(output, comparison())
