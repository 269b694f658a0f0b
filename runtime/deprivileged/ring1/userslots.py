"""Sites that user code executes: its calls land in slots whose far call is for privilege 1 only.

The upper half of a call page at privilege 1 is the bare page: the architecture's own instructions, which do
at privilege 3 what the unpatched site does there. What the CPU would answer from the hypervisor's tables is
answered from the guest's, and what needs a privilege stays the #GP that the instruction gives.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pvpatch.abi.layout import CALL_PAGE_SIZE
from pvpatch.abi.page import build_bare_page
from pvpatch.abi.spec import load_spec
from runtime.cpu import flags as fl
from runtime.cpu.delivery import Event
from runtime.memory import PageFault

if TYPE_CHECKING:
    from runtime.deprivileged.ring1.cellhost import RingOneHost
    from runtime.deprivileged.usermode import UserMode
    from runtime.machine import Machine

__all__ = ["UserSlots", "with_user_half"]

_HALF = CALL_PAGE_SIZE // 2
_FILL = 0xCC
_WORD = 0xFFFFFFFF
_UNPRIVILEGED = frozenset({
    "iret", "far_jump", "far_return", "far_call", "flags_write", "segment_load", "segment_store",
    "lar", "lsl", "verr", "verw", "arpl", "cpuid", "tsc_read", "tscp_read",
})  # fmt: skip
_FLAGS = "flags_read"
"""It shows the guest's IOPL; IF is set, as it is while user code runs."""
_BY_FLAG_RIGHTS = frozenset({"irq_disable", "irq_enable"})
_FROM_THE_GUEST = {
    "gdt_store": (("V_gdt_limit", fl.RAX, 0xFFFF), ("V_gdt_base", fl.RDX, _WORD)),
    "idt_store": (("V_idt_limit", fl.RAX, 0xFFFF), ("V_idt_base", fl.RDX, _WORD)),
    "ldt_store": (("V_ldt", fl.RAX, _WORD),),
    "tr_store": (("V_tr", fl.RAX, _WORD),),
    "smsw": (("V_cr0", fl.RAX, _WORD),),
}
"""Calls that only tell what the guest has loaded: variable, result register, bits."""


def with_user_half(page: bytes) -> bytes:
    """A 32-bit call page with the bare page in its upper half. Raises ValueError where either is too long."""
    bare = build_bare_page(32, 0, 0)
    if any(half.strip(bytes([_FILL])) for half in (page[_HALF:], bare[_HALF:])):
        raise ValueError("the call page has no room for what user code runs")
    return page[:_HALF] + bare[:_HALF]


class UserSlots:
    """Carries out the calls of one guest's user code; `flat_code` is the selector of its slots' far call."""

    def __init__(self, machine: Machine, host: RingOneHost, user: UserMode, flat_code: int) -> None:
        self._machine = machine
        self._host = host
        self._user = user
        self._flat_code = flat_code & ~3

    def answered(self, event: Event) -> bool:
        """Was that fault a slot's far call, made at privilege 3?"""
        fault = event.vector == fl.GP and not event.software and event.error_code & ~3 == self._flat_code
        if not fault or self._host.in_kernel:
            return False
        name = self._slot()
        if name is None:
            return False
        state = self._machine.cpu.state
        if name in _FROM_THE_GUEST or name == _FLAGS:
            self._tell(name)
        elif name in _UNPRIVILEGED or (name in _BY_FLAG_RIGHTS and self._user.iopl_allows()):
            state.rip = (int(state.rip) + _HALF) & _WORD
        else:
            return self._machine.hypervisor.on_event(Event(fl.GP))
        self._machine.stats.take_back(fl.GP)
        return True

    def _slot(self) -> str | None:
        """The call whose slot begins at EIP."""
        patched, state = self._machine.patched, self._machine.cpu.state
        number = patched.slot_at(int(state.segments[fl.CS].base + state.rip) & _WORD) if patched else None
        return None if number is None else load_spec().calls[number].name

    def _tell(self, name: str) -> None:
        """The results, and the slot's return."""
        state = self._machine.cpu.state
        pointer = int(state.gpr[fl.RSP])
        try:
            stack = (int(state.segments[fl.SS].base) + pointer) & _WORD
            back = int.from_bytes(self._host.read_linear(stack, 4), "little")
        except PageFault as fault:
            self._host.page_fault(fault)
            return
        if name == _FLAGS:
            believed = self._host.variable("V_iopl") & fl.IOPL
            state.gpr[fl.RAX] = self._machine.cpu.rflags & _WORD & ~fl.IOPL | believed
        for variable, register, bits in _FROM_THE_GUEST.get(name, ()):
            state.gpr[register] = self._host.variable(variable) & bits
        state.gpr[fl.RSP], state.rip = (pointer + 4) & _WORD, back
