"""VMI: i386 kernels at privilege 1 behind an option ROM, with the ABI's code for patched images."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from pvpatch.abi.errors import PvpatchError
from runtime.backends import Capabilities, Hypervisor
from runtime.backends.vmi.calls.control import enter_sysenter
from runtime.backends.vmi.model import HOST_PAGES, VmiModel
from runtime.backends.vmi.rom import PAGE, VROM_SIGNATURE
from runtime.cpu import flags as fl
from runtime.cpu.delivery import Event
from runtime.cpu.fastcall import FAST_CALL_LENGTH

if TYPE_CHECKING:
    from runtime.boot.model import EntryState
    from runtime.cpu.watch import Site
    from runtime.machine import Machine

__all__ = ["BACKEND", "VmiBackend", "VmiHypervisor"]

BACKEND_ID = 4
_SILENT = frozenset({
    "pushf", "pushfd", "popf", "popfd", "sgdt", "sidt", "sldt", "str", "smsw",
    "lar", "lsl", "verr", "verw",
})  # fmt: skip
"""Sensitive instructions that do not trap at privilege 1. (Moves of segment registers are as
sensitive, but watching every MOV would cost more than the rest of the run.)"""
RESIDENT_PAGES = 1
_PAGES_OF_4_MIB = 0xE7
"""Present, writable, user, accessed, dirty, large."""


class VmiHypervisor(Hypervisor):
    """Hands the machine's events to the model.

    A guest that holds the ROM's signature is taken for one that will look for the ROM and starts natively;
    any other would never call VMI_Init, so it starts at privilege 1 at once.
    """

    def __init__(self, machine: Machine) -> None:
        super().__init__(machine)
        self.model = VmiModel(machine, RESIDENT_PAGES)
        self.model.on_privileged = self._privileged
        self._knows_vmi = any(VROM_SIGNATURE in segment.data for segment in machine.image.segments)
        self._entry: EntryState | None = None

    # -- start -----------------------------------------------------------------------------------

    def start(self, entry: EntryState) -> EntryState:
        """The ROM is in place; see the class for how the guest begins."""
        self.model.install_rom()
        if self._knows_vmi:
            return entry
        root = self.machine.memory.size
        for index in range(1024):
            self.model.guest.store_u32(root + index * 4, index << 22 | _PAGES_OF_4_MIB)
        self._entry = self.model.activation.deprivileged(entry, root)
        return self._entry

    def entered(self) -> None:
        """Finish the CPU's state."""
        if self._entry is not None:
            self.model.activation.entered_deprivileged(self._entry)

    # -- events ----------------------------------------------------------------------------------

    def on_event(self, event: Event) -> bool:
        """Before VMI_Init the machine is bare; afterwards everything traps to the hypervisor."""
        if not self.model.active:
            return False
        return self._guarded(lambda: self.model.trap(event))

    def on_invalid_opcode(self) -> bool:
        """VMCALL in the ROM is a call."""
        code = self.machine.linear.try_read(self.model.code_linear(), 3)
        if code != b"\x0f\x01\xc1":
            return False
        dealt_with = False

        def call() -> None:
            nonlocal dealt_with
            dealt_with = self.model.vmcall()

        ended = self._guarded(call)
        return dealt_with or (ended and self.machine.is_ending)

    def _guarded(self, work: Callable[[], None]) -> bool:
        try:
            work()
        except PvpatchError as problem:
            self.machine.crash(problem.message)
        return True

    def _privileged(self, mnemonic: str, linear: int) -> None:
        """A privileged instruction faulted: expected from our own code, a missed site elsewhere."""
        if not self.is_own_code(linear):
            self.machine.stats.miss(mnemonic, linear)

    def on_watched(self, site: Site) -> bool:
        """A silently sensitive instruction in the kernel's code runs: nothing intercepts it."""
        if self.model.active and self.machine.cpu.cpl != 3:
            self.machine.stats.miss(site.mnemonic, site.address)
        return False

    def is_own_code(self, address: int) -> bool:
        """The ROM, and the guest-side code beside it."""
        return address >= self.model.known.virtual_top

    def on_sysenter(self) -> bool:
        """SYSENTER enters the kernel at privilege 1."""
        if not self.model.active:
            return False
        if not enter_sysenter(self.model):
            self.on_event(Event(fl.GP))
        self.machine.cpu.state.rip -= FAST_CALL_LENGTH
        return True

    def on_syscall(self) -> bool:
        """SYSCALL is not offered: #UD."""
        if not self.model.active:
            return False
        self.on_event(Event(fl.UD))
        self.machine.cpu.state.rip -= FAST_CALL_LENGTH
        return True

    # -- interrupts ------------------------------------------------------------------------------

    def interrupt_waiting(self) -> bool:
        """Something is pending and may come."""
        return self.model.interrupts.waiting() if self.model.active else super().interrupt_waiting()

    def deliver_interrupt(self) -> None:
        """The guest's IF word is set and something waits."""
        if not self.model.active:
            super().deliver_interrupt()
        else:
            self._guarded(self.model.interrupts.deliver)

    # -- figures ---------------------------------------------------------------------------------

    def counters(self) -> dict[str, int]:
        """The shadow's work."""
        shadow = self.model.shadow
        return {"shadow_fills": shadow.fills, "shadow_flushes": shadow.flushes}


class VmiBackend:
    """Capabilities and factory."""

    capabilities = Capabilities(
        name="vmi",
        backend_id=BACKEND_ID,
        privilege={32: 1},
        memory="shadow",
        time_source="GetCycleCounter and SetAlarm (cycles)",
        summary="VMware VMI, API 3.0: i386 kernels at privilege 1, shadow paging, an option ROM",
        watched=_SILENT,
    )

    def hidden_memory(self, memory_size: int) -> int:
        """The guest's resident pages, then the hypervisor's."""
        return (RESIDENT_PAGES + HOST_PAGES) * PAGE

    def attach(self, machine: Machine) -> VmiHypervisor:
        """A VMI hypervisor for one machine."""
        return VmiHypervisor(machine)


BACKEND = VmiBackend()
