"""`pvpatch revert`: the original file of a patched image, bit for bit."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path
from typing import Annotated

import typer

from pvpatch.abi.errors import ImageError
from pvpatch.report.outfile import outputs
from pvpatch.report.shown import shown
from rewriter.image import open_image
from rewriter.manifest.restore import restore

__all__ = ["revert_command"]


def revert_command(
    patched: Annotated[Path, typer.Argument(metavar="PATCHED", help="patched kernel image")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="OUT", help="the original image")],
) -> None:
    """Restore the file that PATCHED was made from, and prove it by its SHA-256."""
    with outputs(output=str(output)) as files:
        image = open_image(patched)
        try:
            original = restore(image)
        except ImageError as error:
            raise ImageError(f"{patched}: {error.message}", hint=error.hint) from error
        files["output"].write_bytes(original)
    if files["output"].is_stdout:
        return
    sys.stdout.write(f"sha256 {hashlib.sha256(original).hexdigest()}  {shown(output)}\n")
