"""`pvpatch scan`: sensitive instructions and hypervisor calls of an image."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from pvpatch.report.outfile import outputs
from pvpatch.report.scan import render_scan_rich, render_scan_text, scan_json
from pvpatch.report.shown import shown
from rewriter.image import Image, open_image
from rewriter.scan import ScanResult, scan_image

__all__ = ["scan_command"]


def _scan(path: Path) -> tuple[Image, ScanResult]:
    """Open and scan, with progress on standard error when that is a terminal."""
    errors = Console(stderr=True)
    if not errors.is_terminal:
        image = open_image(path)
        return image, scan_image(image)
    with errors.status(Text(shown(f"opening {path.name}"))) as status:
        image = open_image(path)
        return image, scan_image(image, progress=lambda text: status.update(Text(shown(text))))


def scan_command(
    image: Annotated[Path, typer.Argument(metavar="IMAGE", help="kernel image")],
    json_file: Annotated[
        str, typer.Option("--json", metavar="FILE", help="write the sites as JSON; - for standard output")
    ] = "",
) -> None:
    """Find every instruction of a kernel image that needs privilege or shows it."""
    with outputs(json=json_file) as files:
        understood, result = _scan(image)
        if "json" in files:
            files["json"].stream.write(scan_json(understood, result))
    if json_file == "-":
        return
    console = Console()
    if console.is_terminal:
        render_scan_rich(understood, result, console)
    else:
        sys.stdout.write(render_scan_text(understood, result))
