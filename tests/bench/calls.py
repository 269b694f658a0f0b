"""What one ABI call costs: in the guest, with one exit, and by trap-and-emulate of the unpatched site."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

__all__ = ["CallCost", "call_costs"]

SOURCE = Path(__file__).with_name("calls.S")
BACKEND = "lguest"


@dataclass(frozen=True)
class CallCost:
    """Host nanoseconds of one operation on the deprivileging backend, the empty loop taken off."""

    name: str
    nanoseconds: float
    count: int


def _build(folder: Path, operation: str, count: int) -> Path:
    kernel = folder / f"{operation.lower()}-{count}.elf"
    command = ["gcc", "-m32", "-nostdlib", "-static", "-no-pie", "-Wl,-Ttext-segment=0x100000", "-Wl,-n"]
    command += ["-Wl,--build-id=none", f"-DCOUNT={count}", f"-D{operation}", "-o", str(kernel), str(SOURCE)]
    subprocess.run(command, check=True)
    return kernel


def _pvpatch(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "pvpatch", *arguments], check=True, stdout=subprocess.DEVNULL)


def _seconds(folder: Path, operation: str, count: int, patched: bool) -> float:
    kernel = _build(folder, operation, count)
    if patched:
        target = kernel.with_suffix(".patched")
        _pvpatch("patch", str(kernel), "-o", str(target))
        kernel = target
    stats = folder / "stats.json"
    best = float("inf")
    for _ in range(3):
        _pvpatch("run", str(kernel), "--backend", BACKEND, "--stats", str(stats))
        best = min(best, float(json.loads(stats.read_text())["host_seconds"]))
    return best


def call_costs(folder: Path) -> list[CallCost]:
    """The three costs, each as the best of three runs against an empty loop of the same length."""
    rows = []
    for name, operation, count, patched in (
        ("ABI call answered in the guest (irq_disable)", "OP_FLAG", 400_000, True),
        ("ABI call with one exit (cr3_write)", "OP_CR3", 20_000, True),
        ("the same instruction by trap-and-emulate (cli)", "OP_FLAG", 20_000, False),
    ):
        busy = _seconds(folder, operation, count, patched)
        empty = _seconds(folder, "OP_EMPTY", count, patched)
        rows.append(CallCost(name, (busy - empty) / count * 1e9, count))
    return rows
