"""Writing an image file: beside its place first, then renamed, so that it is whole or absent."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from pvpatch.abi.errors import PvpatchError

__all__ = ["check_place", "write_image"]


def check_place(path: Path) -> None:
    """Fail before the work when the place can obviously not be written."""
    if path.is_dir():
        raise PvpatchError(f"cannot write {path}: it is a directory", "name a file")
    if not path.parent.is_dir():
        raise PvpatchError(f"cannot write {path}: there is no directory {path.parent}", "choose another place")
    if not os.access(path.parent, os.W_OK):
        raise PvpatchError(f"cannot write {path}: the directory cannot be written", "choose another place")


def write_image(path: Path, data: bytes) -> None:
    """Write the file; PvpatchError when it cannot be written whole, and then nothing is left behind."""
    check_place(path)
    partial = path.with_name(path.name + ".part")
    try:
        with partial.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise PvpatchError(f"cannot write {path}: {error.strerror}", "choose another place") from error
        raise
