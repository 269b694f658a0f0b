"""Cells of a kernel at privilege 1: the stack of the code beside it, and code segments of its own table."""

from __future__ import annotations

from collections.abc import Callable

from runtime.cpu import flags as fl
from runtime.cpu.segments import Descriptor
from runtime.deprivileged.cells import CodeRange, LentStack
from runtime.deprivileged.missed import SiteHost
from runtime.deprivileged.ring1.guestside import HOLE
from runtime.memory import PageFault

__all__ = ["RingOneCells"]

_USER = 3
_PRIVILEGE = 1
_FLAT = 0x00C0B300
"""Attributes of a flat writable data segment of privilege 1."""


class RingOneCells:
    """The `CellHost` of a guest whose missed sites `sites` serves.

    `lent_stack` is the end of the stack to lend, from the start of the resident pages.
    """

    def __init__(self, sites: SiteHost, lent_stack: int, page_fault: Callable[[PageFault], None]) -> None:
        self._sites = sites
        self._page_fault = page_fault
        selector = sites.flat_selectors[1] | _PRIVILEGE
        size = sites.machine.memory.size
        self.stack = LentStack(size + lent_stack, HOLE + lent_stack, (selector, _FLAT))

    @property
    def in_kernel(self) -> bool:
        """The guest's kernel runs, not its user mode."""
        return self._sites.machine.cpu.cpl != _USER

    def read_linear(self, linear: int, length: int) -> bytes:
        """Guest memory. Raises `PageFault`."""
        return self._sites.read_linear(linear, length)

    def write_linear(self, linear: int, data: bytes) -> None:
        """Write guest memory. Raises `PageFault`."""
        self._sites.write_linear(linear, data)

    def code_range(self, selector: int) -> CodeRange | None:
        """From the guest's GDT; selectors of an LDT cannot be loaded here. Raises `PageFault`."""
        sites, index = self._sites, selector & 0xFFF8
        if selector & 4 or not index or index + 7 > sites.load_variable("V_gdt_limit"):
            return None
        raw = self.read_linear(sites.load_variable("V_gdt_base") + index & 0xFFFFFFFF, 8)
        found = Descriptor(int.from_bytes(raw[:4], "little"), int.from_bytes(raw[4:], "little"))
        if not found.is_code or not found.present or found.high & fl.DESC_LONG:
            return None
        return CodeRange(found.base, found.limit)

    def page_fault(self, fault: PageFault) -> None:
        """Give the guest a page fault at the current EIP."""
        self._page_fault(fault)
