"""Far transfers below privilege 0 to what is no code segment: call gates, task gates, task state segments.

The real tables hold none of the guest's, so that the transfer faults. Where the guest's own tables say that
hardware would follow it (SDM volume 3, 5.8.3 and 7.3), the fault would be a wrong answer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from pvpatch.abi.spec import load_spec
from runtime.cpu import flags as fl
from runtime.cpu.segments import Descriptor
from runtime.memory import PageFault
from runtime.unwind.unwinder import Context

if TYPE_CHECKING:
    from runtime.machine import Machine

__all__ = ["TableHost", "gate_at_slot"]

_TRANSFERS = frozenset({"far_jump", "far_call"})
"""A far return takes code segments only."""
_LOCAL = 4
_LDT = 0x02
_SYSTEM = {
    32: {
        0x01: "16-bit task state segment", 0x09: "task state segment", 0x04: "16-bit call gate",
        0x0C: "call gate", 0x05: "task gate",
    },
    64: {0x0C: "call gate"},
}  # fmt: skip
"""Type fields, the S bit included, that a far jump or call accepts (SDM volume 3, table 3-2). A busy TSS it
does not."""
_ONLY_GLOBAL = frozenset({0x01, 0x09})
"""A TSS descriptor lies in the GDT (SDM volume 3, 7.2.2)."""


class TableHost(Protocol):
    """Where the guest's tables are, as it believes."""

    def variable(self, name: str) -> int:
        """A variable of the code beside the guest."""

    def read_linear(self, linear: int, length: int) -> bytes:
        """Guest memory. Raises `PageFault`."""


def gate_at_slot(
    machine: Machine, host: TableHost, context: Context, number: int | None, error_code: int
) -> str | None:
    """What a fault at the start of a slot refused, in words: None unless it was a far transfer through a gate
    or to a TSS that hardware would have made. `number`: the slot's call where the address does not say it."""
    if number is None and machine.patched is not None:
        number = machine.patched.slot_at(context.code_base + context.rip & 0xFFFFFFFF)
    if number is None or load_spec().calls[number].name not in _TRANSFERS:
        return None
    try:
        selector = _selector(host, context, number, error_code)
        return None if selector is None else _gate(host, selector, context.bits)
    except PageFault:
        return None


def _selector(host: TableHost, context: Context, number: int, error_code: int) -> int | None:
    """The slot's argument, of which the error code has all but the RPL; 32-bit code passes smaller words."""
    call = load_spec().calls[number]
    index = call.stack_in.index("selector") + (call.kind == "call")
    for size in (context.bits // 8, 4):
        place = context.stack_base + context.registers[fl.RSP] + index * size
        selector = int.from_bytes(host.read_linear(place & (1 << context.bits) - 1, 2), "little")
        if not (selector ^ error_code) & 0xFFFC:
            return selector
    return None


def _gate(host: TableHost, selector: int, bits: int) -> str | None:
    found = _descriptor(host, selector, bits)
    if found is None or not found.present or found.dpl < selector & 3:
        return None
    kind = found.high >> 8 & 0x1F
    if selector & _LOCAL and kind in _ONLY_GLOBAL:
        return None
    name = _SYSTEM[bits].get(kind)
    return None if name is None else f"{name} ({selector:#x})"


def _descriptor(host: TableHost, selector: int, bits: int) -> Descriptor | None:
    """From the guest's GDT, or its LDT as the GDT describes it."""
    base, limit = host.variable("V_gdt_base"), host.variable("V_gdt_limit") & 0xFFFF
    if selector & _LOCAL:
        local = host.variable("V_ldt") & 0xFFFF
        table = None if local & _LOCAL else _descriptor(host, local, bits)
        if table is None or table.high >> 8 & 0x1F != _LDT:
            return None
        base, limit = table.base, table.limit
    index = selector & 0xFFF8
    if index + 7 > limit or selector & 0xFFFC == 0:
        return None
    raw = host.read_linear(base + index & (1 << bits) - 1, 8)
    return Descriptor(int.from_bytes(raw[:4], "little"), int.from_bytes(raw[4:], "little"))
