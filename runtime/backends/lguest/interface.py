"""lguest's interface as data: numbers, layouts, and how the host's kernel was built.

Loaded from `interface.toml` (Linux 2.6.31 .. 4.13, see there for sources); offsets are asserted in
tests/backends/test_lguest_interface.py.
"""

from __future__ import annotations

import enum
import functools
import tomllib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

__all__ = ["ABI_HOST", "LINUX_HOST", "HostBuild", "Hypercall", "LguestInterface", "Shutdown", "interface"]


@dataclass(frozen=True)
class Hypercall:
    """One hypercall: its number, its arguments in register order, and why it exists."""

    name: str
    number: int
    arguments: tuple[str, ...]
    why: str


@dataclass(frozen=True)
class LguestInterface:
    """The published interface."""

    vector: int
    hypercalls: dict[int, Hypercall]
    fields: dict[str, tuple[int, int]]
    """Field of `lguest_data` -> (offset, size), in bytes."""
    data_size: int
    ring_entries: int
    ring_entry_words: int
    ring_free: int
    interrupt_count: int
    first_vector: int
    clock_interrupt: int
    controller_interrupt: int
    host_vectors: frozenset[int]
    always_exit: frozenset[int]
    reserved_top: int
    vmcall: bytes
    """The instruction by which guests of Linux 2.6.31 to 3.0 call."""
    vmcall_replacement: bytes
    vmcall_fields: dict[str, tuple[int, int]]
    """What their `lguest_data` has more: everything behind it lies further up."""

    def for_vmcall(self) -> LguestInterface:
        """The interface of Linux 2.6.31 to 3.0."""
        first = min(offset for offset, _ in self.vmcall_fields.values())
        more = sum(size for _, size in self.vmcall_fields.values())
        moved = {
            name: (offset + more if offset >= first else offset, size)
            for name, (offset, size) in self.fields.items()
        }
        return replace(self, fields=moved | self.vmcall_fields, data_size=self.data_size + more)

    def number(self, name: str) -> int:
        """The number of the hypercall called `name`."""
        return next(call.number for call in self.hypercalls.values() if call.name == name)

    def offset(self, name: str) -> int:
        """Byte offset of a field of `lguest_data`."""
        return self.fields[name][0]


class Shutdown(enum.IntEnum):
    """Reasons of the SHUTDOWN call."""

    POWEROFF = 1
    RESTART = 2


@dataclass(frozen=True)
class HostBuild:
    """What the host's kernel was compiled with: its GDT indices.

    The guest's gates always enter through `kernel_code`; entries of the host cannot be set by the
    guest (attempts are ignored, as in drivers/lguest/segments.c).
    """

    gdt_entries: int
    kernel_code: int
    kernel_data: int
    host_code: int
    host_data: int
    task_state: int
    double_fault: int
    fixed_kernel: bool = False
    """True: the guest cannot replace `kernel_code` and `kernel_data`."""

    @property
    def owned(self) -> frozenset[int]:
        """Indices that LOAD_GDT_ENTRY silently leaves alone."""
        own = {self.host_code, self.host_data, self.task_state, self.double_fault}
        return frozenset(own | ({self.kernel_code, self.kernel_data} if self.fixed_kernel else set()))


LINUX_HOST = HostBuild(32, 12, 13, 10, 11, 16, 31)
"""GDT_ENTRY_KERNEL_CS 12, _DS 13, LGUEST_CS 10, LGUEST_DS 11, TSS 16, DOUBLEFAULT_TSS 31."""

ABI_HOST = HostBuild(32, 28, 29, 26, 27, 30, 31, fixed_kernel=True)
"""A host built so that its own entries are the top six and 0..25 are free for a native guest's."""


@functools.cache
def interface() -> LguestInterface:
    """The interface, parsed once."""
    raw: dict[str, Any] = tomllib.loads(Path(__file__).with_name("interface.toml").read_text())
    calls = {
        row["number"]: Hypercall(name, row["number"], tuple(row["arguments"]), row["why"])
        for name, row in raw["hypercall"].items()
    }
    data, interrupts, vmcall = raw["lguest_data"], raw["interrupts"], raw["vmcall"]

    def places(fields: dict[str, Any]) -> dict[str, tuple[int, int]]:
        return {name: (row["offset"], row["size"]) for name, row in fields.items()}

    return LguestInterface(
        vector=raw["vector"],
        hypercalls=calls,
        fields=places(data["field"]),
        data_size=data["size"],
        ring_entries=raw["ring"]["entries"],
        ring_entry_words=raw["ring"]["entry_words"],
        ring_free=raw["ring"]["free"],
        interrupt_count=interrupts["count"],
        first_vector=interrupts["first_vector"],
        clock_interrupt=interrupts["clock"],
        controller_interrupt=interrupts["controller"],
        host_vectors=frozenset(interrupts["host_vectors"]),
        always_exit=frozenset(interrupts["always_exit"]),
        reserved_top=interrupts["reserved_top"],
        vmcall=bytes(vmcall["instruction"]),
        vmcall_replacement=bytes(vmcall["replacement"]),
        vmcall_fields=places(vmcall["field"]),
    )
