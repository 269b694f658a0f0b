"""Xen running a native kernel: a translated domain, with the PC's devices behind its port instructions.

The domain differs from Xen's own guests (`runtime.backends.xen.model`) only in what follows; hypercalls,
bounce frames, events and timers are the same code.

- Memory: frame numbers are guest-physical (auto_translated_physmap), tables are shadowed (`shadow`).
- The builder places the image by its own boot protocol, and keeps pages of the domain mapped in the
  kernel's address space in every mode (`Placement`).
- Options of this domain, which Xen's own guests do not have: all ports are its own and lead to the
  platform's devices; the pair of 8259s is heard through one event channel; MOV to CR0 and CR4 take
  effect for WP and the FPU's bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from iced_x86 import Instruction, Mnemonic, Register

from runtime.backends.xen.console import ConsoleRing
from runtime.backends.xen.construction import DOMID, TSC_HZ, XEN_GDT
from runtime.backends.xen.domain import FIRST_RESERVED_GDT_PAGE, Domain
from runtime.backends.xen.emulate import Emulator
from runtime.backends.xen.events import Channel, EventChannels
from runtime.backends.xen.frames import DOMAIN, FrameTable
from runtime.backends.xen.grants import GrantTable
from runtime.backends.xen.guestspace import GuestSpace
from runtime.backends.xen.layout import PAGE_SIZE, struct
from runtime.backends.xen.machine_memory import GDT_PAGES, MachineMemory
from runtime.backends.xen.model import ENTRY_CR4, XenHypervisor
from runtime.backends.xen.native.shadow import SHADOW_PAGES, ShadowMmu
from runtime.backends.xen.native.translated import TranslatedTables
from runtime.backends.xen.timers import Timers
from runtime.backends.xen.traps import Traps
from runtime.boot import load_image
from runtime.boot.model import EntryState
from runtime.cpu import flags as fl
from runtime.cpu.delivery import Event
from runtime.cpu.segments import load_cache, update_modes
from runtime.deprivileged.operands import Operands, decode_at
from runtime.devices.rtc import DEFAULT_EPOCH
from runtime.memory import MemoryRange, PageFault
from runtime.outcome import Outcome

if TYPE_CHECKING:
    from runtime.machine import Machine

__all__ = ["HOST_PAGES", "Placement", "TranslatedDomain"]

PER_DOMAIN = 0xFFFF_8200_0000_0000
"""Where the CPU finds the 16 pages of the GDT; supervisor's, so neither kernel nor user sees them."""
_NULL_PAGE, _XEN_GDT_PAGE = 0, 1
HOST_PAGES = 2 + SHADOW_PAGES
"""Xen's private pages: an empty one, its part of the GDT, and the shadow tables."""
HOLE_START, HOLE_END = 0xFFFF_8000_0000_0000, 0xFFFF_8800_0000_0000
_REAL_CR0 = 0x8001_0033
"""PG, WP, NE, ET, MP, PE."""
_GUEST_CR0 = 0x1002E
"""WP, NE, TS, EM, MP: what a native guest decides of CR0."""
_GUEST_CR4 = 0x60E
"""OSFXSR, OSXMMEXCPT, DE, TSD, PVI."""
_CR0_WP = 1 << 16
_BYTES = {Register.AL: 1, Register.AX: 2, Register.EAX: 4}


@dataclass(frozen=True)
class Placement:
    """Pages of the domain above its RAM, which the builder keeps mapped for the guest's kernel."""

    pages: int
    linear: tuple[int, ...]
    """Every linear address at which the first of them appears; none: they are not mapped."""
    code_pages: int
    """The first so many hold code and are read-only."""
    descriptor_page: int
    """Number of the page that becomes the guest's part of the GDT: read-only."""
    shared_page: int
    """Number of the page that is shared_info."""
    line_port: int
    """Event channel of the 8259s."""
    console_page: int
    """Number of the page that is the console ring."""
    console_port: int
    """Event channel of the console ring."""


class _TranslatedState(Domain):
    """A domain without a machine-to-phys table: frame numbers are its own already."""

    def set_pfn_of(self, mfn: int, pfn: int) -> None:
        """Nothing is kept."""


