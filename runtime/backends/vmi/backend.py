"""VMI: i386 kernels at privilege 1 behind an option ROM, with the ABI's code for patched images."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from pvpatch.abi.errors import PvpatchError
from runtime.backends import Capabilities, Hypervisor
from runtime.backends.vmi.calls.control import enter_sysenter
from runtime.backends.vmi.calls.cpu import offered
from runtime.backends.vmi.model import HOST_PAGES, VmiModel
from runtime.backends.vmi.resident import (
    BACKEND_ID,
    CODE_BIT,
    CODE_PAGES,
    FLAT_CODE,
    FLAT_DATA,
    GUEST_ENTRIES,
    HOLE,
    IDENTITY_PAGE,
    LENT_STACK,
    RESIDENT_PAGES,
    boot_entry,
    call_page,
    caller_of,
    place_of,
    resident,
    write_identity_table,
    write_resident,
)
from runtime.backends.vmi.rom import PAGE, VROM_SIGNATURE
from runtime.cpu import flags as fl
from runtime.cpu.delivery import Event
from runtime.cpu.fastcall import FAST_CALL_LENGTH
from runtime.deprivileged.cells import Cells
from runtime.deprivileged.frames import TrapFrames
from runtime.deprivileged.guestcode import GuestCode
from runtime.deprivileged.missed import SILENT, MissedSites
from runtime.deprivileged.operands import mnemonic_name
from runtime.deprivileged.ring1.cellhost import RingOneHost, RingOneSide, trap_variables
from runtime.deprivileged.ring1.userslots import UserSlots
from runtime.deprivileged.usermode import UserMode

if TYPE_CHECKING:
    import iced_x86

    from runtime.boot.model import EntryState
    from runtime.cpu.cpuid import CpuidAnswer
    from runtime.cpu.watch import Site
    from runtime.machine import Machine

__all__ = ["BACKEND", "VmiBackend", "VmiHypervisor"]

_VMCALL = b"\x0f\x01\xc1"
_USER = 3


class VmiHypervisor(Hypervisor):
    """Hands the machine's events to the model.

    A patched image begins in the resident code, which finds the ROM and calls VMI_Init. Any other that
    holds the ROM's signature is taken for one that will look for the ROM, and starts natively; what is
    left would never call VMI_Init, so it starts at privilege 1 at once.
    """

    def __init__(self, machine: Machine) -> None:
        super().__init__(machine)
        self.model = VmiModel(machine, RESIDENT_PAGES)
        self.model.on_privileged = self._privileged
        self._patched = machine.patched is not None
        self._knows_vmi = any(VROM_SIGNATURE in segment.data for segment in machine.image.segments)
        self._entry: EntryState | None = None
        self._code = GuestCode(machine, (self.model.known.virtual_top, 1 << 32))
        side = RingOneSide(place_of, LENT_STACK, FLAT_DATA, FLAT_CODE)
        host = RingOneHost(machine, side, self.model.view, self.model.guest, self.model.page_fault)
        self._cells = Cells(machine, host, self._code.exited)
        self._missed = MissedSites(machine, host)
        variables = trap_variables(resident().labels["trap_shown"])
        self._frames = TrapFrames(machine, host, variables, self._cells, self._missed)
        self._user = UserMode(machine, host, self._set_flag, GUEST_ENTRIES)
        self._slots = UserSlots(machine, host, self._user, FLAT_CODE)
        if self._patched:
            self.model.on_call = self._called

    # -- start -----------------------------------------------------------------------------------

    def page_code(self, width: int) -> bytes | None:
        """Slots that lead to the resident code; a 64-bit page is of no use here and stays as it is."""
        return call_page() if width == 32 else None

    def start(self, entry: EntryState) -> EntryState:
        """The ROM is in place; see the class for how the guest begins."""
        model, base = self.model, self.machine.memory.size
        model.install_rom()
        if self._patched:
            self._cells.install()
            self._missed.install()
            write_resident(model.guest, base, entry)
            model.map_resident(HOLE, RESIDENT_PAGES, CODE_PAGES)
            model.resident_code_bit = CODE_BIT
            return boot_entry(base)
        if self._knows_vmi:
            return entry
        write_identity_table(model.guest, base + IDENTITY_PAGE * PAGE)
        self._entry = model.activation.deprivileged(entry, base + IDENTITY_PAGE * PAGE)
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
        own = (self._cells, self._missed, self._slots, self._frames, self._user)
        if any(part.answered(event) for part in own):
            return True
        defined = self._missed.as_defined(event)
        return self._guarded(lambda: self.model.trap(defined))

    def on_invalid_opcode(self) -> bool:
        """VMCALL in the ROM is a call."""
        at = self.model.code_linear()
        known = self.model.active and at in self.model.text.exits
        if not known and self.machine.linear.try_read(at, len(_VMCALL)) != _VMCALL:
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

    def _privileged(self, insn: iced_x86.Instruction, linear: int) -> bool:
        """A privileged instruction faulted: expected from our own code, a missed site elsewhere."""
        if self.is_own_code(linear):
            return False
        name = mnemonic_name(insn)
        self.machine.stats.miss(name, linear)
        if self._patched:
            return self._missed.carry_out(insn)
        if self._entry is None or self.machine.cpu.state.idt.limit:
            return False
        self.machine.crash(
            f"{name} at {linear:#x} faults at privilege 1: the image is not patched and never calls VMI_Init"
        )
        return True

    def on_watched(self, site: Site) -> bool:
        """A silently sensitive instruction in the kernel's code runs: nothing else intercepts it."""
        if not self.model.active:
            return False
        if self.machine.cpu.cpl == _USER:
            return self._patched and self._user.stored(site.decode())
        self.machine.stats.miss(site.mnemonic, site.address)
        insn = self.model.ports.decode() if self._patched else None
        return insn is not None and self._missed.carry_out(insn)

    def is_own_code(self, address: int) -> bool:
        """The ROM, the guest-side code beside it, and the call page."""
        return self._code.owns(address & 0xFFFFFFFF)  # linear addresses wrap where CS has a base

    def port_allowed(self, site: Site) -> bool:
        """By what a patched kernel believes that it has set; any other kernel's are VMI's calls."""
        if not self.model.active:
            return super().port_allowed(site)
        return self._patched and self._user.port_allowed(site)

    def _set_flag(self, on: bool) -> None:
        """CLI or STI of user mode."""
        self.model.enable_interrupts(on)
        self.machine.cpu.set_waiting(self.interrupt_waiting())

    def on_cpuid(self, leaf: int, subleaf: int, bare: CpuidAnswer) -> CpuidAnswer:
        """The same before and after VMI_Init, by the instruction and by the call."""
        return offered(leaf, subleaf, bare)

    def _called(self) -> None:
        """Attribute a call that leaves the ROM to the ABI call whose code made it."""
        state = self.machine.cpu.state
        linear = (state.segments[fl.SS].base + state.gpr[fl.RSP]) & 0xFFFFFFFF
        caller = int.from_bytes(self.machine.linear.try_read(linear, 4), "little")
        self._code.exited(caller_of(caller))

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

    def call_exits(self) -> dict[str, int]:
        """ABI calls that left the ROM, by name, and port I/O, which always does."""
        return self._code.call_exits()

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
        watched=SILENT,
    )

    def hidden_memory(self, memory_size: int) -> int:
        """The guest's resident pages, then the hypervisor's."""
        return (RESIDENT_PAGES + HOST_PAGES) * PAGE

    def attach(self, machine: Machine) -> VmiHypervisor:
        """A VMI hypervisor for one machine."""
        return VmiHypervisor(machine)


BACKEND = VmiBackend()
