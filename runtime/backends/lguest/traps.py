"""Traps and interrupts into the guest: frames, gates, stacks (interrupts_and_traps.c of lguest).

The frame is the hardware's, with RPL 1 in CS and SS. What the host reflects (page faults, #GP,
#NM, interrupts) shows `irq_enabled` in place of IF; what the CPU delivers directly through the real
IDT (trap gates of all other vectors) shows the real IF, which is always set.
"""

from __future__ import annotations

from runtime.backends.lguest.descriptors import GUEST_PRIVILEGE, Gates, RealGdt
from runtime.backends.lguest.errors import GuestKilled
from runtime.backends.lguest.interface import HostBuild, LguestInterface
from runtime.backends.lguest.space import GuestSpace
from runtime.cpu import flags as fl
from runtime.cpu.linear import LinearMemory
from runtime.cpu.segments import set_code_segment, set_stack_segment, update_modes
from runtime.cpu.vcpu import VCpu
from runtime.memory import PageFault

__all__ = ["SharedPage", "Traps"]

_MAX_STACK_PAGES = 2


class SharedPage:
    """The guest's `struct lguest_data`, once LGUEST_INIT has named it."""

    def __init__(self, space: GuestSpace, interface: LguestInterface) -> None:
        self._space = space
        self.interface = interface
        """Whose layout it has."""
        self.address: int | None = None

    def has(self, name: str) -> bool:
        """Is there such a field?"""
        return name in self.interface.fields

    def read(self, name: str) -> int:
        """A 32-bit field; 0 before LGUEST_INIT."""
        if self.address is None:
            return 0
        return self._space.physical.load_u32(self.address + self.interface.offset(name))

    def write(self, name: str, value: int) -> None:
        """Set a 32-bit field; nothing happens before LGUEST_INIT."""
        if self.address is not None:
            self._space.physical.store_u32(self.address + self.interface.offset(name), value)


class Traps:
    """Delivery into the guest of one CPU."""

    def __init__(
        self,
        cpu: VCpu,
        view: LinearMemory,
        shared: SharedPage,
        gdt: RealGdt,
        gates: Gates,
        build: HostBuild,
        always_exit: frozenset[int],
    ) -> None:
        self._cpu = cpu
        self._view = view
        self._shared = shared
        self._gdt = gdt
        self._gates = gates
        self._always_exit = always_exit
        self._code_selector = build.kernel_code << 3 | GUEST_PRIVILEGE
        self._stack_selector = build.kernel_data << 3 | GUEST_PRIVILEGE
        self._stack_pointer = 0

    def set_stack(self, selector: int, pointer: int, pages: int) -> None:
        """SET_STACK: where entries from ring 3 put their frame."""
        if selector & 3 != GUEST_PRIVILEGE:
            raise GuestKilled(f"bad stack segment {selector:#x}")
        if pages > _MAX_STACK_PAGES:
            raise GuestKilled(f"bad stack pages {pages}")
        self._stack_selector = selector & 0xFFFF
        self._stack_pointer = pointer

    def is_direct(self, vector: int) -> bool:
        """True if the real IDT leads straight to the guest: a trap gate the host does not need."""
        if vector in self._always_exit or not self._gates.present(vector):
            return False
        return not self._gates.disables_interrupts(vector)

    def deliver(self, vector: int, error_code: int | None, *, fault: bool, direct: bool = False) -> bool:
        """Enter the guest's handler; False if it has none.

        `error_code` is pushed unless None; `fault` sets RF in the saved flags as hardware does.
        """
        if not self._gates.present(vector):
            return False
        state = self._cpu.state
        segments = state.segments
        words: list[int] = []
        if self._cpu.cpl == GUEST_PRIVILEGE:
            selector, pointer, stack = segments[fl.SS].selector, state.gpr[fl.RSP] & 0xFFFFFFFF, None
            base = segments[fl.SS].base
        else:
            selector, pointer = self._stack_selector, self._stack_pointer
            stack = self._gdt.read(selector)
            if stack is None or not stack.present or not stack.is_writable_data:
                raise GuestKilled(f"bad stack segment {selector:#x}")
            if stack.dpl != GUEST_PRIVILEGE:
                raise GuestKilled(f"bad stack segment {selector:#x}")
            base = stack.base
            words = [segments[fl.SS].selector, state.gpr[fl.RSP] & 0xFFFFFFFF]
        rflags = self._cpu.rflags | (fl.RF if fault else 0)
        if not direct and not self._shared.read("irq_enabled"):
            rflags &= ~fl.IF
        words += [rflags, segments[fl.CS].selector, state.rip & 0xFFFFFFFF]
        if error_code is not None:
            words.append(error_code & 0xFFFFFFFF)
        frame = b"".join(word.to_bytes(4, "little") for word in reversed(words))
        pointer = (pointer - len(frame)) & 0xFFFFFFFF
        try:
            self._view.write((base + pointer) & 0xFFFFFFFF, frame)
        except PageFault as problem:
            raise GuestKilled(
                f"no stack for trap {vector} at {state.rip:#x}: {problem.linear:#x} is not writable"
            ) from problem
        self._enter(vector, selector, pointer, stack is not None)
        if self._gates.disables_interrupts(vector):
            self._shared.write("irq_enabled", 0)
        return True

    def _enter(self, vector: int, stack_selector: int, pointer: int, from_user: bool) -> None:
        """Set CS:EIP, SS:ESP, flags and level for the handler."""
        state = self._cpu.state
        if from_user:
            stack = self._gdt.read(stack_selector)
            assert stack is not None  # read by deliver
            set_stack_segment(self._cpu, stack_selector, stack)
        code = self._gdt.read(self._code_selector)
        if code is None or not code.present or not code.is_code or code.dpl != GUEST_PRIVILEGE:
            raise GuestKilled(f"the guest's code segment {self._code_selector:#x} is not one")
        set_code_segment(self._cpu, self._code_selector, code)
        state.gpr[fl.RSP] = pointer
        state.rip = self._gates.address(vector)
        self._cpu.rflags = self._cpu.rflags & ~(fl.TF | fl.NT | fl.RF | fl.VM)
        state.hflags &= ~fl.HF_INHIBIT_IRQ
        update_modes(self._cpu, GUEST_PRIVILEGE)
