"""Output files that are complete or absent, and `-` for standard output."""

from __future__ import annotations

import contextlib
import io
import itertools
import os
import stat
import sys
from pathlib import Path
from typing import IO, Any

from pvpatch.abi.errors import UsageError

__all__ = ["OutputFile", "write_output"]

_numbers = itertools.count()


def _failure(path: str, error: OSError) -> UsageError:
    return UsageError(f"cannot write {path}: {error.strerror or error}", "choose another place")


class _Place(io.FileIO):
    """A file whose write errors name it, whoever writes."""

    def __init__(self, path: Path, shown: str) -> None:
        self._shown = shown
        super().__init__(path, "w")

    def write(self, data: Any, /) -> int | None:
        try:
            return super().write(data)
        except OSError as error:
            raise _failure(self._shown, error) from error


class OutputFile:
    """A file opened early, so that a bad place is reported before the work, written beside its place
    and renamed into it by `commit`; `discard` leaves nothing behind. Text goes to `stream`.

    A device, a pipe or anything under /dev and /proc is written where it is: renaming a file over
    it would destroy it.
    """

    def __init__(self, path: str) -> None:
        self.is_stdout = path == "-"
        self._path = path
        self._partial: Path | None = None
        self._memory = io.BytesIO()
        target = Path(path)
        raw: io.BufferedIOBase = self._memory
        if not self.is_stdout:
            try:
                raw = io.BufferedWriter(self._open(target))
            except (OSError, ValueError) as error:
                raise _failure(path, error if isinstance(error, OSError) else OSError(error)) from error
        self.stream: IO[str] = io.TextIOWrapper(raw, encoding="utf-8", errors="replace", newline="\n")

    def _open(self, target: Path) -> _Place:
        try:
            mode = target.stat().st_mode
        except FileNotFoundError:
            mode = None
        if mode is not None and stat.S_ISDIR(mode):
            raise IsADirectoryError(21, "it is a directory")
        in_place = str(target.absolute()).startswith(("/dev/", "/proc/"))
        if in_place or (mode is not None and not stat.S_ISREG(mode)):
            return _Place(target, self._path)
        self._target = target.resolve()
        self._partial = self._target.with_name(f".pvpatch-{os.getpid()}-{next(_numbers)}.part")
        place = _Place(self._partial, self._path)
        if mode is not None:
            self._partial.chmod(stat.S_IMODE(mode))
        return place

    def write_bytes(self, data: bytes) -> None:
        """Write `data` as it is, after everything written to `stream`."""
        self.stream.flush()
        self.stream.buffer.write(data)  # type: ignore[attr-defined]

    def commit(self) -> None:
        """Make the file appear. Raises `UsageError` when it cannot be written whole."""
        if self.is_stdout:
            self.stream.flush()
            sys.stdout.flush()
            sys.stdout.buffer.write(self._memory.getvalue())
            sys.stdout.buffer.flush()
            return
        try:
            self.stream.close()
            if self._partial is not None:
                self._partial.replace(self._target)
        except OSError as error:
            self.discard()
            raise _failure(self._path, error) from error
        except UsageError:
            self.discard()
            raise

    def discard(self) -> None:
        """Remove what was written."""
        with contextlib.suppress(OSError, UsageError, ValueError):
            self.stream.close()
        if self._partial is not None:
            with contextlib.suppress(OSError):
                self._partial.unlink(missing_ok=True)


def write_output(path: str, content: str | bytes) -> None:
    """Write a whole file, or to standard output for `-`. Raises `UsageError`."""
    output = OutputFile(path)
    try:
        output.write_bytes(content.encode() if isinstance(content, str) else content)
        output.commit()
    except BaseException:
        output.discard()
        raise
