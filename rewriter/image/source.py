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
        with os.fdopen(handle, "rb") as stream:
            status = os.fstat(stream.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise ImageError(f"{path} is not a regular file", hint="give the path of a kernel image")
            if status.st_size > MAX_FILE:
                raise ImageError(
                    f"{path} has {status.st_size} bytes, more than the limit of {MAX_FILE}",
                    hint="no kernel image is that large",
                )
            data = stream.read(MAX_FILE + 1) if status.st_size else b""
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise ImageError(f"cannot read {path}: {reason}") from error
    if len(data) > MAX_FILE:
        raise ImageError(f"{path} grew beyond the limit of {MAX_FILE} bytes while it was read")
    if not data:
        raise ImageError(f"{path} is empty", hint="was its download or copy interrupted?")
    return data
