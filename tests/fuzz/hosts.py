"""The machines that run a kernel: our backends in this process, and QEMU."""

from __future__ import annotations

import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from pvpatch.bootimage import boot_image
from rewriter.emit.produce import patch_image
from rewriter.image import parse_image
from runtime.backends import all_backends, backend_named
from runtime.boot import BootRequest
from runtime.machine import Machine, MachineConfig
from tests.fuzz.build import Kernel
from tests.fuzz.journal import Journal, read_journal

__all__ = ["Run", "backends", "have_qemu", "patched", "run_on", "run_on_qemu"]

MEMORY_MIB = 3
"""Little, so that code gone astray meets the end of memory soon."""
GUEST_SECONDS = 0.05
"""Guest time for one snippet that hangs, and for a hundred that do not."""
LOG_SIZE = 0x84000
_NAME = Path("kernel")
_POLL_S = 0.02


@dataclass(frozen=True)
class Run:
    """What one machine showed of a kernel; `end` says how it ended, empty for the kernel's own end."""

    journal: Journal
    end: str = ""


def backends(width: int) -> tuple[str, ...]:
    """The backends that run kernels of this width."""
    return tuple(name for name, backend in all_backends().items() if width in backend.capabilities.widths)


def patched(image: bytes) -> bytes:
    """The patched file."""
    return patch_image(parse_image(image, _NAME)).file


def run_on(backend: str, kernel: Kernel, image: bytes, first: int = 0) -> Run:
    """Run `image` (the kernel or its patched file) from snippet `first` on."""
    config = MachineConfig(
        memory_mib=MEMORY_MIB, request=BootRequest(cmdline=f"{first}"), max_time_s=GUEST_SECONDS
    )
    machine = Machine(config, boot_image(parse_image(image, _NAME)), backend_named(backend))
    machine.memory.store(0, b"\xff" * machine.memory.size)  # no instruction: code gone astray ends soon
    result = machine.run()
    log = machine.memory.load(kernel.symbols["log"], LOG_SIZE)
    journal = read_journal(log, kernel.width, kernel.symbols["stack"])
    return Run(journal, "" if journal.complete else f"{result.outcome.name.lower()}: {result.detail}")


def have_qemu(width: int) -> bool:
    """Is QEMU for this width installed?"""
    return shutil.which(_qemu(width)) is not None


def _qemu(width: int) -> str:
    return "qemu-system-i386" if width == 32 else "qemu-system-x86_64"


def run_on_qemu(kernel: Kernel, image: bytes, first: int = 0, limit_s: float = 20.0) -> Run:
    """The same under QEMU; the log comes through its debug console."""
    with TemporaryDirectory() as name:
        path, out = Path(name) / "kernel", Path(name) / "log"
        path.write_bytes(image)
        command = [
            _qemu(kernel.width),
            "-accel",
            "tcg",
            "-m",
            str(MEMORY_MIB),
            "-display",
            "none",
            "-vga",
            "none",
            "-no-reboot",
            "-nic",
            "none",
            "-serial",
            "null",
            "-monitor",
            "none",
            "-debugcon",
            f"file:{out}",
            "-device",
            "isa-debug-exit,iobase=0xf4",
            "-kernel",
            str(path),
            "-append",
            str(first),
        ]
        end = time.monotonic() + limit_s
        with subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE) as machine:
            while machine.poll() is None and time.monotonic() < end:
                time.sleep(_POLL_S)
            hung = machine.poll() is None
            machine.kill()
        data = out.read_bytes() if out.exists() else b""
    journal = read_journal(data, kernel.width, kernel.symbols["stack"])
    return Run(journal, "" if journal.complete else "hung" if hung else "reset")
