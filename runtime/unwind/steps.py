"""Single steps: one for each instruction of the guest's, none inside what the patch added.

With TF set the CPU reports every instruction of a thunk and its slot, and the jumps on the way there and
back. The guest is shown a step when an instruction of its own is done and the next one has not begun: in
its own code, or where a piece of a thunk begins. Arriving there from that same instruction, by the jump
that stands in its place, is no step.
"""

from __future__ import annotations

from collections.abc import Callable

from runtime.cpu import flags as fl
from runtime.cpu.vcpu import VCpu
from runtime.unwind.origins import Origins, Spot

__all__ = ["Steps"]

_UNKNOWN = -1
_GAP = 16
"""Blocks between two steps of one stretch at most: each step is one, and what answers a call adds a few."""


class Steps:
    """The single steps of one CPU; `is_own_code` knows a hypervisor's code beside the guest."""

    def __init__(self, cpu: VCpu, origins: Origins, is_own_code: Callable[[int], bool]) -> None:
        self._cpu = cpu
        self._origins = origins
        self._is_own_code = is_own_code
        self._running: int | None = None
        """The guest's instruction whose code the last step was in, None where the guest ran its own code;
        `_UNKNOWN` for one that set TF itself, which no step follows."""
        self._place = 0
        self._block = 0

    def entered(self, origin: int, place: int) -> None:
        """The guest has returned to an overwritten instruction, and goes on at `place`, its code."""
        self._running, self._place, self._block = origin, place, self._cpu.control.blocks

    def interrupted(self) -> None:
        """The guest is shown something else; what follows begins anew."""
        self._running = None

    def hidden(self) -> bool:
        """A #DB has come: is it a step that the guest is not to see?"""
        cpu, state = self._cpu, self._cpu.state
        if not cpu.rflags & fl.TF or state.dr[6] & fl.DR6_BREAKPOINTS:
            return False
        bits = 64 if cpu.code_width == 64 else 32
        base = 0 if bits == 64 else int(state.segments[fl.CS].base)
        rip = int(state.rip)
        if cpu.control.blocks - self._block > _GAP:
            self._running = None
        self._block = cpu.control.blocks
        spot = self._origins.spot(rip, base, bits)
        if spot is None and not self._is_own_code(rip + base & (1 << bits) - 1):
            return self._in_guest_code(rip)
        if spot is None or spot.piece is None or not spot.begins:
            self._inside(spot, bits)
            return True
        return self._at_piece(spot, rip, spot.base + spot.piece.origin & (1 << bits) - 1)

    def _inside(self, spot: Spot | None, bits: int) -> None:
        """In the middle of the code for an instruction; where it is not the one that was stepped into, TF has
        been set in it."""
        piece = None if spot is None else spot.piece
        elsewhere = spot is not None and piece is not None and (
            self._running != spot.base + piece.origin & (1 << bits) - 1
        )
        if self._running is None or elsewhere:
            self._running = _UNKNOWN

    def _in_guest_code(self, rip: int) -> bool:
        arrived = self._running in (rip, _UNKNOWN)
        self._running = None
        return arrived

    def _at_piece(self, spot: Spot, rip: int, origin: int) -> bool:
        """The instruction at `origin` is next, and stands there as code at `rip`."""
        assert spot.piece is not None
        came_from_guest = self._running is None and not spot.piece.overwritten and not spot.piece.back
        same = self._running == origin and self._place != rip
        if came_from_guest or same or self._running == _UNKNOWN:
            self._running, self._place = origin, rip
            return True
        self._running = None
        return False
