"""The way back in: the guest returns to an instruction whose bytes a jump to the thunk has taken.

A handler that was shown a fault of an instruction in the middle of a window, or that single-steps there,
returns to that address. On hardware nothing is left of the instruction; here its address leads to the code
that stands for it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pvpatch.abi.layout import Origin
from runtime.cpu import flags as fl
from runtime.cpu.linear import LinearMemory
from runtime.cpu.vcpu import VCpu
from runtime.memory import PageFault
from runtime.unwind.unwinder import Presented

__all__ = ["Places"]


@dataclass(frozen=True)
class _Place:
    """An overwritten instruction: its address, that of its code (both as RIP), its width, and its piece."""

    rip: int
    code: int
    bits: int
    piece: Origin


class Places:
    """Overwritten instructions that the guest has been shown."""

    def __init__(self, cpu: VCpu, linear: LinearMemory, entered: Callable[[int, int], None]) -> None:
        """`entered` is told the guest's address and that of the code, each time the guest goes back in."""
        self._cpu = cpu
        self._entered = entered
        self._linear = linear
        self._known: dict[int, _Place] = {}

    def lead_back(self, shown: Presented) -> None:
        """The guest knows the address of `shown` now and may go on there."""
        context = shown.context
        if not shown.piece.overwritten:
            return
        address = context.rip + context.code_base & (1 << context.bits) - 1
        if address not in self._known:
            self._cpu.on_instruction(address, lambda: self._arrive(address))
            self._cpu.drop_translation(address, address + 1)
        self._known[address] = _Place(context.rip, shown.code, context.bits, shown.piece)

    def _arrive(self, address: int) -> None:
        place = self._known[address]
        cpu, state = self._cpu, self._cpu.state
        if (64 if cpu.code_width == 64 else 32) != place.bits:
            return
        if place.piece.anchor is not None:
            self._push(place.rip + place.piece.anchor, place.bits)
        self._entered(place.rip, place.code)
        state.rip = place.code
        cpu.jump(place.code)

    def _push(self, value: int, bits: int) -> None:
        """The return address with which the code is reached by a call."""
        state, size, mask = self._cpu.state, bits // 8, (1 << bits) - 1
        pointer = int(state.gpr[fl.RSP]) - size & mask
        base = 0 if bits == 64 else int(state.segments[fl.SS].base)
        try:
            self._linear.write(base + pointer & mask, (value & mask).to_bytes(size, "little"))
        except PageFault:
            return  # the code's own first use of its stack faults there
        state.gpr[fl.RSP] = pointer