class _ShadowedCpu:
    """The CPU as hypercalls use it, over shadow tables."""

    def __init__(self, model: TranslatedDomain) -> None:
        self._model = model

    def set_page_table(self, root: int) -> None:
        """The base of the mode that runs has changed, or the mode itself."""
        self._model.load_tables()

    def flush(self, address: int | None = None) -> None:
        shadow = self._model.shadow
        if address is None:
            shadow.flush()
        else:
            shadow.invalidate(address)

    def set_breakpoints(self, registers: Sequence[int]) -> None:
        """The debug registers of a translated domain only remember."""

    def set_task_switched(self, value: bool) -> None:
        cpu = self._model.machine.cpu
        cr0 = int(cpu.state.cr[0])
        cpu.write_control(0, cr0 | fl.CR0_TS if value else cr0 & ~fl.CR0_TS)

    def set_segment_base(self, register: str, base: int) -> None:
        self._model.machine.cpu.state.segments[fl.FS if register == "fs" else fl.GS].base = base

    def reload_tables(self) -> None:
        self._model.map_descriptor_tables()


class _NativeEmulator(Emulator):
    """Privileged instructions of a domain that has the platform's devices."""

    model: TranslatedDomain

    def privileged(self, in_kernel: bool) -> bool:
        """As for Xen's own guests, but ports are the platform's."""
        instruction = decode_at(self.cpu, self.linear)
        if in_kernel and instruction is not None and instruction.mnemonic in (Mnemonic.IN, Mnemonic.OUT):
            self._port(instruction)
            return True
        return super().privileged(in_kernel)

    def _port(self, instruction: Instruction) -> None:
        operands = Operands(self.cpu, instruction)
        reading = instruction.mnemonic == Mnemonic.IN
        register = instruction.op0_register if reading else instruction.op1_register
        port, size = operands.value(1 if reading else 0) & 0xFFFF, _BYTES[register]
        if reading:
            operands.set_register(register, self.ports.port_in(port, size))
        else:
            self.ports.port_out(port, size, operands.register(register))
        name = "in" if reading else "out"
        self.counts[name] = self.counts.get(name, 0) + 1
        operands.skip()

    def _write_control(self, number: int, value: int) -> bool:
        cpu = self.cpu
        if number == 0:
            kept = int(cpu.state.cr[0]) & ~_GUEST_CR0 & 0xFFFFFFFF
            cpu.write_control(0, kept | value & _GUEST_CR0 | _CR0_WP)
            self.model.shadow.set_write_protect(bool(value & _CR0_WP))
            return True
        if number == 4:
            cpu.write_control(4, int(cpu.state.cr[4]) & ~_GUEST_CR4 | value & _GUEST_CR4)
            return True
        return super()._write_control(number, value)


