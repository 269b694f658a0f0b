"""What every command of a case must keep to, and that it does the same a second time."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.hostile.isolation import Isolated, isolated

__all__ = ["GUEST_SECONDS", "MEMORY_MIB", "Problem", "twice"]

GUEST_SECONDS = 0.002
MEMORY_MIB = 16
HOST_SECONDS = 30
"""CPU time of a command: its start, and `GUEST_SECONDS` at 60 host seconds each, on a busy machine."""
OWN_MEMORY = 400 << 20
"""Bytes besides the guest's: 200 MB of a run, and copies of an image that a scan or a patch makes."""
CODES = (0, 1, 2, 3, 4, 5)
_HOST_TIME = re.compile(r" in [0-9.]+ s$|time: scan .*|memory: .*", re.MULTILINE)


class Problem(Exception):
    """A command did what none may do."""


@dataclass(frozen=True)
class Done:
    """A command's end, without what the host's clock says."""

    code: int
    out: bytes
    err: str
    files: dict[str, bytes]


def _files(folder: Path, inputs: Sequence[str]) -> dict[str, bytes]:
    found = {}
    for path in sorted(folder.iterdir()):
        if path.name not in inputs:
            found[path.name] = path.read_bytes()
    return found


def _clean(name: str, data: bytes) -> bytes:
    """Counters without the host's seconds."""
    return re.sub(rb'"host_seconds": [0-9.e-]+', b"", data) if name == "stats" else data


def _effects(text: str) -> set[str]:
    hidden = ("Cc", "Cf", "Cs", "Zl", "Zp")
    return {one for one in text if unicodedata.category(one) in hidden} - {"\n", "\t"}


def _once(folder: Path, words: Sequence[str | Path]) -> Done:
    inputs = [path.name for path in folder.iterdir()]
    command = " ".join(str(word) for word in words)
    try:
        ended: Isolated = isolated(*words)
    except AssertionError as error:
        raise Problem(f"{command}: {error}") from error
    if ended.code not in CODES:
        raise Problem(f"{command}: exit {ended.code}: {ended.err}")
    if ended.seconds > HOST_SECONDS:
        raise Problem(f"{command}: {ended.seconds:.1f} s")
    if ended.peak > OWN_MEMORY + (MEMORY_MIB << 20):
        raise Problem(f"{command}: {ended.peak >> 20} MiB")
    files = _files(folder, inputs)
    if ended.code in (2, 3) and (files or ended.err.count("\n") != 1 or ended.out):
        raise Problem(f"{command}: refused, and left {sorted(files)}, {ended.err!r}, {ended.out[:100]!r}")
    if [name for name in files if name.startswith(".")]:
        raise Problem(f"{command}: left {sorted(files)}")
    if _effects(ended.err):
        raise Problem(f"{command}: raw text on the terminal: {ended.err!r}")
    for name in files:
        (folder / name).unlink()
    out = _HOST_TIME.sub("", ended.out.decode("utf-8", "replace")).encode()
    kept = {name: _clean(name, data) for name, data in files.items()}
    return Done(ended.code, out, _HOST_TIME.sub("", ended.err), kept)


def twice(folder: Path, *words: str | Path) -> Done:
    """Run a command two times in `folder`, whose files are its inputs; what it writes there is taken away.

    Raises `Problem`: a signal, a traceback, another exit code than the documented ones, a limit missed, a
    file left by a refusal, or a difference between the two.
    """
    first, second = _once(folder, words), _once(folder, words)
    if first != second:
        parts = [
            name for name in ("code", "out", "err", "files") if getattr(first, name) != getattr(second, name)
        ]
        raise Problem(f"{' '.join(map(str, words))}: two runs differ in {', '.join(parts)}")
    return first
