"""Output files that are complete or absent, and `-` for standard output."""

from __future__ import annotations

import contextlib
import io
import sys
from pathlib import Path
from typing import IO

from pvpatch.abi.errors import PvpatchError

__all__ = ["OutputFile"]


class OutputFile:
    """A text file opened early, so that a bad place is reported before the work, and renamed into
    place by `commit`. `discard` leaves nothing behind.
    """

    def __init__(self, path: str) -> None:
        self.is_stdout = path == "-"
        self._path = path
        self._target = Path(path)
        self._partial = self._target.with_name(self._target.name + ".part")
        self.stream: IO[str]
        if self.is_stdout:
            self.stream = io.StringIO()
            return
        try:
            if self._target.is_dir():
                raise IsADirectoryError(21, "is a directory")
            self.stream = self._partial.open("w", encoding="utf-8", newline="\n")
        except OSError as error:
            raise self._failure(error) from error

    def _failure(self, error: OSError) -> PvpatchError:
        return PvpatchError(f"cannot write {self._path}: {error.strerror}", "choose another place")

    def commit(self) -> None:
        """Make the file appear. Raises `PvpatchError` when it cannot be written whole."""
        if self.is_stdout:
            assert isinstance(self.stream, io.StringIO)
            sys.stdout.write(self.stream.getvalue())
            sys.stdout.flush()
            return
        try:
            self.stream.close()
            self._partial.replace(self._target)
        except OSError as error:
            self.discard()
            raise self._failure(error) from error

    def discard(self) -> None:
        """Remove what was written."""
        with contextlib.suppress(OSError):
            self.stream.close()
        if not self.is_stdout:
            with contextlib.suppress(OSError):
                self._partial.unlink(missing_ok=True)
