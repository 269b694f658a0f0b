"""What a deprivileged kernel allows its user mode, and what of it the hypervisor cannot follow.

The CPU runs with IOPL 0 and the hypervisor's own TSS and GDT. The guest's IOPL, its I/O permission bitmap
(Intel SDM volume 1, 19.5.2) and the entries of its GDT that have no copy are looked up here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from iced_x86 import Instruction, Mnemonic, OpKind

from runtime.cpu import flags as fl
from runtime.cpu.delivery import Event
from runtime.cpu.ports import bitmap_allows, port_and_size
from runtime.deprivileged.operands import Operands
from runtime.memory import PageFault

if TYPE_CHECKING:
    from runtime.cpu.watch import Site
    from runtime.machine import Machine

__all__ = ["UserHost", "UserMode"]

_CLI, _STI = b"\xfa", b"\xfb"
_SELECTOR_FAULTS = frozenset({fl.NP, fl.SS_FAULT, fl.GP})
_LOCAL = 4
_PRESENT = 0x80
_ENTRY = 8
_WORD = 0xFFFFFFFF
_STORES = {
    Mnemonic.SGDT: (("V_gdt_limit", 2), ("V_gdt_base", 4)),
    Mnemonic.SIDT: (("V_idt_limit", 2), ("V_idt_base", 4)),
    Mnemonic.SLDT: (("V_ldt", 2),),
    Mnemonic.STR: (("V_tr", 2),),
    Mnemonic.SMSW: (("V_cr0", 2),),
}
"""What a 32-bit kernel has loaded: fields of the vCPU page and their sizes in bytes."""


class UserHost(Protocol):
    """The guest as the code beside it knows it."""

    @property
    def in_kernel(self) -> bool:
        """The guest's kernel runs, not its user mode."""

    def variable(self, name: str) -> int:
        """A variable of the code beside the guest, or a field of the vCPU page (V_NAME), with its
        neighbours where it is narrower than a pointer."""

    def read_linear(self, linear: int, length: int) -> bytes:
        """Guest memory. Raises `PageFault`."""

    def write_as_user(self, linear: int, data: bytes) -> None:
        """Write guest memory with user mode's rights. Raises `PageFault`."""

    def page_fault(self, fault: PageFault) -> None:
        """Give the guest a page fault at the current instruction."""


class UserMode:
    """The rights of one guest's user mode.

    `set_flag` sets the guest's interrupt flag; `entries` is how many entries of the guest's GDT, the null
    one included, the hypervisor's can mirror.
    """

    def __init__(
        self, machine: Machine, host: UserHost, set_flag: Callable[[bool], None], entries: int
    ) -> None:
        self._machine = machine
        self._host = host
        self._set_flag = set_flag
        self._entries = entries

    def iopl_allows(self) -> bool:
        """May user code change the interrupt flag and reach every port?"""
        return self._host.variable("V_iopl") & fl.IOPL == fl.IOPL

    def port_allowed(self, site: Site) -> bool:
        """May user code reach the port of the instruction at `site`?"""
        if self._host.in_kernel:
            return False
        if self.iopl_allows():
            return True
        try:
            base, limit = self._task_state()
            return bitmap_allows(self._read, base, limit, *port_and_size(self._machine.cpu, site))
        except PageFault:
            return False

    def _read(self, linear: int) -> int:
        return int.from_bytes(self._host.read_linear(linear, 2), "little")

    def _task_state(self) -> tuple[int, int]:
        """Base and limit in bytes of the guest's TSS; a limit of 0 without one. Raises `PageFault`."""
        raw = self._descriptor(self._host.variable("V_tr"))
        if raw is None:
            return 0, 0
        limit = int.from_bytes(raw[:2], "little") | (raw[6] & 0xF) << 16
        scaled = limit << 12 | 0xFFF if raw[6] & 0x80 else limit
        return self._host.variable("P_tr_base"), scaled

    def _descriptor(self, selector: int) -> bytes | None:
        """The guest's own GDT entry. Raises `PageFault`."""
        at = selector & 0xFFF8
        if not at or at + _ENTRY - 1 > self._host.variable("V_gdt_limit") & 0xFFFF:
            return None
        base = self._host.variable("V_gdt_base")
        return self._host.read_linear(base + at, _ENTRY)

    def stored(self, instruction: Instruction) -> bool:
        """SGDT, SIDT, SLDT, STR and SMSW of user code that no patch has taken: the guest's, not the
        hypervisor's. False for any other instruction."""
        names = _STORES.get(instruction.mnemonic)
        if names is None:
            return False
        raw = b"".join(
            (self._host.variable(name) & (1 << 8 * size) - 1).to_bytes(size, "little") for name, size in names
        )
        operands = Operands(self._machine.cpu, instruction)
        if instruction.op0_kind == OpKind.REGISTER:
            operands.set_register(instruction.op0_register, int.from_bytes(raw, "little"))
        else:
            segment = self._machine.cpu.state.segments[operands.segment_index(instruction)]
            try:
                self._host.write_as_user(int(segment.base) + operands.offset() & _WORD, raw)
            except PageFault as fault:
                self._host.page_fault(fault)
                return True
        operands.skip()
        return True

    def answered(self, event: Event) -> bool:
        """CLI and STI of user code that has the right to them; and a selector that is out of reach, which
        ends the guest in words instead of a fault that hardware would not give."""
        if self._machine.patched is None or event.software or event.vector not in _SELECTOR_FAULTS:
            return False
        if event.error_code:
            return self.out_of_reach(event.error_code)
        return event.vector == fl.GP and not self._host.in_kernel and self._flag_instruction()

    def _flag_instruction(self) -> bool:
        machine = self._machine
        state = machine.cpu.state
        base = 0 if machine.cpu.code_width == 64 else int(state.segments[fl.CS].base)
        try:
            code = self._host.read_linear(base + int(state.rip), 1)
        except PageFault:
            return False
        if code not in (_CLI, _STI) or not self.iopl_allows():
            return False
        state.rip += 1
        machine.stats.take_back(fl.GP)
        self._set_flag(code == _STI)
        return True

    def out_of_reach(self, error_code: int) -> bool:
        """Does the selector of an error code name an entry that is right, but has no copy? The guest ends."""
        index = error_code >> 3
        if error_code & (_LOCAL | 2) or index < self._entries:
            return False
        try:
            raw = self._descriptor(error_code)
        except PageFault:
            return False
        if raw is None or not raw[5] & _PRESENT:
            return False
        where, last = self._machine.capabilities.name, self._entries - 1
        limit = f"the backend {where} keeps entries 1 to {last}"
        self._machine.crash(f"GDT entry {index} cannot be used: {limit}")
        return True