class TranslatedDomain(XenHypervisor):
    """One native guest as a translated domain."""

    emulator: _NativeEmulator
    shadow: ShadowMmu

    def __init__(self, machine: Machine, placement: Placement) -> None:
        super().__init__(machine)
        self.width = 64
        self.placement = placement
        self.guest_limit = machine.memory.size + placement.pages * PAGE_SIZE
        self.host_base = self.guest_limit
        memory = machine.memory
        self.guest = MemoryRange(memory.view, self.guest_limit)
        self.machine_memory = MachineMemory(memory.whole)
        self.shadow = ShadowMmu(
            memory, self.guest, self.host_base + 2 * PAGE_SIZE, SHADOW_PAGES, machine.cpu.flush_tlb
        )
        self._build_domain()
        self._map_own_pages()

    # -- construction --------------------------------------------------------------------------

    def _build_domain(self) -> None:
        machine, memory = self.machine, self.machine_memory
        frames = FrameTable(memory, memory.frames)
        own = self.guest_limit // PAGE_SIZE
        frames.give_first(own, DOMAIN)
        tables = TranslatedTables(frames, self.shadow)
        shared = machine.memory.size + self.placement.shared_page * PAGE_SIZE
        kept = [linear for linear in self.placement.linear if linear >= HOLE_START]
        hole = (HOLE_START, min(kept, default=HOLE_END) - 1)
        self.domain = domain = _TranslatedState(
            width=64,
            domid=DOMID,
            memory=memory,
            frames=frames,
            tables=tables,
            space=GuestSpace(memory, tables, self._root, hole),
            events=EventChannels(memory, frames, shared, 64, DOMID, self._event_pending),
            grants=GrantTable(frames),
            timers=Timers(machine.clock, TSC_HZ),
            cpu=_ShadowedCpu(self),
            shared_info=shared,
            hole=hole,
            m2p=0,
            max_pages=own,
            log=lambda text: machine.trace("xen", text=text),
        )
        tables.flush = domain.cpu.flush
        self.traps = Traps(domain, machine.cpu)
        self.emulator = _NativeEmulator(domain, machine.cpu, machine, lambda _mfn: False)
        self.emulator.model = self
        domain.timers.fired = domain.timer_fired
        domain.timers.watchdog_barked = lambda: machine.crash("the guest's watchdog timed out")
        domain.events.ports[self.placement.line_port] = Channel("virq", virq=-1)
        ring, port = ConsoleRing(memory, machine.console.write), self.placement.console_port
        page = machine.memory.size + self.placement.console_page * PAGE_SIZE
        ring.connect(page, lambda: domain.events.notify(port))
        domain.events.ports[port] = Channel("interdomain", listener=ring.serve)

    def _map_own_pages(self) -> None:
        placement, size = self.placement, self.machine.memory.size
        for linear in placement.linear:
            for index in range(placement.pages):
                self.shadow.map_host(
                    linear + index * PAGE_SIZE,
                    size + index * PAGE_SIZE,
                    writable=index >= placement.code_pages and index != placement.descriptor_page,
                    executable=index < placement.code_pages,
                )
        gdt = self.host_base + _XEN_GDT_PAGE * PAGE_SIZE
        for selector, descriptor in XEN_GDT[64].items():
            offset = selector - FIRST_RESERVED_GDT_PAGE * PAGE_SIZE
            self.machine_memory.store(gdt + offset, descriptor.to_bytes(8, "little"))
        self.map_descriptor_tables()

    def map_descriptor_tables(self) -> None:
        """The guest's descriptor pages, an empty page for those it has not, and Xen's own behind them."""
        domain = self.domain
        self.shadow.protect(frozenset(mfn * PAGE_SIZE for mfn in domain.gdt_frames))
        for page in range(GDT_PAGES):
            physical = self.host_base + _NULL_PAGE * PAGE_SIZE
            if page < len(domain.gdt_frames):
                physical = domain.gdt_frames[page] * PAGE_SIZE
            elif page == FIRST_RESERVED_GDT_PAGE:
                physical = self.host_base + _XEN_GDT_PAGE * PAGE_SIZE
            linear = PER_DOMAIN + page * PAGE_SIZE
            self.shadow.map_host(linear, physical, writable=True, executable=False, guest=False)
        self.machine.cpu.flush_tlb()

    def _root(self) -> int:
        domain = self.domain
        return domain.kernel_root if domain.kernel_mode else domain.user_root

    def load_tables(self) -> None:
        """Have the CPU walk the shadow tables of the mode that runs."""
        self.machine.cpu.write_control(3, self.shadow.top_for(self.domain.kernel_mode, self._root()))

    # -- start -----------------------------------------------------------------------------------

    def load(self) -> EntryState:
        """The image's own boot protocol places it."""
        machine = self.machine
        return load_image(machine.image, machine.memory, machine.config.request)

    def enter_at(self, entry: EntryState, root: int) -> EntryState:
        """The state in which the domain starts: long mode, flat segments of privilege 3, tables from frame
        `root` on; `entered` makes the code segment 32 bits wide if `entry` is not in long mode."""
        domain = self.domain
        for _ in ("kernel", "user"):
            domain.tables.get_root(root)
        domain.kernel_root = domain.user_root = root
        domain.upcall_mask = True
        domain.timers.refresh(domain.publish_time)
        layout = struct("shared_info", 64)
        epoch = int(DEFAULT_EPOCH.timestamp())
        for name, value in (("wc_sec", epoch & 0xFFFFFFFF), ("wc_sec_hi", epoch >> 32), ("wc_version", 2)):
            self.machine_memory.store(domain.shared_info + layout.offsets[name], value.to_bytes(4, "little"))
        self._narrow = not entry.long_mode
        return EntryState(
            rip=entry.rip,
            long_mode=True,
            registers=entry.registers,
            rflags=fl.IF | 2,
            cr0=_REAL_CR0,
            cr3=self.shadow.top_for(True, root),
            cr4=ENTRY_CR4,
            gdt=(PER_DOMAIN, GDT_PAGES * PAGE_SIZE - 1),
        )

    def entered(self) -> None:
        """Privilege 3 on Xen's flat segments."""
        cpu = self.machine.cpu
        cpu.state.efer |= fl.EFER_NXE | fl.EFER_SCE
        cpu.state.tr.selector = cpu.state.tr.limit = cpu.state.tr.flags = 0
        attributes = 0x00C0FB00 if self._narrow else 0x00A0FB00
        load_cache(cpu, fl.CS, 0xE023 if self._narrow else 0xE033, 0, 0xFFFFFFFF, attributes)
        for index in (fl.SS, fl.DS, fl.ES, fl.FS, fl.GS):
            load_cache(cpu, index, 0xE02B, 0, 0xFFFFFFFF, 0x00C0F300)
        update_modes(cpu, 3)
        cpu.flush_tlb()
        self._watch_mask()

    # -- events ----------------------------------------------------------------------------------

    def interrupt_waiting(self) -> bool:
        """An unmasked port, that of the 8259s among them, which is pending while their output is up."""
        if self.machine.platform.has_interrupt() and self.domain.callbacks:
            self.domain.events.set_pending(self.placement.line_port)
        return super().interrupt_waiting()

    def console_input(self, data: bytes) -> None:
        """Bytes typed at the guest's console: the platform's serial line or keyboard."""
        self.machine.platform.console_input(data)

    def _sleep(self) -> None:
        """Blocked: time passes until an event comes that the guest accepts."""
        domain, machine = self.domain, self.machine
        if domain.upcall_mask and not domain.events.polled and domain._poll_alarm is None:
            machine.end(Outcome.HALTED, "halted with interrupts off")
            domain.wake()
            return
        while domain.blocked and not self.interrupt_waiting():
            if not machine.pass_time():
                break
        if domain.blocked and not self.interrupt_waiting() and not machine.is_ending:
            machine.end(Outcome.HALTED, "blocked with nothing to wait for")
        domain.wake()

    # -- traps -----------------------------------------------------------------------------------

    def _hypercall64(self) -> None:
        """Leaving to code that is stepped through: the first step is its first instruction, not ours."""
        super()._hypercall64()
        state = self.machine.cpu.state
        self._first_step = int(state.rip) if self.machine.cpu.rflags & fl.TF else -1

    def on_event(self, event: Event) -> bool:
        """The emulated CPU takes the end of SYSCALL for a step if TF is set by then."""
        first, self._first_step = self._first_step, -1
        if event.vector == fl.DB and not event.software and int(self.machine.cpu.state.rip) == first:
            return True
        return super().on_event(event)

    _first_step = -1

    def _page_fault(self, error_code: int) -> bool:
        """Fill the shadow, or leave the fault to the guest."""
        address = int(self.machine.cpu.state.cr[2])
        kernel = self.traps.in_kernel
        if PER_DOMAIN <= address < PER_DOMAIN + GDT_PAGES * PAGE_SIZE:
            # a far transfer or segment load, whose other accesses were missing when it ran as the CPU does
            control = self.machine.cpu.control
            address, error_code = control.fault_page, control.fault_code
        try:
            self.shadow.fill(
                address, kernel_mode=kernel, write=bool(error_code & 2), fetch=bool(error_code & 16)
            )
        except PageFault as fault:
            self._guest_error = fault.error_code
            self.domain.cr2 = address
            return False
        self.machine.stats.exits["shadow_fill"] += 1
        return True

    def _error_code(self, event: Event) -> int:
        """What the walk of the guest's tables said, not what the shadow did."""
        return self._guest_error if event.vector == fl.PAGE_FAULT else event.error_code

    _guest_error = 0
    _narrow = True

    def counters(self) -> dict[str, int]:
        """Deliveries, emulated instructions, and the shadow's work."""
        own = {f"delivered {name}": count for name, count in self.traps.delivered.items()}
        own |= {f"emulated {name}": count for name, count in self.emulator.counts.items()}
        return own | {"shadow_fills": self.shadow.fills, "shadow_flushes": self.shadow.flushes}
