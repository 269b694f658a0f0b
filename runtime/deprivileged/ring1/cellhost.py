"""Cells and missed sites of a kernel at privilege 1: the stack of the code beside it, its segments."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from runtime.cpu import flags as fl
from runtime.cpu.linear import LinearMemory
from runtime.cpu.segments import Descriptor
from runtime.deprivileged.cells import CodeRange, LentStack
from runtime.deprivileged.frames import TrapVariables
from runtime.deprivileged.ring1.guestside import HOLE
from runtime.machine import Machine
from runtime.memory import MemoryRange, PageFault

__all__ = ["RingOneHost", "RingOneSide", "trap_variables"]

_USER = 3
_PRIVILEGE = 1
_FLAT = 0x00C0B300
"""Attributes of a flat writable data segment of privilege 1."""


def trap_variables(stop: int) -> TrapVariables:
    """Where traps32.s keeps the state of a trap; it stops at linear address `stop`."""
    kept = {fl.RAX: "S_eax", fl.RCX: "S_ecx", fl.RDX: "S_edx", fl.RBX: "S_ebx", fl.RSI: "S_esi"}
    return TrapVariables(stop, 32, "S_eip", "S_flags", "S_vector", "S_error", "S_cs", kept)


@dataclass(frozen=True)
class RingOneSide:
    """The code beside the guest: `place_of` says where its variables are and `lent_stack` is the end of the
    stack to lend, from the start of the resident pages; `flat_data` and `flat_code` are the selectors of its
    segments, in which the guest starts too."""

    place_of: Callable[[str], int]
    lent_stack: int
    flat_data: int
    flat_code: int


class RingOneHost:
    """The `CellHost`, `SiteHost` and `FrameHost` of a guest whose memory is `view`; the resident pages, in
    `pages`, lie behind its RAM."""

    def __init__(
        self,
        machine: Machine,
        side: RingOneSide,
        view: LinearMemory,
        pages: MemoryRange,
        page_fault: Callable[[PageFault], None],
    ) -> None:
        self._machine = machine
        self._side = side
        self._view = view
        self._pages = pages
        self._page_fault = page_fault
        selector = side.flat_data & ~3 | _PRIVILEGE
        size = machine.memory.size
        self.stack = LentStack(size + side.lent_stack, HOLE + side.lent_stack, (selector, _FLAT))

    @property
    def in_kernel(self) -> bool:
        """The guest's kernel runs, not its user mode."""
        return self._machine.cpu.cpl != _USER

    @property
    def code_selector(self) -> int:
        """CS as the guest's kernel believes it to be."""
        selector = int(self._machine.cpu.state.segments[fl.CS].selector)
        boot = selector & ~3 == self._side.flat_code & ~3
        return self.variable("P_boot_code") if boot else selector & ~3

    def read_linear(self, linear: int, length: int) -> bytes:
        """Guest memory. Raises `PageFault`."""
        return self._view.read(linear, length)

    def write_linear(self, linear: int, data: bytes) -> None:
        """Write guest memory. Raises `PageFault`."""
        self._view.write(linear, data)

    def write_as_user(self, linear: int, data: bytes) -> None:
        """Write guest memory with user mode's rights. Raises `PageFault`."""
        for offset in range(len(data)):
            self._view.translate(linear + offset & 0xFFFFFFFF, write=True, user=True)
        self._view.write(linear, data)

    def code_range(self, selector: int) -> CodeRange | None:
        """From the guest's GDT; selectors of an LDT cannot be loaded here. Raises `PageFault`."""
        index = selector & 0xFFF8
        if selector & 4 or not index or index + 7 > self.variable("V_gdt_limit"):
            return None
        raw = self.read_linear(self.variable("V_gdt_base") + index & 0xFFFFFFFF, 8)
        found = Descriptor(int.from_bytes(raw[:4], "little"), int.from_bytes(raw[4:], "little"))
        if not found.is_code or not found.present or found.high & fl.DESC_LONG:
            return None
        return CodeRange(found.base, found.limit)

    def page_fault(self, fault: PageFault) -> None:
        """Give the guest a page fault at the current EIP."""
        self._page_fault(fault)

    def variable(self, name: str) -> int:
        """A variable of the code beside the guest, or a field of the vCPU page."""
        return self._pages.load_u32(self._machine.memory.size + self._side.place_of(name))

    def set_variable(self, name: str, value: int) -> None:
        """Write 32 bits of a variable."""
        self._pages.store_u32(self._machine.memory.size + self._side.place_of(name), value)

    def code_base(self, selector: int) -> int:
        """Base of a code segment of the guest's; that of the code beside it is 0."""
        found = self.code_range(selector)
        return 0 if found is None else found.base
