"""The unwinder at work in one machine: what the CPU shows when an event is delivered, and the way back in."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import TYPE_CHECKING

from runtime.callpages import PatchedImage
from runtime.cpu import flags as fl
from runtime.cpu.linear import LinearMemory
from runtime.cpu.vcpu import VCpu
from runtime.memory import GuestMemory
from runtime.unwind.origins import Origins
from runtime.unwind.places import Places
from runtime.unwind.steps import Steps
from runtime.unwind.unwinder import Context, Presented, Unwinder

if TYPE_CHECKING:
    from runtime.cpu.delivery import Event

__all__ = ["Presenter"]

_FOLLOW_NS = 500
"""Guest time for one instruction followed: a guest that lets us follow much has less time."""
_TRAPS = frozenset({fl.DB, fl.BP, fl.OV})
"""Exceptions that are reported behind their instruction."""


class Presenter:
    """Shows the guest its own instructions where the code of its patch runs."""

    def __init__(
        self,
        patched: PatchedImage,
        cpu: VCpu,
        memory: GuestMemory,
        linear: LinearMemory,
        is_own_code: Callable[[int], bool],
    ) -> None:
        self._cpu = cpu
        self._left = ctypes.c_uint64()
        self._is_own_code = is_own_code
        self.origins = Origins(patched, memory.load)
        self.unwinder = Unwinder(self.origins, linear.try_read, lambda: self._left.value)
        self.steps = Steps(cpu, self.origins, is_own_code)
        self._places = Places(cpu, linear, self.steps.entered)
        locator = patched.locator
        for piece in self.origins.pieces:
            if piece.leaves:
                for start in {locator.resident_phys, locator.resident_virt}:
                    cpu.note_execution(start + piece.offset, ctypes.addressof(self._left))

    def context(self) -> Context:
        """Where the CPU stands now."""
        cpu, state = self._cpu, self._cpu.state
        bits = 64 if cpu.code_width == 64 else 32
        code, stack = (0, 0) if bits == 64 else (state.segments[fl.CS].base, state.segments[fl.SS].base)
        mask = (1 << bits) - 1
        registers = tuple(int(value) & mask for value in state.gpr)
        return Context(int(state.rip) & mask, registers, cpu.rflags, bits, int(code), int(stack))

    def present(self, event: Event) -> None:
        """`event` is about to be delivered: the CPU shows what it would have shown without the patch.

        An interrupt finds the guest where it is, unless control is on its way out through a slot that does
        not return: an instruction that may yet fault has not begun then.
        """
        if not event.external:
            self.steps.interrupted()
        if self.origins.spot(int(self._cpu.state.rip), self._code_base(), self._width()) is None:
            return
        found = self.presented(self.context(), event)
        if found is None:
            return
        context = found.context
        state = self._cpu.state
        for number, value in enumerate(context.registers):
            state.gpr[number] = value
        self._cpu.rflags = context.flags
        state.rip = context.rip

    def presented(self, context: Context, event: Event) -> Presented | None:
        """What the guest is to see of `context` when `event` is delivered; None to leave it as it is.

        The way back in is prepared.
        """
        done = not event.external and (event.software or event.vector in _TRAPS)
        if done and self._is_added(context):
            found = self.unwinder.run_on(context)
        else:
            found = self.unwinder.unwind(context)
        if found is None or (event.external and not found.piece.leaves):
            return None
        if not event.external:
            self.steps.interrupted()
        self._places.lead_back(found)
        return found

    def cost_ns(self) -> int:
        """Guest time for what was followed since this was asked last."""
        followed, self.unwinder.followed = self.unwinder.followed, 0
        return followed * _FOLLOW_NS

    def _is_added(self, context: Context) -> bool:
        """Is that code of the patch, or beside the guest?"""
        if self.origins.spot(context.rip, context.code_base, context.bits) is not None:
            return True
        return self._is_own_code(context.rip + context.code_base & (1 << context.bits) - 1)

    def _width(self) -> int:
        return 64 if self._cpu.code_width == 64 else 32

    def _code_base(self) -> int:
        return 0 if self._cpu.code_width == 64 else int(self._cpu.state.segments[fl.CS].base)
