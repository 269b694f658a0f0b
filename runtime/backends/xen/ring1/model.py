"""A native i386 guest on Xen: a translated domain that was given a PC's ports and its interrupt pin.

The hypervisor's part is Xen's: hypercalls, trap table, bounce frames, event channels, time. Options of this
host that a stock Xen 4.17 does not have, each because a native kernel needs it: translated mode for a PV
domain (Xen had it until 4.13), both table formats at the choice of the guest's CR4, the pair of 8259s handed
to the domain with its pin as physical interrupt 0, and pages of the domain's mapped below Xen's hole.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from runtime.backends import Hypervisor
from runtime.backends.xen.console import ConsoleRing
from runtime.backends.xen.construction import DOMID, TSC_HZ, XEN_GDT
from runtime.backends.xen.domain import FIRST_RESERVED_GDT_PAGE, Domain
from runtime.backends.xen.events import Channel, EventChannels
from runtime.backends.xen.frames import DOMAIN, XEN, FrameTable, PageType
from runtime.backends.xen.grants import GrantTable
from runtime.backends.xen.guestspace import GuestSpace
from runtime.backends.xen.machine_memory import MachineMemory
from runtime.backends.xen.model import DomainCpu, XenHypervisor
from runtime.backends.xen.ring1.emulate import TranslatedEmulator
from runtime.backends.xen.ring1.resident import (
    BOOT_ADDRESS_NAME,
    CODE_PAGES,
    CONSOLE_PAGE,
    GUEST_ENTRIES,
    HOLE,
    IDENTITY_PAGE,
    LENT_STACK,
    RESIDENT_PAGES,
    SHARED_PAGE,
    call_page,
    caller_of,
    message,
    place_of,
    resident,
    write_resident,
)
from runtime.backends.xen.ring1.translated import TranslatedTables
from runtime.backends.xen.selectors import FLAT
from runtime.backends.xen.timers import Timers
from runtime.backends.xen.traps import Traps
from runtime.boot.model import EntryState, FlatSegment
from runtime.cpu import flags as fl
from runtime.cpu.cpuid import CpuidAnswer
from runtime.cpu.delivery import Event
from runtime.deprivileged.cells import Cells
from runtime.deprivileged.frames import TrapFrames
from runtime.deprivileged.guestcode import GuestCode
from runtime.deprivileged.instructions import PortInstructions
from runtime.deprivileged.missed import SELECTOR_FAULTS, SILENT, MissedSites, uses_selector
from runtime.deprivileged.ring1.cellhost import RingOneHost, RingOneSide, trap_variables
from runtime.deprivileged.ring1.userslots import UserSlots
from runtime.deprivileged.shadow import PAGE, ShadowMmu
from runtime.deprivileged.usermode import UserMode
from runtime.deprivileged.view import ShadowView
from runtime.memory import MemoryRange, PageFault

if TYPE_CHECKING:
    from runtime.cpu.watch import Site
    from runtime.machine import Machine

__all__ = ["RING1_PAGES", "XenRing1"]

SHADOW_PAGES = 1029
XEN_PAGES = 16
"""shared_info, the descriptor pages, M2P of nothing, and a small heap."""
RING1_PAGES = RESIDENT_PAGES + XEN_PAGES + SHADOW_PAGES
GDT = 0xFFFE_0000
"""Linear address of the 16 pages of the GDT, in Xen's hole."""
XEN_HOLE = (0xFFE0_0000, 0xFFFF_FFFF)
USER = 3
XEN_LEAVES = 4
"""Upper four bits of the CPUID leaves that are Xen's."""
CR0 = 0x8001_0031
CR4_PAE = 1 << 5


class _ShadowCpu(DomainCpu):
    """Page-table changes go to the shadow."""

    def __init__(self, model: XenRing1) -> None:
        super().__init__(model)
        self._ring1 = model

    def set_page_table(self, root: int) -> None:
        self._ring1.shadow.set_root(root)

    def flush(self, address: int | None = None) -> None:
        if address is None:
            self._ring1.shadow.flush()
        else:
            self._ring1.shadow.invalidate(address & 0xFFFFFFFF)


