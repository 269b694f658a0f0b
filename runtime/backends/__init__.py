"""Backends: one folder per hypervisor, all with the same file names.

    backend.py   `BACKEND`: capabilities and the factory (this module's `Backend`)
    model.py     the hypervisor itself; knows its own published interface, nothing of our ABI
    slots32.s / slots64.s   slot code: our ABI in terms of that interface
    *.toml       numbers and structure layouts of the interface

A backend answers capability questions first (`capabilities`), then builds a `Hypervisor` for one
machine. The machine calls the hypervisor's hooks; a hook that has nothing to say does what
hardware does, so `Hypervisor` itself is the bare machine.

Order of calls: `hidden_memory` -> machine built -> `attach` -> `load` -> `page_code` per
call page -> `start(entry)` -> guest runs -> hooks -> `counters`.

Rules for hooks: they run inside the emulator at an instruction boundary with all registers in
`machine.cpu.state`; they may change any register; they never stop the emulator
(`machine.power_off` and friends take effect at the next block).
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from pvpatch.abi.errors import UsageError
from runtime.boot import load_image
from runtime.cpu.ports import port_allowed

if TYPE_CHECKING:
    from runtime.boot.model import EntryState
    from runtime.cpu.cpuid import CpuidAnswer
    from runtime.cpu.delivery import Event
    from runtime.cpu.watch import CodeReader, Site
    from runtime.machine import Machine

__all__ = ["Backend", "Capabilities", "Hypervisor", "all_backends", "backend_named"]


@dataclass(frozen=True)
class Capabilities:
    """What a person, and the machine, ask about a backend before using it."""

    name: str
    backend_id: int
    """Goes into the call page's header."""
    privilege: Mapping[int, int]
    """Guest width (32, 64) to the privilege level at which its kernel runs; absent: no such guests."""
    memory: str
    """`guest tables`, `shadow` or `direct`."""
    time_source: str
    summary: str
    apics: bool = False
    """The guest's PC has a local APIC and an I/O APIC; else two 8259s are all that interrupts it."""
    watched: frozenset[str] = field(default_factory=frozenset)
    """Mnemonics (iced, lower case; `mov cs`, `mov ss`, `push cs`, `push ss` for the reads of these
    registers, `call far`) of instructions that do not trap by themselves where this
    hypervisor runs the guest; the machine finds each before it first runs and calls `on_watched`."""

    @property
    def widths(self) -> tuple[int, ...]:
        """Guest widths that can run, in ascending order."""
        return tuple(sorted(self.privilege))


class Hypervisor:
    """The hooks of one running hypervisor. The defaults are a bare machine."""

    ports_execute = True
    """IN and OUT that the CPU executes reach the devices; else all of them were to be intercepted."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine

    def load(self) -> EntryState:
        """Put the image into memory and say how it is entered: by the image's own boot protocol, unless
        this hypervisor builds its guests itself.

        Raises `ImageError` when the image cannot be loaded.
        """
        machine = self.machine
        return load_image(
            machine.image, machine.memory, machine.config.request, apics=machine.capabilities.apics
        )

    def page_code(self, width: int) -> bytes | None:
        """The call page for `width` as this backend wants it (whole page, header included), or
        None to leave the image's own."""
        return None

    def start(self, entry: EntryState) -> EntryState:
        """The image is in memory; returns the state in which the CPU really starts."""
        return entry

    def entered(self) -> None:
        """The CPU is as `start` said: the moment to set what an `EntryState` cannot express."""

    def on_event(self, event: Event) -> bool:
        """An exception or software interrupt, before delivery through the guest's IDT.

        RIP is on the instruction for faults, after it for INT n. True means dealt with: the
        guest goes on at the current RIP.
        """
        return False

    def on_invalid_opcode(self) -> bool:
        """#UD, before delivery; VMCALL and VMMCALL arrive here. True means dealt with."""
        return False

    def on_watched(self, site: Site) -> bool:
        """An instruction of `Capabilities.watched` is about to run; RIP is on it.

        True means emulated (this hook has set the registers; the machine moves RIP past it unless
        the hook has moved RIP itself, as by delivering a fault), False lets it run.
        """
        return False

    def port_allowed(self, site: Site) -> bool:
        """May user code reach the port of the instruction at `site`?"""
        return port_allowed(self.machine.cpu, self.machine.linear, site)

    def on_cpuid(self, leaf: int, subleaf: int, bare: CpuidAnswer) -> CpuidAnswer:
        """What CPUID gives, from what the bare machine would give."""
        return bare

    def on_syscall(self) -> bool:
        """SYSCALL, RIP on it. True means dealt with (RIP set to target - 2)."""
        return False

    def on_sysenter(self) -> bool:
        """SYSENTER, as for SYSCALL."""
        return False

    def interrupt_waiting(self) -> bool:
        """Is there an event that the guest should take as soon as it accepts one?"""
        return self.machine.platform.has_interrupt()

    def deliver_interrupt(self) -> None:
        """The guest accepts events now and one is waiting: deliver it."""
        self.machine.deliver_external(self.machine.platform.acknowledge())

    def on_halt(self) -> None:
        """The guest executed HLT at privilege 0 (RIP is after it)."""

    def console_input(self, data: bytes) -> None:
        """Bytes typed at the guest's console."""
        self.machine.platform.console_input(data)

    def watched(self) -> frozenset[str]:
        """What this guest is watched for, if not everything that the capabilities name."""
        return self.machine.capabilities.watched

    def code_reader(self) -> CodeReader:
        """How the watcher reads code: by the CPU's page tables, unless this hypervisor has a shorter way."""
        return self.machine.linear

    def is_own_code(self, address: int) -> bool:
        """True for linear addresses of the hypervisor's own guest-side code, which is not watched."""
        return False

    def call_exits(self) -> dict[str, int]:
        """ABI calls that ended in an exit, by name."""
        return {}

    def counters(self) -> dict[str, int]:
        """Figures of this hypervisor's own for the run's statistics."""
        return {}


class Backend(Protocol):
    """What `backend.py` offers under the name `BACKEND`."""

    @property
    def capabilities(self) -> Capabilities:
        """Answers that need no machine."""

    def hidden_memory(self, memory_size: int) -> int:
        """Bytes of memory above guest RAM that the hypervisor needs for itself."""

    def attach(self, machine: Machine) -> Hypervisor:
        """Build the hypervisor for one machine."""


def _load(folder: str) -> Backend | None:
    """The backend in a folder here; None for a folder without a `backend.py`."""
    module_name = f"{__name__}.{folder}.backend"
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name == module_name:
            return None
        raise
    found: Backend = module.BACKEND
    return found


def _folders() -> list[str]:
    return sorted(info.name for info in pkgutil.iter_modules(__path__) if info.ispkg)


def all_backends() -> dict[str, Backend]:
    """Every folder here that has a `backend.py`, by name."""
    loaded = [_load(folder) for folder in _folders()]
    return {backend.capabilities.name: backend for backend in loaded if backend is not None}


def backend_named(name: str) -> Backend:
    """The backend called `name`; a folder bears its backend's name, so only that one is loaded.

    Raises `UsageError` naming those that exist.
    """
    found = _load(name) if name in _folders() else None
    if found is None:
        raise UsageError(f"there is no backend '{name}'", f"there are: {', '.join(all_backends())}")
    return found
