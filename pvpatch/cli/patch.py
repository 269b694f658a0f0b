"""`pvpatch patch`: turn privileged and sensitive instructions into ABI calls."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from pvpatch.abi.errors import ImageError, UsageError
from pvpatch.report.outfile import outputs
from pvpatch.report.patch import Cost, patch_json, render_patch_rich, render_patch_text
from pvpatch.report.shown import shown
from rewriter.emit.produce import Produced, patch_image
from rewriter.image import Image, open_image

__all__ = ["patch_command"]


def _address(text: str) -> int | None:
    """The address of `--block-at`; None when it was not given."""
    if not text:
        return None
    try:
        address = int(text, 0)
    except ValueError:
        address = -1
    if not 0 <= address < 1 << 64:
        raise UsageError(f"--block-at: '{text}' is no physical address", "write it as in 0x80000")
    return address


def _patch(path: Path, block_at: int | None) -> tuple[Image, Produced]:
    """Open and patch, with progress on standard error when that is a terminal."""
    errors = Console(stderr=True)
    if not errors.is_terminal:
        image = open_image(path)
        return image, _patched(image, lambda _: None, block_at)
    with errors.status(Text(shown(f"opening {path.name}"))) as status:
        image = open_image(path)
        return image, _patched(image, lambda text: status.update(Text(shown(text))), block_at)


def _patched(image: Image, progress: Callable[[str], None], block_at: int | None) -> Produced:
    """`patch_image`, whose refusals then name the file."""
    try:
        return patch_image(image, progress, block_at)
    except ImageError as error:
        message = error.message.removeprefix(f"{image.path}: ")
        raise ImageError(f"{image.path}: {message}", hint=error.hint) from error


def _cost(started: float) -> Cost:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts in KiB
    return Cost(time.perf_counter() - started, peak)


def patch_command(
    image: Annotated[Path, typer.Argument(metavar="IMAGE", help="kernel image")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="OUT", help="the patched image")],
    json_file: Annotated[
        str, typer.Option("--json", metavar="FILE", help="write sites and tactics as JSON; - is stdout")
    ] = "",
    block_at: Annotated[
        str, typer.Option(metavar="ADDRESS", help="physical address of the resident block, as in 0x80000")
    ] = "",
) -> None:
    """Patch IMAGE: afterwards it runs on real hardware and on every backend."""
    started = time.perf_counter()
    place = _address(block_at)
    with outputs(output=str(output), json=json_file) as files:
        understood, produced = _patch(image, place)
        files["output"].write_bytes(produced.file)
        if "json" in files:
            files["json"].stream.write(patch_json(understood, produced))
    if any(file.is_stdout for file in files.values()):
        return
    console = Console()
    if console.is_terminal:
        render_patch_rich(understood, produced, _cost(started), console)
    else:
        sys.stdout.write(render_patch_text(understood, produced, _cost(started)))