class _ControllerPin:
    """The pin of the 8259 pair as a physical interrupt: after an event none until the end of interrupt."""

    def __init__(self, model: XenRing1) -> None:
        self._model = model
        self._port = 0
        self._in_flight = False

    def bind(self, port: int) -> None:
        """EVTCHNOP_bind_pirq."""
        self._port = port

    def end(self) -> None:
        """PHYSDEVOP_eoi."""
        self._in_flight = False
        self.look()

    def look(self) -> None:
        """Raise the event if the pin is up."""
        if self._port and not self._in_flight and self._model.machine.platform.has_interrupt():
            self._in_flight = True
            self._model.domain.events.set_pending(self._port)


class XenRing1(XenHypervisor):
    """One translated pv32 domain."""

    def __init__(self, machine: Machine) -> None:
        super().__init__(machine)
        self.width = 32
        self._patched = machine.patched is not None
        self.pin = _ControllerPin(self)
        self._code = GuestCode(machine, (HOLE, HOLE + RESIDENT_PAGES * PAGE))

    # -- building ------------------------------------------------------------------------------

    def load(self) -> EntryState:
        """By the image's own boot protocol, into the domain's pseudo-physical memory."""
        self._build()
        return Hypervisor.load(self)

    def _build(self) -> None:
        machine = self.machine
        memory = MachineMemory(machine.memory.whole)
        first_resident = machine.memory.size // PAGE
        first_xen = first_resident + RESIDENT_PAGES
        limit = first_xen * PAGE
        self.guest = MemoryRange(machine.memory.view, limit)
        frames = self.frames = FrameTable(memory, first_xen + XEN_PAGES)
        for mfn in range(first_xen):
            frames.give(mfn, DOMAIN)
        frames.stock(list(range(first_xen + XEN_PAGES - 1, first_xen - 1, -1)))
        shadow_base = (first_xen + XEN_PAGES) * PAGE
        cpu = machine.cpu
        self.shadow = ShadowMmu(machine.memory, self.guest, shadow_base, SHADOW_PAGES, cpu.flush_tlb)
        shared_info = frames.allocate(XEN) * PAGE
        frames.share(shared_info // PAGE)
        self.gdt_frame, xen_gdt = frames.allocate(DOMAIN), frames.allocate(XEN)
        frames.references[self.gdt_frame] += 1  # the GDT itself holds it: it can never be given back
        frames.set_type(self.gdt_frame, PageType.SEGMENT)
        for selector, descriptor in XEN_GDT[32].items():
            at = xen_gdt * PAGE + selector - FIRST_RESERVED_GDT_PAGE * PAGE
            memory.store(at, descriptor.to_bytes(8, "little"))
        tables = TranslatedTables(frames, self.shadow, limit)
        self.domain = Domain(
            width=32,
            domid=DOMID,
            memory=memory,
            frames=frames,
            tables=tables,
            space=GuestSpace(memory, tables, lambda: 0, XEN_HOLE),
            events=EventChannels(memory, frames, shared_info, 32, DOMID, self._event_pending),
            grants=GrantTable(frames),
            timers=Timers(machine.clock, TSC_HZ),
            cpu=_ShadowCpu(self),
            shared_info=shared_info,
            hole=XEN_HOLE,
            m2p=0,
            max_pages=first_resident,
            log=lambda text: machine.trace("xen", text=text),
            translated=True,
            physical_interrupt=self.pin,
        )
        view = ShadowView(machine.cpu, self.shadow, self.guest)
        self._host = host = RingOneHost(
            machine,
            RingOneSide(place_of, LENT_STACK, FLAT[32]["kernel_ss"], FLAT[32]["kernel_cs"]),
            view,
            self.guest,
            lambda fault: self._give_page_fault(fault.linear, fault.error_code),
        )
        self._cells = Cells(machine, host, self._code.exited)
        self._missed = MissedSites(machine, host)
        variables = trap_variables(resident().labels["trap_shown"])
        self._frames = TrapFrames(machine, host, variables, self._cells, self._missed)
        self._user = UserMode(machine, host, self._set_flag, GUEST_ENTRIES)
        self._slots = UserSlots(machine, host, self._user, FLAT[32]["kernel_cs"])
        self._map_resident(machine.memory.size, shared_info, xen_gdt)
        self._finish_domain(shared_info, view)

    def _map_resident(self, base: int, shared_info: int, xen_gdt: int) -> None:
        """The domain's pages below Xen's hole, and Xen's GDT in it, which privilege 1 could write to."""
        for index in range(RESIDENT_PAGES if self._patched else 0):
            is_code = index < CODE_PAGES
            physical = shared_info if index == SHARED_PAGE else base + index * PAGE
            self.shadow.map_host(HOLE + index * PAGE, physical, writable=not is_code, executable=is_code)
        for page, mfn in ((0, self.gdt_frame), (FIRST_RESERVED_GDT_PAGE, xen_gdt)):
            self.shadow.map_host(GDT + page * PAGE, mfn * PAGE, writable=False, executable=False)

    def _finish_domain(self, shared_info: int, view: ShadowView) -> None:
        machine, domain = self.machine, self.domain
        self.ring = ConsoleRing(domain.memory, machine.console.write)
        port = domain.events.allocate(Channel("interdomain", listener=self.ring.serve))
        self._console_port = port
        self.ring.connect(machine.memory.size + CONSOLE_PAGE * PAGE, lambda: domain.events.notify(port))
        domain.gdt_frames, domain.gdt_entries = [self.gdt_frame], 512
        domain.upcall_mask = True
        domain.timers.refresh(domain.publish_time)
        domain.set_wallclock()
        self.traps = Traps(domain, machine.cpu)
        strings = PortInstructions(machine, view)
        self.emulator = self._translated = TranslatedEmulator(
            domain, machine.cpu, machine, self.shadow, strings
        )
        self._translated.page_fault = self._give_page_fault
        domain.timers.fired = domain.timer_fired
        domain.timers.watchdog_barked = lambda: machine.crash("the guest's watchdog timed out")

    def page_code(self, width: int) -> bytes | None:
        """Slots that lead to the resident code; a 64-bit page is of no use here and stays as it is."""
        return call_page() if width == 32 else None

    def start(self, entry: EntryState) -> EntryState:
        """The domain begins in the resident code, on the table that maps everything to itself; an image that
        is not patched begins at its own entry, as if privilege 1 were enough for it."""
        base = self.machine.memory.size
        self._cells.install()
        self._missed.install()
        write_resident(self.machine.memory.whole, base, entry, self.gdt_frame * PAGE, self._console_port)
        self.domain.virtual_cr4 = 0
        self.shadow.set_root(base + IDENTITY_PAGE * PAGE)
        flat = FLAT[32]
        return replace(
            EntryState(rip=resident().labels[BOOT_ADDRESS_NAME] if self._patched else entry.rip),
            registers=entry.registers,
            rflags=fl.IF | 2,
            cr0=CR0,
            cr3=self.shadow.pointer_table,
            cr4=CR4_PAE | 0x600,
            gdt=(GDT, 16 * PAGE - 1),
            code=FlatSegment(flat["kernel_cs"], attributes=0x00C0BB00),
            data=FlatSegment(flat["kernel_ss"], attributes=0x00C0B300),
        )

    def entered(self) -> None:
        """No-execute is what keeps the guest's data pages fast."""
        cpu = self.machine.cpu
        cpu.state.efer |= fl.EFER_NXE
        cpu.state.tr.selector = cpu.state.tr.limit = cpu.state.tr.flags = 0
        cpu.flush_tlb()
        self._watch_mask()

    def map_descriptor_tables(self) -> None:
        """The GDT stays where it is; there is no local one."""

    # -- events --------------------------------------------------------------------------------

    def interrupt_waiting(self) -> bool:
        """Has an unmasked port become pending, that of the interrupt controller's pin included?"""
        self.pin.look()
        return super().interrupt_waiting()

    def on_event(self, event: Event) -> bool:
        """Page faults fill the shadow; the rest is as for any domain."""
        if event.vector != fl.PAGE_FAULT or event.software:
            own = (self._cells, self._missed, self._slots, self._frames, self._user)
            answered = any(part.answered(event) for part in own)
            return answered or super().on_event(self._missed.as_defined(event))
        linear = int(self.machine.cpu.state.cr[2]) & 0xFFFFFFFF
        if self._patched and linear >= GDT and self._user.out_of_reach(linear - GDT & ~7):
            return True
        code = event.error_code
        try:
            self.shadow.fill(linear, write=bool(code & 2), user=bool(code & 4), fetch=bool(code & 16))
            self.machine.stats.exits["shadow_fill"] += 1
        except PageFault as fault:
            self._give_page_fault(linear, fault.error_code)
        return True

    def _give_page_fault(self, linear: int, error_code: int) -> None:
        self.domain.cr2 = linear
        self._guarded(lambda: self.traps.exception(fl.PAGE_FAULT, error_code, True))

    def _answered(self, event: Event) -> bool:
        """Privileged instructions outside our own code are missed sites; so are uses of a selector that only
        a kernel at privilege 0 could load."""
        if event.vector in SELECTOR_FAULTS and self.traps.in_kernel and not self.is_own_code(self._linear()):
            instruction = self.emulator.decode()
            privileged = event.vector == fl.GP and not event.error_code
            if instruction is not None and (privileged or uses_selector(instruction)):
                self.machine.stats.miss(self.emulator.name(instruction), self._linear())
                if self._patched and self._missed.carry_out(instruction):
                    return True
        return super()._answered(event)

    def _linear(self) -> int:
        state = self.machine.cpu.state
        return int(state.segments[fl.CS].base + state.rip) & 0xFFFFFFFF

    def on_watched(self, site: Site) -> bool:
        """An instruction that should have been rewritten runs in the kernel."""
        if self.machine.cpu.cpl != USER:
            self.machine.stats.miss(site.mnemonic, site.address)
            instruction = self.emulator.decode()
            return self._patched and instruction is not None and self._missed.carry_out(instruction)
        return self._patched and self._user.stored(site.decode())

    def port_allowed(self, site: Site) -> bool:
        """By what the guest's kernel believes that it has set."""
        return self._patched and self._user.port_allowed(site)

    def _set_flag(self, on: bool) -> None:
        """CLI or STI of user mode: the flag is a word of the guest's; what waits for it comes by the timer's
        event."""
        self._host.set_variable("LD_irq_enabled", fl.IF if on else 0)
        if on and self._host.variable("LD_irq_pending"):
            self.domain.timer_fired()

    def on_cpuid(self, leaf: int, subleaf: int, bare: CpuidAnswer) -> CpuidAnswer:
        """Xen's own leaves; the rest as it is, since large pages are no problem for a translated domain."""
        answer = super().on_cpuid(leaf, subleaf, bare)
        return answer if leaf >> 28 == XEN_LEAVES else bare

    def on_sysenter(self) -> bool:
        """An invalid opcode, as on processors without it in compatibility mode."""
        return self.on_syscall()

    def watched(self) -> frozenset[str]:
        """What does not trap by itself."""
        return SILENT

    def is_own_code(self, address: int) -> bool:
        """The resident code and the call page."""
        return self._code.owns(address & 0xFFFFFFFF)  # linear addresses wrap where CS has a base

    def console_input(self, data: bytes) -> None:
        """A native kernel reads its serial port."""
        self.machine.platform.console_input(data)

    # -- figures ---------------------------------------------------------------------------------

    def _begin(self, mask: int) -> int:
        self._code.exited(caller_of(self._linear()))
        return super()._begin(mask)

    def call_exits(self) -> dict[str, int]:
        """ABI calls that reached Xen, by name: hypercalls as they came, port I/O always."""
        return self._code.call_exits()

    def _shut_down(self, reason: str) -> None:
        """A crash has its reason in the private page."""
        if reason == "crash":
            number = self.guest.load_u32(self.machine.memory.size + place_of("P_message"))
            self.machine.crash(message(number))
        else:
            super()._shut_down(reason)

    def counters(self) -> dict[str, int]:
        """Deliveries, emulated instructions, and the shadow's work."""
        own = {f"delivered {name}": count for name, count in self.traps.delivered.items()}
        own |= {f"emulated {name}": count for name, count in self.emulator.counts.items()}
        return own | {"shadow_fills": self.shadow.fills, "shadow_flushes": self.shadow.flushes}
