"""What single operations cost a kernel on each backend, patched, and what trap-and-emulate costs instead."""

from __future__ import annotations

import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from pvpatch.abi.errors import PvpatchError
from pvpatch.abi.layout import LOCATOR, slot_offset
from pvpatch.abi.spec import load_spec
from pvpatch.bootimage import boot_image
from rewriter.emit.produce import patch_image
from rewriter.image import open_image
from runtime.backends import backend_named
from runtime.machine import Machine, MachineConfig

__all__ = ["OPERATIONS", "TRAPPING", "Bench", "Operation"]

SOURCES = {32: Path(__file__).with_name("calls.S"), 64: Path(__file__).with_name("calls64.S")}
TRAPPING = "lguest"
"""The backend on which the unpatched instruction traps and is emulated."""
HYPERCALL = "alarm_cancel"
"""A call that is exactly one hypercall where there are any; without an alarm it does almost nothing there."""
RUNS = 5
_LINK = ("-nostdlib", "-static", "-no-pie", "-Wl,-Ttext-segment=0x100000,-n,--build-id=none")


@dataclass(frozen=True)
class Operation:
    """`define` chooses it in the source; `count` is how often a run does it."""

    define: str
    title: str
    count: int = 10_000


OPERATIONS = (
    Operation("OP_FLAG", "irq_disable (answered in the guest)", 200_000),
    Operation("OP_HYPERCALL", f"{HYPERCALL} (one hypercall; none on bare, kvm)", 50_000),
    Operation("OP_PORT", "in8 of port 0x80 (the emulator's own exit)", 50_000),
    Operation("OP_CR3", "cr3_read and cr3_write (one exit)"),
    Operation("OP_INT", "INT 0x80 and IRET (system call)"),
    Operation("OP_FAULT", "page fault and IRET"),
)


class Bench:
    """Builds, patches and times kernels in `folder`, by the processor time that this process takes for them.

    Methods raise `PvpatchError`, or CalledProcessError when gcc fails.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._empty: dict[tuple[int, int, str], float] = {}

    def cost(self, operation: Operation, width: int, backend: str) -> float:
        """Nanoseconds of one operation of a patched kernel: best of five runs, without the empty loop."""
        key = width, operation.count, backend
        if key not in self._empty:
            empty = Operation("OP_EMPTY", "", operation.count)
            self._empty[key] = _seconds(self._patched(empty, width), backend)
        busy = _seconds(self._patched(operation, width), backend)
        return (busy - self._empty[key]) / operation.count * 1e9

    def trap_and_emulate(self) -> float:
        """Nanoseconds of a `cli` that faults at privilege 1 and is stepped over by the hypervisor."""
        count = 10_000
        busy, empty = (
            _seconds(self._build(Operation(define, "", count), 32, plain=True), TRAPPING)
            for define in ("OP_FLAG", "OP_EMPTY")
        )
        return (busy - empty) / count * 1e9

    def _build(self, operation: Operation, width: int, *, plain: bool = False) -> Path:
        name = f"{operation.define.lower()}-{operation.count}-{width}{'-plain' if plain else ''}.elf"
        kernel = self._folder / name
        call = next(call for call in load_spec().calls if call.name == HYPERCALL)
        defines = {
            "COUNT": operation.count,
            operation.define: 1,
            "SLOT": slot_offset(call.number),
            "PAGE": LOCATOR.offset(f"off_page{width}"),
            "VIRTUAL": LOCATOR.offset("resident_virt"),
        } | ({"PLAIN": 1} if plain else {})
        words = [f"-D{name}={value}" for name, value in defines.items()]
        command = ["gcc", f"-m{width}", *_LINK, *words, "-o", str(kernel), str(SOURCES[width])]
        subprocess.run(command, check=True, capture_output=True)
        return kernel

    def _patched(self, operation: Operation, width: int) -> Path:
        kernel = self._build(operation, width)
        target = kernel.with_suffix(".patched")
        if not target.exists():
            target.write_bytes(patch_image(open_image(kernel)).file)
        return target


def _seconds(kernel: Path, backend: str) -> float:
    return min(_run(kernel, backend) for _ in range(RUNS))


def _run(kernel: Path, backend: str) -> float:
    machine = Machine(MachineConfig(memory_mib=32), boot_image(open_image(kernel)), backend_named(backend))
    start = time.process_time()
    result = machine.run()
    seconds = time.process_time() - start
    if result.exit_code:
        raise PvpatchError(f"{kernel.name} on {backend}: {result.detail}", exit_code=1)
    return seconds
