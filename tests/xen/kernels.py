"""Tiny paravirtual kernels, assembled here and run on the real machine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pvpatch.abi.asm import assemble
from runtime.backends import backend_named
from runtime.backends.xen.layout import numbers
from runtime.backends.xen.model import XenHypervisor
from runtime.machine import Machine, MachineConfig
from runtime.outcome import RunResult
from tests.xen.domains import VIRT_BASE, image_for

__all__ = ["Run", "call32", "call64", "run_kernel"]

DATA = 0x2000
HYPERCALL = numbers("hypercall")
ARGUMENTS_64 = ("rdi", "rsi", "rdx", "r10", "r8")
ARGUMENTS_32 = ("ebx", "ecx", "edx", "esi", "edi")


@dataclass(frozen=True)
class Run:
    """A kernel that has run: its end, and what it left in memory."""

    result: RunResult
    model: XenHypervisor
    labels: Mapping[str, int]
    width: int

    def words(self, count: int, offset: int = 0) -> list[int]:
        """Words of the guest's width from its data page on."""
        size = self.width // 8
        raw = self.model.domain.space.read(VIRT_BASE[self.width] + DATA + offset, size * count)
        return [int.from_bytes(raw[i : i + size], "little") for i in range(0, len(raw), size)]


def call64(name: str, *arguments: str | int) -> str:
    """A hypercall of a pv64 kernel, without the hypercall page."""
    loads = [f"mov {register}, {value}" for register, value in zip(ARGUMENTS_64, arguments, strict=False)]
    return "\n".join([*loads, f"mov eax, {HYPERCALL[name]}", "syscall"])


def call32(name: str, *arguments: str | int) -> str:
    """A hypercall of a pv32 kernel."""
    loads = [f"mov {register}, {value}" for register, value in zip(ARGUMENTS_32, arguments, strict=False)]
    return "\n".join([*loads, f"mov eax, {HYPERCALL[name]}", "int 0x82"])


def run_kernel(width: int, text: str, **symbols: int) -> Run:
    """Run a kernel that starts at its first instruction; `data` is the address of a page of its own.

    `off` ends it: the text is completed with that routine.
    """
    base = VIRT_BASE[width]
    call = call64 if width == 64 else call32
    text += f"\noff:\n{call('sched_op', 2, 'reason')}\n"
    known = {"data": base + DATA, "reason": base + DATA + 0xF00, **symbols}
    assembly = assemble(text, width, base, known)
    assert len(assembly.code) <= DATA
    backend = backend_named("xen")
    machine = Machine(MachineConfig(memory_mib=8, max_time_s=1.0), image_for(width, assembly.code), backend)
    model = machine.hypervisor
    assert isinstance(model, XenHypervisor)
    return Run(machine.run(), model, assembly.labels, width)
