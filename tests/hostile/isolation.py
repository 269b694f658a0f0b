"""Commands in a process that may die: forked from the tests (no second start), with hard limits."""

from __future__ import annotations

import os
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from pvpatch.cli import build
from pvpatch.cli.failures import guarded
from tests.cli.command import Finished, checked

__all__ = ["Isolated", "isolated"]

APP = build()
"""Put together once, so that each forked child has it already."""

ADDRESS_SPACE = 4 << 30
"""Bytes of address space that a command may add to what the tests have already."""
CPU_SECONDS = 60
PEAK_MEMORY = 1 << 30
"""Bytes of resident memory that no bad input may add."""


@dataclass(frozen=True)
class Isolated(Finished):
    """How the process ended, and what it took (seconds of CPU, bytes)."""

    seconds: float
    peak: int


def _mapped() -> tuple[int, int]:
    """Address space and resident memory of this process, in bytes (proc(5), statm); a forked child starts
    with those of its parent."""
    total, resident = Path("/proc/self/statm").read_text(encoding="ascii").split()[:2]
    return int(total) * resource.getpagesize(), int(resident) * resource.getpagesize()


def _child(command: Callable[[], object], out: BinaryIO, err: BinaryIO, memory: int) -> None:
    """Never returns."""
    code = 99
    try:
        os.dup2(out.fileno(), 1)
        os.dup2(err.fileno(), 2)
        sys.stdout = os.fdopen(1, "w", encoding="utf-8", closefd=False)
        sys.stderr = os.fdopen(2, "w", encoding="utf-8", closefd=False)
        limit = _mapped()[0] + memory
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        code = guarded(command)
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


def _wait(child: int) -> tuple[int, resource.struct_rusage]:
    """Collect the child; one that sleeps for ever is killed."""
    end = time.monotonic() + 3 * CPU_SECONDS
    while True:
        found, status, usage = os.wait4(child, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status), usage
        if time.monotonic() > end:
            os.kill(child, signal.SIGKILL)
        time.sleep(0.003)


def isolated(*arguments: str | Path, memory: int = ADDRESS_SPACE) -> Isolated:
    """Run a command; the result is checked as everywhere, and its peak memory besides."""
    words = [str(argument) for argument in arguments]
    before = _mapped()[1]
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        child = os.fork()
        if child == 0:
            _child(lambda: APP(words, prog_name="pvpatch"), out, err, memory)
        code, usage = _wait(child)
        for stream in (out, err):
            stream.seek(0)
        text = err.read().decode("utf-8", "replace")
        ended = Isolated(
            code, out.read(), text, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024 - before
        )
    checked(ended)
    assert ended.peak < PEAK_MEMORY, f"{ended.peak >> 20} MiB"
    return ended
