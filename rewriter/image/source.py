"""Bounded reading of input files: nothing is read before its size and kind are known."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from pvpatch.abi.errors import ImageError

__all__ = ["MAX_FILE", "MAX_UNPACKED", "read_bounded"]

MAX_FILE = 768 << 20  # bytes; the largest input wanted is a vmlinux with debug information (about 600 MB)
MAX_UNPACKED = 512 << 20  # bytes; a kernel unpacks to 16..100 MB


def read_bounded(path: Path) -> bytes:
    """The whole file, or ImageError when it is missing, not a regular file, empty or too large."""
    try:
        # Not blocking: opening a pipe without a writer would wait for ever.
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            data = _read(handle, path)
        finally:
            os.close(handle)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise ImageError(f"cannot read {path}: {reason}") from error
    if not data:
        raise ImageError(f"{path} is empty", hint="was its download or copy interrupted?")
    return data


def _read(handle: int, path: Path) -> bytes:
    status = os.fstat(handle)
    if not stat.S_ISREG(status.st_mode):
        raise ImageError(f"{path} is not a regular file", hint="give the path of a kernel image")
    if status.st_size > MAX_FILE:
        raise ImageError(
            f"{path} has {status.st_size} bytes, more than the limit of {MAX_FILE}",
            hint="no kernel image is that large",
        )
    with os.fdopen(handle, "rb", closefd=False) as stream:
        data = stream.read(status.st_size + 1)
    if len(data) > status.st_size:
        raise ImageError(f"{path} grew while it was read")
    return data
