"""lguest: a hypervisor whose guests run at privilege 1 and ask for everything else by INT 0x1F.

The host module and its launcher in one object per machine. It knows the interface of Linux 2.6.31 to
4.13 (interface.toml) and nothing of our ABI: what a guest must be told goes through
`struct lguest_data`, what it wants comes as hypercalls, faults and port accesses.

Beyond lguest, as options of this host: 4 MiB pages, both page-table formats (a real host has the one that
it was compiled for), frames outside memory as an open bus instead of a killed guest, and pages of the guest
that the launcher keeps mapped at the top of every address space (`resident`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import iced_x86

from runtime.backends.lguest.descriptors import GUEST_PRIVILEGE, Gates, RealGdt
from runtime.backends.lguest.errors import GuestKilled
from runtime.backends.lguest.hypercalls import Hypercalls
from runtime.backends.lguest.interface import LINUX_HOST, HostBuild, interface
from runtime.backends.lguest.interrupts import Interrupts
from runtime.backends.lguest.launcher import Launcher
from runtime.backends.lguest.space import GuestSpace
from runtime.backends.lguest.traps import SharedPage, Traps
from runtime.boot import EntryState
from runtime.boot.model import FlatSegment
from runtime.cpu import flags as fl
from runtime.cpu.delivery import Event
from runtime.deprivileged.missed import SELECTOR_FAULTS, uses_selector
from runtime.deprivileged.shadow import PAGE, ShadowMmu
from runtime.deprivileged.view import ShadowView
from runtime.devices.rtc import DEFAULT_EPOCH
from runtime.machine import Machine
from runtime.memory import MemoryRange, PageFault
from runtime.outcome import Outcome

__all__ = ["HOST_PAGES", "LguestModel", "Placement"]

SHADOW_PAGES = 1029
"""Private pages for shadow tables: the pointer table, four directories, 1024 tables (2 GiB mapped)."""
HOST_PAGES = 1 + SHADOW_PAGES
"""Private pages of the host: the GDT, then the shadow tables."""
_GDT_LINEAR = 0xFFFF_F000
_FIXED_CR0 = fl.CR0_PE | fl.CR0_WP | fl.CR0_PG
_GUEST_CR0 = 0x2 | 0x4 | fl.CR0_TS | 0x10 | 0x20
"""MP, EM, TS, ET, NE: what a guest decides of CR0."""
_GUEST_CR4 = 0x200 | 0x400
"""OSFXSR, OSXMMEXCPT: what a guest decides of CR4."""
_CR4_PAE = 1 << 5
_FLUSHING_CR4 = 1 << 4 | _CR4_PAE | 1 << 7
"""PSE, PAE, PGE: a change of these empties the TLB (SDM vol. 3, 4.10.4.1)."""
_NOT_IN_POINTERS = 0xFFFF_FFF0_0000_01E6
"""Bits that are 0 in every present entry of a page-directory-pointer table: 1, 2, 5 to 8, and above 36."""
_ALL_BLOCKED = 0xFFFF_FFFF
_TSC_KHZ = 2_000_000
_NS_PER_S = 1_000_000_000
_USER = 3


@dataclass(frozen=True)
class Placement:
    """The pages above RAM: `resident` of the guest's, then the host's private ones."""

    resident_pages: int
    resident_linear: int
    """Linear address at which the launcher keeps them mapped, 0 for nowhere."""
    executable_pages: int
    """The first so many of them hold code and are mapped read-only."""


class LguestModel:
    """One guest on lguest."""

    def __init__(self, machine: Machine, build: HostBuild, placement: Placement) -> None:
        self.machine = machine
        self.interface = interface()
        self.build = build
        memory = machine.memory
        self.guest_limit = memory.size + placement.resident_pages * PAGE
        guest = MemoryRange(memory.view, self.guest_limit)
        gdt_page = self.guest_limit
        self.shadow = ShadowMmu(memory, guest, gdt_page + PAGE, SHADOW_PAGES, machine.cpu.flush_tlb)
        self.space = GuestSpace(guest)
        self.view = ShadowView(machine.cpu, self.shadow, guest)
        self.shared = SharedPage(self.space, self.interface)
        self.gdt = RealGdt(memory.whole, gdt_page, build)
        self.gates = Gates(self.interface)
        self.traps = Traps(
            machine.cpu, self.view, self.shared, self.gdt, self.gates, build, self.interface.always_exit
        )
        self.interrupts = Interrupts(self)
        self.launcher = Launcher(self)
        self.hypercalls = Hypercalls(self)
        self.halted = False
        self.delivered = 0
        """Exceptions and software interrupts that reached the guest."""
        self.on_privileged: Callable[[iced_x86.Instruction, int], bool] = lambda insn, linear: False
        """Shown every privileged instruction that faulted, with its linear address, before the
        launcher looks at it; True means that it has been dealt with."""
        self.on_request: Callable[[int], None] = lambda linear: None
        """Told the linear address behind every INT 0x1F and of every emulated control register access."""
        self.cr0 = _FIXED_CR0
        self.cr4 = 0
        self._built_for_pae = False
        self._map_host(gdt_page, placement)

    def _map_host(self, gdt_page: int, placement: Placement) -> None:
        """The top of the linear address space is the host's in every address space."""
        top = 1 << 32
        for linear in range(top - self.interface.reserved_top, top, 1 << 21):
            self.shadow.reserve_slot(linear)
        self.shadow.map_host(_GDT_LINEAR, gdt_page, writable=False, executable=False)
        for index in range(placement.resident_pages if placement.resident_linear else 0):
            is_code = index < placement.executable_pages
            self.shadow.map_host(
                placement.resident_linear + index * PAGE,
                self.machine.memory.size + index * PAGE,
                writable=not is_code,
                executable=is_code,
            )

    # -- start -----------------------------------------------------------------------------------

    def start(self, entry: EntryState, root: int) -> EntryState:
        """The state in which lguest starts a guest: `root` is its first page table, flat segments of
        privilege 1, interrupts on."""
        self.shadow.set_root(root)
        code, data = self.build.kernel_code, self.build.kernel_data
        return EntryState(
            rip=entry.rip,
            registers=entry.registers,
            rflags=0x202,
            cr0=_FIXED_CR0 | 0x10,
            cr3=self.shadow.pointer_table,
            cr4=_CR4_PAE | 0x600,
            gdt=(_GDT_LINEAR, self.gdt.limit),
            code=FlatSegment(code << 3 | GUEST_PRIVILEGE, attributes=0x00C0BB00),
            data=FlatSegment(data << 3 | GUEST_PRIVILEGE, attributes=0x00C0B300),
        )

    def entered(self) -> None:
        """No-execute is what keeps the guest's data pages fast."""
        cpu = self.machine.cpu
        cpu.state.efer |= fl.EFER_NXE
        cpu.flush_tlb()
        self._rest_window()

    def _rest_window(self) -> None:
        """Before LGUEST_INIT nothing is delivered: the window is a word that is never set."""
        cpu = self.machine.cpu
        host = self.machine.memory.host_address
        address = self.shared.address
        if address is None:
            cpu.set_interrupt_window(host, 0, 0)
        else:
            cpu.set_interrupt_window(host + address + self.interface.offset("irq_enabled"), 0x200, 0)

    def register_shared_page(self) -> None:
        """LGUEST_INIT has named lguest_data: fill in the host's part, read the guest's."""
        shared = self.shared
        self._rest_window()
        shared.write("reserve_mem", self.interface.reserved_top)
        shared.write("tsc_khz", _TSC_KHZ)
        if shared.has("pgdir"):
            shared.write("pgdir", self.shadow.root)
        self.interrupts.quiet_range = (shared.read("noirq_start"), shared.read("noirq_end"))
        self.write_timestamp()
        self.interrupt_changed()

    def write_timestamp(self) -> None:
        """The wall clock into lguest_data."""
        now = int(DEFAULT_EPOCH.timestamp()) * _NS_PER_S + self.machine.clock.now_ns
        self.shared.write("time_sec", now // _NS_PER_S)
        self.shared.write("time_nsec", now % _NS_PER_S)

    # -- traps -----------------------------------------------------------------------------------

    def trap(self, event: Event) -> None:
        """Everything that the CPU reports."""
        if event.software:
            self._software(event.vector)
        elif event.vector == fl.PAGE_FAULT:
            self._page_fault(event.error_code)
        elif event.vector in SELECTOR_FAULTS and self._emulate(event.vector, event.error_code):
            return
        else:
            self.reflect(event.vector, event.error_code)

    def _linear(self) -> int:
        """Linear address of CS:EIP."""
        state = self.machine.cpu.state
        return int(state.segments[fl.CS].base + state.rip) & 0xFFFFFFFF

    def _software(self, vector: int) -> None:
        """INT n: the hypercall, or a gate that its user's privilege allows."""
        cpl = self.machine.cpu.cpl
        if vector == self.interface.vector and cpl == GUEST_PRIVILEGE:
            self._hypercall()
            return
        forbidden = cpl == _USER and self.gates.privilege(vector) != _USER
        if forbidden or not self.gates.present(vector):
            state = self.machine.cpu.state
            state.rip -= 1 if vector in (fl.BP, fl.OV) else 2
            self.reflect(fl.GP, vector * 8 + 2)
            return
        self.count("trap_software")
        self._tell(vector, 0, software=True)
        self.traps.deliver(vector, None, fault=False, direct=self.traps.is_direct(vector))

    def _hypercall(self) -> None:
        self.on_request(self._linear())
        gpr = self.machine.cpu.state.gpr
        number, *rest = (gpr[i] & 0xFFFFFFFF for i in (fl.RAX, fl.RBX, fl.RCX, fl.RDX, fl.RSI))
        gpr[fl.RAX] = number
        call = self.interface.hypercalls.get(number)
        self.machine.trace("hypercall", number=number, name=call.name if call is not None else "unknown")
        self.hypercalls.call(number, (rest[0], rest[1], rest[2], rest[3]))
        self.interrupt_changed()

    def rewrite_call(self) -> bool:
        """#UD of a guest's own kernel: VMCALL becomes INT 0x1F where it stands and is done again
        (rewrite_hypercall). False for any other instruction."""
        linear, known = self._linear(), self.interface
        if self.machine.cpu.cpl != GUEST_PRIVILEGE:
            return False
        if self.view.try_read(linear, len(known.vmcall)) != known.vmcall:
            return False
        for offset, byte in enumerate(known.vmcall_replacement):
            self.space.store(self.view.translate(linear + offset, mark=False).physical, bytes([byte]))
        self.machine.cpu.drop_translation(linear, linear + len(known.vmcall))
        if self.shared.address is None:
            self.shared.interface = known.for_vmcall()
        return True

    def _page_fault(self, error_code: int) -> None:
        """Fill the shadow, or hand the fault to the guest."""
        linear = self.machine.cpu.state.cr[2] & 0xFFFFFFFF
        try:
            self.shadow.fill(
                linear, write=bool(error_code & 2), user=bool(error_code & 4), fetch=bool(error_code & 16)
            )
            self.count("shadow_fill")
        except PageFault as fault:
            self.page_fault(linear, fault.error_code)

    def page_fault(self, linear: int, error_code: int) -> None:
        """The guest's own page fault."""
        self.shared.write("cr2", linear)
        self.reflect(fl.PAGE_FAULT, error_code)

    def _emulate(self, vector: int, error_code: int) -> bool:
        """A privileged instruction of the guest's kernel, perhaps (#GP), or a selector that it may load."""
        cpu = self.machine.cpu
        if cpu.cpl == _USER:
            return False
        insn = self.launcher.decode()
        if insn is None:
            return False
        linear = self._linear()
        if error_code or vector != fl.GP:  # a selector, perhaps of the privilege that the guest believes in
            return uses_selector(insn) and self.on_privileged(insn, linear)
        self.on_request(linear)
        return self.on_privileged(insn, linear) or self.launcher.emulate(insn)

    def reflect(self, vector: int, error_code: int) -> None:
        """An exception for the guest; without a handler it is killed, as lguest does."""
        has_code = vector in fl.HAS_ERROR_CODE
        direct = self.traps.is_direct(vector)
        self.count("trap_direct" if direct else "trap_reflected")
        state = self.machine.cpu.state
        where = state.rip
        self._tell(vector, error_code, software=False)
        is_fault = vector not in (fl.DB, fl.BP, fl.OV)
        if not self.traps.deliver(vector, error_code if has_code else None, fault=is_fault, direct=direct):
            name = fl.EXCEPTION_NAMES.get(vector, str(vector))
            raise GuestKilled(f"unhandled trap {vector} ({name}) at {where:#x} ({error_code:#x})")

    def _tell(self, vector: int, error_code: int, *, software: bool) -> None:
        """Note an exception that the guest gets."""
        self.delivered += 1
        where = self.machine.cpu.state.rip
        self.machine.trace(
            "exception", vector=vector, error_code=error_code, rip=where, software=int(software)
        )

    # -- what hypercalls ask -----------------------------------------------------------------------

    @property
    def pae(self) -> bool:
        """True while the guest's tables have 8-byte entries."""
        return self._built_for_pae or bool(self.cr4 & _CR4_PAE)

    def look_at_format(self, root: int) -> None:
        """Is a guest of lguest's own built for three-level tables? It does not say so, and never writes CR4:
        such guests are compiled like their host. A native guest says it by CR4.

        Entries of a directory have bits that those of a pointer table may not (SDM volume 3, table 4-8).
        """
        if self.build is not LINUX_HOST:
            return
        raw = self.space.physical.load(root & ~31, 4 * 8)
        entries = [int.from_bytes(raw[at : at + 8], "little") for at in range(0, len(raw), 8)]
        present = [entry for entry in entries if entry & 1]
        zero = all(not entry for entry in entries if not entry & 1)
        if present and zero and not any(entry & _NOT_IN_POINTERS for entry in present):
            self._built_for_pae = True
            self._set_format()

    def check_root(self, root: int) -> None:
        """Kill unless a top page table is inside the guest's memory."""
        if not self.space.physical.contains(root & ~0xFFF, PAGE):
            raise GuestKilled(f"bad page table {root:#x}")

    def set_task_switched(self, on: bool) -> None:
        """The TS hypercall."""
        self.set_cr0(self.cr0 | fl.CR0_TS if on else self.cr0 & ~fl.CR0_TS)

    def set_cr0(self, value: int) -> None:
        """A guest's CR0: its FPU bits and WP take effect, paging and protection stay."""
        self.cr0 = value
        real = self.machine.cpu.state.cr[0] & ~_GUEST_CR0 | value & _GUEST_CR0
        self.machine.cpu.write_control(0, real)
        self._set_format()

    def set_cr4(self, value: int) -> None:
        """A guest's CR4: its FPU bits take effect on the CPU, PAE on how its tables are read."""
        if (value ^ self.cr4) & _FLUSHING_CR4:
            self.shadow.flush()
        self.cr4 = value
        real = self.machine.cpu.state.cr[4] & ~_GUEST_CR4 | value & _GUEST_CR4
        self.machine.cpu.write_control(4, real)
        self._set_format()

    def _set_format(self) -> None:
        self.shadow.set_format(pae=self.pae, write_protect=bool(self.cr0 & fl.CR0_WP))

    def halt(self) -> None:
        """HALT: virtual time jumps from event to event until an interrupt can be delivered."""
        machine, clock = self.machine, self.machine.clock
        if self.shared.read("blocked_interrupts") == _ALL_BLOCKED:
            machine.end(Outcome.HALTED, "HALT with every interrupt blocked")
            return
        self.halted = True
        while self.halted and not machine.is_ending:
            if self.interrupts.pending():
                self.interrupts.send()
                return
            due = clock.next_due_ns
            if due is None:
                machine.end(Outcome.HALTED, "HALT with nothing to wait for")
                return
            clock.skip_to(due)
            clock.run_due()

    def wake(self) -> None:
        """An interrupt ends HALT."""
        self.halted = False

    def interrupt_changed(self) -> None:
        """Something became pending: the guest is to be interrupted as soon as it may be."""
        self.machine.cpu.set_waiting(self.interrupts.waiting())

    def count(self, kind: str) -> None:
        """One exit, by kind."""
        self.machine.stats.exits[kind] += 1
