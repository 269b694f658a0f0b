"""The real GDT and the gates, which the guest changes only through hypercalls.

Follows drivers/lguest/segments.c and interrupts_and_traps.c: a privilege level of 0 becomes 1, the
accessed bit is set (the table is read-only to the guest), entries of the host stay. System
descriptors are not put into the real table: lguest's kernel guests have no use for them, and a call
gate would be a way into the host.
"""

from __future__ import annotations

from runtime.backends.lguest.errors import GuestKilled
from runtime.backends.lguest.interface import HostBuild, LguestInterface
from runtime.cpu.segments import Descriptor
from runtime.memory import MemoryRange

__all__ = ["GUEST_PRIVILEGE", "Gates", "RealGdt"]

GUEST_PRIVILEGE = 1
_DPL = 0x6000
_ACCESSED = 0x100
_CODE_OR_DATA = 0x1000
_PRESENT = 0x8000
_FLAT_CODE = (0x0000FFFF, 0x00CFBB00)
_FLAT_DATA = (0x0000FFFF, 0x00CFB300)
_HOST_CODE = (0x0000FFFF, 0x00CF9B00)
_HOST_DATA = (0x0000FFFF, 0x00CF9300)
_INTERRUPT_GATE, _TRAP_GATE = 0xE, 0xF


class RealGdt:
    """The table that the CPU uses, one page of the host's memory."""

    def __init__(self, memory: MemoryRange, physical: int, build: HostBuild) -> None:
        self._memory = memory
        self._physical = physical
        self._build = build
        for index, words in (
            (build.kernel_code, _FLAT_CODE),
            (build.kernel_data, _FLAT_DATA),
            (build.host_code, _HOST_CODE),
            (build.host_data, _HOST_DATA),
        ):
            self._put(index, *words)

    @property
    def limit(self) -> int:
        """GDTR limit."""
        return self._build.gdt_entries * 8 - 1

    def _put(self, index: int, low: int, high: int) -> None:
        self._memory.store_u32(self._physical + index * 8, low)
        self._memory.store_u32(self._physical + index * 8 + 4, high)

    def read(self, selector: int) -> Descriptor | None:
        """The descriptor that a selector names in the real table."""
        index = selector >> 3
        if selector & 4 or index >= self._build.gdt_entries:
            return None
        at = self._physical + index * 8
        return Descriptor(self._memory.load_u32(at), self._memory.load_u32(at + 4))

    def load(self, index: int, low: int, high: int) -> None:
        """LOAD_GDT_ENTRY: set one entry the way the guest may have it."""
        if index >= self._build.gdt_entries:
            raise GuestKilled(f"too many gdt entries {index}")
        if index in self._build.owned:
            return
        if not high & _CODE_OR_DATA:
            low = high = 0
        else:
            if not high & _DPL:
                high |= GUEST_PRIVILEGE << 13
            high |= _ACCESSED
        self._put(index, low, high)


class Gates:
    """The guest's interrupt descriptors as LOAD_IDT_ENTRY gave them."""

    def __init__(self, interface: LguestInterface) -> None:
        self._host_vectors = interface.host_vectors
        self._gates: list[tuple[int, int]] = [(0, 0)] * 256

    def load(self, vector: int, low: int, high: int) -> None:
        """LOAD_IDT_ENTRY. Gates of the host's own vectors are ignored, bad types kill."""
        if vector >= 256:
            raise GuestKilled(f"setting idt entry {vector}")
        if vector in self._host_vectors:
            return
        if not high & _PRESENT:
            self._gates[vector] = (0, 0)
            return
        if high >> 8 & 0xF not in (_INTERRUPT_GATE, _TRAP_GATE):
            raise GuestKilled(f"bad IDT type {high >> 8 & 0xF}")
        self._gates[vector] = (low & 0xFFFF, high & 0xFFFFEF00)

    def present(self, vector: int) -> bool:
        """Has the guest a handler?"""
        return bool(self._gates[vector][1] & _PRESENT)

    def address(self, vector: int) -> int:
        """Offset of the handler in the kernel's code segment."""
        low, high = self._gates[vector]
        return low | high & 0xFFFF0000

    def privilege(self, vector: int) -> int:
        """Who may use INT n: the gate's DPL."""
        return self._gates[vector][1] >> 13 & 3

    def disables_interrupts(self, vector: int) -> bool:
        """True for interrupt gates, False for trap gates."""
        return self._gates[vector][1] >> 8 & 0xF == _INTERRUPT_GATE
