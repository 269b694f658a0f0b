"""Time a command as a whole process, by the operating system's own accounting (wait4, getrusage(2))."""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Figure", "measure_in_turn"]


@dataclass(frozen=True)
class Figure:
    """Medians over the counted runs of one command: seconds of wall and CPU time, peak resident MiB."""

    name: str
    wall_s: float
    cpu_s: float
    peak_mib: float
    floor_mib: float
    """What this measuring process held itself: a child starts as its copy, so smaller peaks are not seen."""
    runs: int
    exit_code: int

    @property
    def peak(self) -> str:
        """The peak as text, or the bound that is all one can say."""
        return f"{self.peak_mib:.0f}" if self.peak_mib > self.floor_mib * 1.02 else f"< {self.floor_mib:.0f}"


def _once(command: Sequence[str], stdin: Path | None) -> tuple[float, float, float, int]:
    start = time.perf_counter()
    with (stdin or Path(os.devnull)).open("rb") as source:
        process = subprocess.Popen(
            command, stdin=source, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    wall = time.perf_counter() - start
    return wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024, process.returncode


def measure_in_turn(commands: dict[str, Sequence[str]], runs: int = 3) -> list[Figure]:
    """Run the commands A B A B ..., so that a drift of the machine's speed meets all of them alike."""
    samples: dict[str, list[tuple[float, float, float, int]]] = {name: [] for name in commands}
    for _ in range(runs):
        for name, command in commands.items():
            samples[name].append(_once(command, None))
    figures = []
    for name, rows in samples.items():
        median = [statistics.median(row[column] for row in rows) for column in range(3)]
        floor = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        figures.append(Figure(name, median[0], median[1], median[2], floor, runs, rows[-1][3]))
    return figures
