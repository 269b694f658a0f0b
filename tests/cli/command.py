"""Running `pvpatch`, as a process of its own with limits, or quickly inside this one."""

from __future__ import annotations

import io
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

from pvpatch.cli import build
from pvpatch.cli.failures import guarded

__all__ = ["Finished", "checked", "complaint", "files_below", "inside", "process"]

SOURCES = Path(__file__).resolve().parents[2]
ADDRESS_SPACE = 6 << 30
"""Bytes of address space that a process may have; emulated code caches alone reserve one GiB."""
SECONDS = 60
"""Longest a single command may take, with room for a machine that does other work."""
COMMAND = (sys.executable, "-m", "pvpatch")


@dataclass(frozen=True)
class Finished:
    """How a command ended."""

    code: int
    out: bytes
    err: str

    @property
    def text(self) -> str:
        """Standard output as text."""
        return self.out.decode("utf-8", "replace")


def checked(finished: Finished) -> Finished:
    """No command ever shows a traceback or blames itself."""
    assert "Traceback" not in finished.err, finished.err
    assert "a fault of pvpatch itself" not in finished.err, finished.err
    assert finished.code != 70, finished.err
    assert finished.code >= 0, f"killed by signal {-finished.code}: {finished.err}"
    return finished


def _limit() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def environment() -> dict[str, str]:
    """This process's own, with the sources in reach from any directory and no colours forced."""
    dropped = ("FORCE_COLOR", "PY_COLORS", "COLUMNS", "LINES", "PVPATCH_TRACEBACK")
    kept = {name: value for name, value in os.environ.items() if name not in dropped}
    return {**kept, "PYTHONPATH": str(SOURCES)}


def process(
    *arguments: str | Path, cwd: Path | None = None, stdout: int = subprocess.PIPE, stdin: bytes = b""
) -> Finished:
    """Run the real command with bounded memory and time."""
    done = subprocess.run(
        [*COMMAND, *map(str, arguments)],
        input=stdin,
        stdout=stdout,
        stderr=subprocess.PIPE,
        cwd=cwd,
        env=environment(),
        timeout=SECONDS * 2,
        preexec_fn=_limit,
        check=False,
    )
    return checked(Finished(done.returncode, done.stdout or b"", done.stderr.decode("utf-8", "replace")))


class _Pipe(io.TextIOWrapper):
    """A text stream over memory, as a pipe would be."""

    def __init__(self) -> None:
        self.memory = io.BytesIO()
        super().__init__(self.memory, encoding="utf-8", write_through=True)


def inside(*arguments: str | Path) -> Finished:
    """Run the command in this process: the same code without the second that a start takes."""
    out, err = _Pipe(), _Pipe()
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with redirect_stdout(out), redirect_stderr(err):
            code = guarded(lambda: build()([str(argument) for argument in arguments]))
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    return checked(Finished(code, out.memory.getvalue(), err.memory.getvalue().decode("utf-8", "replace")))


def complaint(finished: Finished) -> str:
    """The one clear line of a command that failed; asserts that there is nothing else."""
    lines = finished.err.splitlines()
    assert len(lines) == 1, finished.err
    assert lines[0].startswith("pvpatch: "), finished.err
    assert finished.out == b"", finished.out[:200]
    assert len(lines[0]) < 600, "a line that long is not clear"
    return lines[0].removeprefix("pvpatch: ")


def files_below(folder: Path) -> Sequence[str]:
    """Every file under `folder`, hidden ones included: what a command has left behind."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir())
