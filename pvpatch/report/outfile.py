"""Output files that are complete or absent, and `-` for standard output."""

from __future__ import annotations

import contextlib
import io
import itertools
import os
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from pvpatch.abi.errors import UsageError

__all__ = ["OutputFile", "outputs", "write_output"]

_numbers = itertools.count()
_LINKS = 40
"""Symbolic links that the system follows one after another (path_resolution(7))."""


def _failure(path: str, error: OSError) -> UsageError:
    return UsageError(f"cannot write {path}: {error.strerror or error}", "choose another place")


def _leads_through_proc(target: Path) -> bool:
    """Whether the name, or a link on its way, stands in /proc (where links are to files that are open)."""
    for _ in range(_LINKS):
        folder = target.parent.resolve()
        if folder.is_relative_to("/proc"):
            return True
        target = folder / target.name
        if not target.is_symlink():
            return False
        target = folder / target.readlink()
    return False


class _Place(io.FileIO):
    """A file whose write errors name it, whoever writes."""

    def __init__(self, path: Path, shown: str) -> None:
        self._shown = shown
        super().__init__(path, "w")

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except OSError as error:
            raise _failure(self._shown, error) from error


class OutputFile:
    """A file opened early, so that a bad place is reported before the work, written beside its place
    and renamed into it by `commit`; `discard` leaves nothing behind. Text goes to `stream`.

    A device or a pipe is written where it is: renaming a file over it would destroy it. So is what is
    reached through /proc, as /dev/stdout and /dev/fd are: it is open already, and a new file in its place
    would not be what the other side reads.
    """

    def __init__(self, path: str) -> None:
        self.is_stdout = path == "-"
        self._path = path
        self._partial: Path | None = None
        self._memory = io.BytesIO()
        target = Path(path)
        raw: io.BufferedWriter | io.BytesIO = self._memory
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
        if mode is not None and (not stat.S_ISREG(mode) or _leads_through_proc(target)):
            return _Place(target, self._path)
        self._target = target.resolve()
        self._partial = self._target.with_name(f".pvpatch-{os.getpid()}-{next(_numbers)}.part")
        place = _Place(self._partial, self._path)
        if mode is not None:
            self._partial.chmod(stat.S_IMODE(mode))
        return place

    @property
    def in_place(self) -> bool:
        """A device, a pipe or standard output: nothing is renamed over it."""
        return self._partial is None

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


@contextlib.contextmanager
def outputs(**places: str) -> Iterator[dict[str, OutputFile]]:
    """Open the outputs that are wanted (those with a place), by option name: all appear when the block
    ends, none when it fails. Raises `UsageError`, also when two of them share a place.
    """
    _refuse_shared(places)
    files: dict[str, OutputFile] = {}
    try:
        for name, place in places.items():
            if place:
                files[name] = OutputFile(place)
        yield files
        for file in files.values():
            file.commit()
    except BaseException:
        for file in files.values():
            file.discard()
        raise


def _refuse_shared(places: dict[str, str]) -> None:
    """Two documents in one stream or file could not be told apart."""
    options: dict[str, str] = {}
    for name, place in places.items():
        if place in options and place not in ("", os.devnull):
            shown = "standard output" if place == "-" else place
            raise UsageError(f"--{options[place]} and --{name} both go to {shown}")
        options[place] = name


def write_output(path: str, content: str | bytes) -> None:
    """Write a whole file, or to standard output for `-`. Raises `UsageError`."""
    with outputs(output=path) as files:
        files["output"].write_bytes(content.encode() if isinstance(content, str) else content)
