"""What single operations cost a kernel on each backend, patched, and what trap-and-emulate costs instead."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

__all__ = ["OPERATIONS", "TRAPPING", "CallCosts", "call_costs"]

SOURCE = Path(__file__).with_name("calls.S")
TRAPPING = "lguest"
"""The backend on which the unpatched instruction traps and is emulated."""
OPERATIONS = {
    "OP_FLAG": ("irq_disable (answered in the guest)", 200_000),
    "OP_CR3": ("cr3_read and cr3_write (one exit)", 10_000),
    "OP_INT": ("INT 0x80 and IRET (system call)", 5_000),
    "OP_FAULT": ("page fault and IRET", 5_000),
}
RUNS = 3


@dataclass(frozen=True)
class CallCosts:
    """Host nanoseconds per operation and backend; the empty loop is taken off."""

    by_operation: dict[str, dict[str, float]]
    trap_and_emulate: float
    """The same `cli`, unpatched, on TRAPPING."""


def _build(folder: Path, operation: str, count: int, plain: bool = False) -> Path:
    kernel = folder / f"{operation.lower()}-{count}{'-plain' if plain else ''}.elf"
    command = ["gcc", "-m32", "-nostdlib", "-static", "-no-pie", "-Wl,-Ttext-segment=0x100000", "-Wl,-n"]
    command += ["-Wl,--build-id=none", f"-DCOUNT={count}", f"-D{operation}"]
    command += ["-DPLAIN"] if plain else []
    subprocess.run([*command, "-o", str(kernel), str(SOURCE)], check=True, capture_output=True)
    return kernel


def _pvpatch(*arguments: str) -> None:
    command = [sys.executable, "-m", "pvpatch", *arguments]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def _seconds(folder: Path, kernel: Path, backend: str) -> float:
    stats = folder / "stats.json"
    best = float("inf")
    for _ in range(RUNS):
        _pvpatch("run", str(kernel), "--backend", backend, "--stats", str(stats))
        best = min(best, float(json.loads(stats.read_text())["host_seconds"]))
    return best


def _patched(folder: Path, operation: str, count: int) -> Path:
    kernel = _build(folder, operation, count)
    target = kernel.with_suffix(".patched")
    _pvpatch("patch", str(kernel), "-o", str(target))
    return target


def _cost(folder: Path, operation: str, count: int, backend: str) -> float:
    busy = _seconds(folder, _patched(folder, operation, count), backend)
    empty = _seconds(folder, _patched(folder, "OP_EMPTY", count), backend)
    return (busy - empty) / count * 1e9


def _trap_and_emulate(folder: Path, count: int) -> float:
    """One `cli` of an unpatched kernel that faults at privilege 1 and is stepped over by the hypervisor."""
    busy = _seconds(folder, _build(folder, "OP_FLAG", count, plain=True), TRAPPING)
    empty = _seconds(folder, _build(folder, "OP_EMPTY", count, plain=True), TRAPPING)
    return (busy - empty) / count * 1e9


def call_costs(folder: Path, backends: list[str]) -> CallCosts:
    """Best of three runs for each operation on each backend. Raises CalledProcessError when a run fails."""
    table = {
        title: {backend: _cost(folder, operation, count, backend) for backend in backends}
        for operation, (title, count) in OPERATIONS.items()
    }
    return CallCosts(table, _trap_and_emulate(folder, OPERATIONS["OP_CR3"][1]))
