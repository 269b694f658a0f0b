"""lguest: i386 kernels at privilege 1, with the ABI's guest-side code for patched native images."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from pvpatch.abi.errors import PvpatchError
from pvpatch.abi.layout import HEADER_SIZE, SLOT_SIZE
from pvpatch.abi.spec import load_spec
from runtime.backends import Capabilities, Hypervisor
from runtime.backends.lguest.boot import OWN_KINDS, load_own_guest, map_high_half
from runtime.backends.lguest.interface import ABI_HOST, LINUX_HOST
from runtime.backends.lguest.model import HOST_PAGES, LguestModel, Placement
from runtime.backends.lguest.resident import (
    BACKEND_ID,
    BOOT_ADDRESS_NAME,
    CODE_PAGES,
    HOLE,
    IDENTITY_PAGE,
    LENT_STACK,
    RESIDENT_PAGES,
    call_page,
    caller_of,
    place_of,
    resident,
    write_identity_table,
    write_resident,
)
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
from runtime.deprivileged.shadow import PAGE
from runtime.deprivileged.usermode import UserMode
from runtime.memory import PageFault

if TYPE_CHECKING:
    import iced_x86

    from runtime.boot.model import EntryState
    from runtime.cpu.watch import Site
    from runtime.machine import Machine

__all__ = ["BACKEND", "LguestBackend"]

_PORTS = frozenset({"in", "out", "insb", "insw", "insd", "outsb", "outsw", "outsd"})
"""Watched because the emulated CPU does not check IOPL for them."""
_USER = 3


class LguestHypervisor(Hypervisor):
    """Hands the machine's events to the model, and lays out what a patched image needs."""

    def __init__(self, machine: Machine) -> None:
        super().__init__(machine)
        self._patched = machine.patched is not None
        placement = Placement(RESIDENT_PAGES, HOLE if self._patched else 0, CODE_PAGES)
        build = ABI_HOST if self._patched else LINUX_HOST
        self.model = LguestModel(machine, build, placement)
        if self._patched:
            self.model.on_request = self._hypercall
        self.model.on_privileged = self._privileged
        self._code = GuestCode(machine, (HOLE, HOLE + RESIDENT_PAGES * PAGE))
        side = RingOneSide(place_of, LENT_STACK, build.kernel_data << 3, build.kernel_code << 3)
        host = RingOneHost(machine, side, self.model.view, self.model.space.physical, self._page_fault)
        self._cells = Cells(machine, host, self._code.exited)
        self._missed = MissedSites(machine, host)
        variables = trap_variables(resident().labels["trap_shown"])
        self._frames = TrapFrames(machine, host, variables, self._cells, self._missed)
        self._user = UserMode(machine, host, self._set_flag, min(build.owned))
        self._slots = UserSlots(machine, host, self._user, build.kernel_code << 3)

    # -- start -----------------------------------------------------------------------------------

    def load(self) -> EntryState:
        """An image that is not patched, and has no multiboot header, is taken for a guest of lguest's own."""
        machine = self.machine
        if self._patched or machine.image.kind not in OWN_KINDS:
            return super().load()
        return load_own_guest(machine.image, machine.memory, machine.config.request)

    def page_code(self, width: int) -> bytes | None:
        """Slots that lead to the resident code; a 64-bit page is of no use here and stays as it is."""
        return call_page() if width == 32 else None

    def start(self, entry: EntryState) -> EntryState:
        """A patched image begins in the resident code, which asks lguest for what it needs; any other
        image is started the way lguest starts its guests."""
        memory = self.machine.memory
        base = memory.size
        write_identity_table(self.model.space.physical, base + IDENTITY_PAGE * PAGE)
        if not self._patched:
            map_high_half(self.model.space.physical, base + IDENTITY_PAGE * PAGE, memory.size)
        else:
            self._cells.install()
            self._missed.install()
            write_resident(self.model.space.physical, base, entry)
            entry = replace(entry, rip=resident().labels[BOOT_ADDRESS_NAME])
        return self.model.start(entry, base + IDENTITY_PAGE * PAGE)

    def entered(self) -> None:
        """Finish the CPU's state."""
        self.model.entered()

    # -- events ----------------------------------------------------------------------------------

    def on_event(self, event: Event) -> bool:
        """Everything traps to the host; what breaks its rules ends the guest with the host's words.

        The machine has counted an exception: what the guest never sees of it is taken back.
        """
        own = (self._cells, self._missed, self._slots, self._frames, self._user)
        if any(part.answered(event) for part in own):
            return True
        event = self._missed.as_defined(event)
        before = self.model.delivered
        try:
            self.model.trap(event)
        except PvpatchError as problem:
            self.machine.crash(problem.message)
        if self.model.delivered == before:
            self.machine.stats.take_back(event.vector)
        return True

    def on_invalid_opcode(self) -> bool:
        """A guest of lguest's own may call by VMCALL."""
        try:
            return not self._patched and self.model.rewrite_call()
        except PvpatchError as problem:
            self.machine.crash(problem.message)
            return True

    def _privileged(self, insn: iced_x86.Instruction, linear: int) -> bool:
        """A privileged instruction faulted: expected from our own code, a missed site elsewhere."""
        if self.is_own_code(linear):
            return False
        self.machine.stats.miss(mnemonic_name(insn), linear)
        return self._patched and self._missed.carry_out(insn)

    def on_watched(self, site: Site) -> bool:
        """An instruction that should have been rewritten runs in the kernel; port I/O in user mode faults."""
        if self.machine.cpu.cpl != _USER:
            self.machine.stats.miss(site.mnemonic, site.address)
            return self._patched and self._carry_out()
        if self._patched and self._user.stored(site.decode()):
            return True
        if site.mnemonic not in _PORTS or (self._patched and self._user.port_allowed(site)):
            return False
        return self.on_event(Event(fl.GP))

    def _set_flag(self, on: bool) -> None:
        """CLI or STI of user mode: interrupts are a word in the shared page."""
        self.model.shared.write("irq_enabled", fl.IF if on else 0)
        self.model.interrupt_changed()

    def _page_fault(self, fault: PageFault) -> None:
        self.model.page_fault(fault.linear, fault.error_code)

    def _carry_out(self) -> bool:
        """What the patched form would have done. EIP is on the site."""
        insn = self.model.launcher.decode()
        return insn is not None and self._missed.carry_out(insn)

    def is_own_code(self, address: int) -> bool:
        """The resident code and the call page."""
        return self._code.owns(address & 0xFFFFFFFF)  # linear addresses wrap where CS has a base

    def on_syscall(self) -> bool:
        """SYSCALL enters the host, which does not offer it: #UD for the guest."""
        return self._fast_call_refused()

    def on_sysenter(self) -> bool:
        """SYSENTER: as SYSCALL."""
        return self._fast_call_refused()

    def _fast_call_refused(self) -> bool:
        self.on_event(Event(fl.UD))
        self.machine.cpu.state.rip -= FAST_CALL_LENGTH
        return True

    # -- interrupts ------------------------------------------------------------------------------

    def interrupt_waiting(self) -> bool:
        """Something is pending and not blocked."""
        return self.model.interrupts.waiting()

    def deliver_interrupt(self) -> None:
        """The guest's interrupt word is set: deliver, unless it runs where it wants to be left alone."""
        try:
            self.model.interrupts.send()
        except PvpatchError as problem:
            self.machine.crash(problem.message)

    # -- figures ---------------------------------------------------------------------------------

    def _hypercall(self, linear: int) -> None:
        """Attribute a hypercall to the ABI call whose code made it."""
        name = caller_of(linear)
        if name is None and self.machine.patched is not None:
            for page in self.machine.patched.pages:
                for start in (page.physical, page.virtual):
                    number = (linear - start - HEADER_SIZE) // SLOT_SIZE
                    if 0 <= number < page.header.slot_count:
                        name = load_spec().calls[number].name
        self._code.exited(name)

    def call_exits(self) -> dict[str, int]:
        """ABI calls that reached the host, by name: hypercalls as they came, port I/O always."""
        return self._code.call_exits()

    def counters(self) -> dict[str, int]:
        """The shadow's work."""
        shadow = self.model.shadow
        return {"shadow_fills": shadow.fills, "shadow_flushes": shadow.flushes}


class LguestBackend:
    """Capabilities and factory."""

    capabilities = Capabilities(
        name="lguest",
        backend_id=BACKEND_ID,
        privilege={32: 1},
        memory="shadow",
        time_source="TSC scaled to ns, SET_CLOCKEVENT (relative ns)",
        summary="lguest of Linux 2.6.31 to 4.13: i386 kernels at privilege 1, shadow paging, INT 0x1F",
        watched=SILENT | _PORTS,
    )

    def hidden_memory(self, memory_size: int) -> int:
        """The guest's resident pages, then the host's GDT and shadow tables."""
        return (RESIDENT_PAGES + HOST_PAGES) * PAGE

    def attach(self, machine: Machine) -> LguestHypervisor:
        """An lguest host for one machine."""
        return LguestHypervisor(machine)


BACKEND = LguestBackend()
