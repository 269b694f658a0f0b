"""`pvpatch diff`: every differing byte explained; both images run."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from pvpatch.cli.limits import check_guest_seconds
from pvpatch.diffing import RunOptions, compare_files, run_both
from pvpatch.report.diff import diff_document, diff_html, diff_json, render_diff_rich, render_diff_text
from pvpatch.report.outfile import outputs
from runtime.backends import backend_named

__all__ = ["diff_command"]


def _show(document: dict[str, Any]) -> None:
    console = Console()
    if console.is_terminal:
        render_diff_rich(document, console)
    else:
        sys.stdout.write(render_diff_text(document))


def diff_command(
    original: Annotated[Path, typer.Argument(metavar="ORIGINAL", help="the image before")],
    patched: Annotated[Path, typer.Argument(metavar="PATCHED", help="the patched image")],
    json_file: Annotated[str, typer.Option("--json", metavar="FILE", help="JSON; - is stdout")] = "",
    html_file: Annotated[str, typer.Option("--html", metavar="FILE", help="one page; - is stdout")] = "",
    run: Annotated[bool, typer.Option("--run", help="run both and compare what they print")] = False,
    backend: Annotated[str, typer.Option(metavar="NAME", help="runs the patched image (--run)")] = "bare",
    append: Annotated[str, typer.Option(metavar="CMDLINE", help="kernel command line (--run)")] = "",
    memory: Annotated[int, typer.Option(metavar="MIB", help="of each machine (--run)")] = 512,
    until: Annotated[str, typer.Option(metavar="TEXT", help="compare up to this text (--run)")] = "",
    max_time: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="guest seconds of each run (--run)")
    ] = None,
) -> None:
    """Explain every byte in which PATCHED differs from ORIGINAL; exit code 1 names what nothing explains."""
    check_guest_seconds(max_time)
    backend_named(backend)
    with outputs(json=json_file, html=html_file) as files:
        difference = compare_files(original, patched)
        if run and difference.explained:
            options = RunOptions(append, memory, until, max_time)
            difference = replace(difference, run=run_both(original, patched, backend, options))
        document = diff_document(difference)
        if "json" in files:
            files["json"].stream.write(diff_json(document))
        if "html" in files:
            files["html"].stream.write(diff_html(document))
    if not any(file.is_stdout for file in files.values()):
        _show(document)
    if not difference.explained or (difference.run is not None and not difference.run.equal):
        raise typer.Exit(1)
