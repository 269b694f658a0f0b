"""VMI: a guest boots natively, calls VMI_Init in the option ROM, and has its kernel at privilege 1 then.

The hypervisor in one object per machine; it knows the published interface (interface.toml) and nothing of
our ABI. Before VMI_Init the guest has the bare machine. Afterwards the top of the linear address space
holds the ROM's code and a page shared with it; everything that the ROM cannot answer arrives as a VMCALL
whose place says which call it is. Port instructions that fault are carried out, and so are privileged ones
that have a call; any other gives the guest its #GP.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable

import iced_x86

from runtime.backends.vmi.calls import CallTable
from runtime.backends.vmi.emulate import KernelInstructions
from runtime.backends.vmi.errors import GuestKilled
from runtime.backends.vmi.interface import interface
from runtime.backends.vmi.interrupts import Interrupts
from runtime.backends.vmi.memory import GuestTables
from runtime.backends.vmi.rom import SHARED_WORDS, TEXT_PAGES, option_rom, rom_text
from runtime.backends.vmi.start import Activation
from runtime.backends.vmi.tables import GDT_PAGES, KERNEL_PRIVILEGE, LDT_PAGES, SegmentTables
from runtime.backends.vmi.timers import CycleCounters
from runtime.cpu import flags as fl
from runtime.cpu.delivery import CpuFault, Deliverer, Event
from runtime.deprivileged.instructions import PortInstructions
from runtime.deprivileged.missed import SELECTOR_FAULTS, uses_selector
from runtime.deprivileged.operands import mnemonic_name
from runtime.deprivileged.shadow import PAGE, ShadowMmu
from runtime.deprivileged.view import ShadowView
from runtime.machine import Machine
from runtime.memory import MemoryRange, PageFault

__all__ = ["HOST_PAGES", "VmiModel"]

_SHADOW_PAGES = 1100
"""Private pages for shadow tables: pointer table, directories, the hole's 32 tables, 1024 of the guest's."""
HOST_PAGES = 1 + TEXT_PAGES + GDT_PAGES + LDT_PAGES + 1 + _SHADOW_PAGES
"""Private pages: shared page, ROM code, GDT and LDT copies, TSS, shadow tables."""
_LINEAR_PLACES = {"gdt": 0x10000, "ldt": 0x20000, "tss": 0x30000}
"""Offsets from `virtual_top`; the shared page and the ROM's code are at its start."""
_IF = 0x200
_GUEST_CR0 = 0x2 | 0x4 | fl.CR0_TS | 0x10 | 0x20
"""MP, EM, TS, ET, NE: what a guest decides of CR0."""
_GUEST_CR4 = 0x200 | 0x400 | 0x40000
"""OSFXSR, OSXMMEXCPT, OSXSAVE: what a guest decides of CR4."""
_FIXED_CR0 = fl.CR0_PE | fl.CR0_PG
_CR4_PAE = 1 << 5
_CR4_FLUSHES = 1 << 4 | 1 << 5 | 1 << 7
"""PSE, PAE, PGE: a change ends all translations."""
_USER = 3


class VmiModel:
    """One guest on VMI."""

    def __init__(self, machine: Machine, resident_pages: int, frequency: int = 0) -> None:
        self.machine = machine
        self.known = interface()
        self.text = rom_text()
        memory = machine.memory
        self.guest = MemoryRange(memory.view, memory.size + resident_pages * PAGE)
        self._shared = self.guest.size
        pages = {"text": self._shared + PAGE}
        pages["gdt"] = pages["text"] + TEXT_PAGES * PAGE
        pages["ldt"] = pages["gdt"] + GDT_PAGES * PAGE
        pages["tss"] = pages["ldt"] + LDT_PAGES * PAGE
        cpu = machine.cpu
        self.shadow = ShadowMmu(memory, self.guest, pages["tss"] + PAGE, _SHADOW_PAGES, cpu.flush_tlb)
        self.view = _GuestView(cpu, self.shadow, self.guest)
        linear = {name: self.known.virtual_top + offset for name, offset in _LINEAR_PLACES.items()}
        self.tables = SegmentTables(
            cpu, self.view, memory.whole,
            *((linear[name], pages[name]) for name in ("gdt", "ldt", "tss")),
        )  # fmt: skip
        self.counters = CycleCounters(
            machine.clock,
            frequency or self.known.cycles_per_second,
            self.known.minimal_period_ns,
            lambda through_lvtt: self.interrupts.alarm(through_lvtt),
        )
        self.interrupts = Interrupts(self)
        self.guest_tables = GuestTables(self.known, self.guest, self.shadow, self.view)
        self.ports = PortInstructions(machine, self.view)
        self.calls = CallTable(self)
        self.instructions = KernelInstructions(self)
        self.activation = Activation(self)
        self.active = False
        """VMI_Init has happened."""
        self.halted = False
        self.iopl = 0
        self.on_privileged: Callable[[iced_x86.Instruction, int], bool] = lambda insn, linear: False
        """Told of every privileged instruction that faulted in the kernel, with its linear address; True if
        it has been dealt with."""
        self.on_call: Callable[[], None] = lambda: None
        """Told of every call that leaves the ROM, before it is carried out."""
        self.resident_code_bit = 0
        """A bit that only the CS of the guest's resident code has set."""
        self._map_hole(pages, linear)

    def _map_hole(self, pages: dict[str, int], linear: dict[str, int]) -> None:
        """The top of the linear address space is the hypervisor's in every address space."""
        top = self.known.virtual_top
        for address in range(top, 1 << 32, 1 << 21):
            self.shadow.reserve_slot(address)
        whole = self.machine.memory.whole
        whole.store(pages["text"], self.text.code)
        self.shadow.map_host(top, self._shared, writable=True, executable=False)
        for index in range(TEXT_PAGES):
            at = index * PAGE
            self.shadow.map_host(top + PAGE + at, pages["text"] + at, writable=False, executable=True)
        for name, count in (("gdt", GDT_PAGES), ("ldt", LDT_PAGES), ("tss", 1)):
            for at in range(0, count * PAGE, PAGE):
                self.shadow.map_host(linear[name] + at, pages[name] + at, writable=False, executable=False)

    def map_resident(self, linear: int, pages: int, code_pages: int) -> None:
        """Keep the guest's resident pages (they follow its RAM) at `linear` in every address space; the
        first `code_pages` are read-only and executable."""
        for index in range(pages):
            is_code = index < code_pages
            self.shadow.map_host(
                linear + index * PAGE,
                self.machine.memory.size + index * PAGE,
                writable=not is_code,
                executable=is_code,
            )

    def install_rom(self) -> None:
        """Put the option ROM where guests look for it."""
        self.machine.memory.store(self.known.rom_physical, option_rom())

    # -- the shared page -----------------------------------------------------------------------------

    def read_shared(self, name: str) -> int:
        """A word of the page shared with the ROM."""
        return self.machine.memory.whole.load_u32(self._shared + SHARED_WORDS[name])

    def write_shared(self, name: str, value: int) -> None:
        """Set a word of the page shared with the ROM."""
        self.machine.memory.whole.store_u32(self._shared + SHARED_WORDS[name], value)

    @property
    def interrupts_enabled(self) -> bool:
        """The guest's IF."""
        return bool(self.read_shared("enabled") & _IF)

    def enable_interrupts(self, on: bool) -> None:
        """Set the guest's IF."""
        self.write_shared("enabled", _IF if on else 0)

    def watch_interrupt_flag(self) -> None:
        """From now on the IF word says when interrupts may come."""
        host = self.machine.memory.host_address + self._shared
        self.machine.cpu.set_interrupt_window(host + SHARED_WORDS["enabled"], _IF, 0)

    def watch_resident_code(self) -> bool:
        """From now on interrupts may come when the guest leaves the resident code, which it enters by a CS of
        that code's own. False when that cannot be told from CS."""
        code = self.machine.cpu.state.segments[fl.CS]
        bit = self.resident_code_bit
        if not code.selector & bit:
            return False
        self.machine.cpu.set_interrupt_window(ctypes.addressof(code) + type(code).selector.offset, bit, bit)
        return True

    def in_own_code(self) -> bool:
        """EIP is in the hypervisor's part of the address space."""
        return self.code_linear() >= self.known.virtual_top

    def code_linear(self) -> int:
        """Linear address of the current instruction."""
        state = self.machine.cpu.state
        return int(state.segments[fl.CS].base + state.rip) & 0xFFFFFFFF

    # -- traps -----------------------------------------------------------------------------------------

    def vmcall(self) -> bool:
        """VMCALL: a call if it stands in the ROM, False (so #UD) anywhere else."""
        if self.machine.cpu.cpl == _USER:
            return False
        if self.active and self.calls.enter(self.code_linear()):
            return True
        return self.activation.jump_point()

    def trap(self, event: Event) -> None:
        """Exceptions and software interrupts after VMI_Init."""
        if event.software:
            self.deliver(event)
        elif event.vector == fl.PAGE_FAULT:
            self._page_fault(event.error_code)
        elif not (
            (event.vector in SELECTOR_FAULTS and self._emulate(event.vector, event.error_code))
            or (event.vector == fl.UD and self._unknown())
        ):
            self.deliver(event)

    def _page_fault(self, error_code: int) -> None:
        """Fill the shadow, or hand the fault to the guest."""
        linear = self.machine.cpu.state.cr[2] & 0xFFFFFFFF
        try:
            self.shadow.fill(
                linear, write=bool(error_code & 2), user=bool(error_code & 4), fetch=bool(error_code & 16)
            )
            self.count("shadow_fill")
        except PageFault as fault:
            self.page_fault(fault)

    def page_fault(self, fault: PageFault) -> None:
        """The guest's own page fault, at the current EIP."""
        self.write_shared("cr2", fault.linear)
        self.deliver(Event(fl.PAGE_FAULT, fault.error_code))

    def _emulate(self, vector: int, error_code: int) -> bool:
        """#GP: an instruction that the guest may use is carried out, anything else stays a fault."""
        kernel = self.machine.cpu.cpl != _USER
        insn = self.ports.decode()
        if insn is None:
            return False
        if error_code or vector != fl.GP:  # a selector, perhaps of the privilege that the guest believes in
            return kernel and uses_selector(insn) and self.on_privileged(insn, self.code_linear())
        if kernel and self.on_privileged(insn, self.code_linear()):
            return True
        try:
            if (kernel or self.iopl == fl.IOPL) and self.ports.emulate(insn):
                self.count("io")
                return True
            return kernel and self._privileged(insn)
        except PageFault as fault:
            self.page_fault(fault)
        except CpuFault as fault:
            self.fault(fault)
        return True

    def _unknown(self) -> bool:
        """#UD: the emulated CPU has no RDPMC, which on any real one is privileged."""
        insn = self.ports.decode() if self.machine.cpu.cpl != _USER else None
        return insn is not None and insn.mnemonic == iced_x86.Mnemonic.RDPMC and self._privileged(insn)

    def _privileged(self, insn: iced_x86.Instruction) -> bool:
        done = self.instructions.emulate(insn)
        if done:
            self.count(mnemonic_name(insn))
        return done

    def deliver(self, event: Event) -> None:
        """Through the guest's IDT: the stack image shows the guest's IF and IOPL."""
        cpu, state = self.machine.cpu, self.machine.cpu.state
        believed = (_IF if self.interrupts_enabled else 0) | self.iopl
        cpu.rflags = cpu.rflags & ~(fl.IF | fl.IOPL) | believed
        state.cr[2] = self.read_shared("cr2")
        self.machine.deliver(event)
        self.write_shared("cr2", state.cr[2] & 0xFFFFFFFF)
        self.enable_interrupts(bool(cpu.rflags & fl.IF))
        cpu.rflags = cpu.rflags & ~fl.IOPL | fl.IF

    def fault(self, fault: CpuFault) -> None:
        """A fault that a call gives as its instruction would, at the ROM's instruction."""
        self.deliver(Event(fault.vector, fault.error_code))

    # -- control registers -----------------------------------------------------------------------------

    def set_cr0(self, value: int) -> None:
        """SetCR0: protection and paging stay on; WP counts for how the guest's tables are read."""
        value = (value | _FIXED_CR0) & 0xE005003F
        self.write_shared("cr0", value)
        self.machine.cpu.write_control(0, fl.CR0_WP | _FIXED_CR0 | value & _GUEST_CR0)
        self.set_format()

    def set_cr4(self, value: int) -> None:
        """SetCR4: FPU bits take effect on the CPU, PAE on how the guest's tables are read."""
        if (self.read_shared("cr4") ^ value) & _CR4_FLUSHES:
            self.shadow.flush()
        self.write_shared("cr4", value)
        self.machine.cpu.write_control(4, _CR4_PAE | value & _GUEST_CR4)
        self.set_format()

    def set_format(self) -> None:
        """Tell the shadow how the guest's tables are to be read."""
        self.shadow.set_format(
            pae=bool(self.read_shared("cr4") & _CR4_PAE),
            write_protect=bool(self.read_shared("cr0") & fl.CR0_WP),
        )

    def set_cr3(self, root: int) -> None:
        """SetCR3: a new address space; what was queued happens first."""
        if not self.guest.contains(root & ~(PAGE - 1), PAGE):
            raise GuestKilled(f"page table {root:#x} is not in its memory")
        self.guest_tables.flush_queue()
        self.write_shared("cr3", root)
        self.shadow.set_root(root)

    def stack_word(self, index: int) -> int:
        """A word of the guest's stack. Raises `PageFault`."""
        state = self.machine.cpu.state
        return self.view.read_u32((state.segments[fl.SS].base + state.gpr[fl.RSP] + index * 4) & 0xFFFFFFFF)

    def return_from_call(self) -> None:
        """The ROM's RET, so that what happens next happens at the caller's. Raises `PageFault`."""
        state = self.machine.cpu.state
        state.rip = self.stack_word(0)
        state.gpr[fl.RSP] = (state.gpr[fl.RSP] + 4) & 0xFFFFFFFF

    # -- waiting -----------------------------------------------------------------------------------------

    def halt(self) -> None:
        """Interrupts on, and sleep until one comes."""
        self.enable_interrupts(True)
        self.halted = True
        woken = self.machine.halt()
        self.halted = False
        if woken:
            self.interrupts.deliver_pending()

    def count(self, kind: str) -> None:
        """One exit, by kind."""
        self.machine.stats.exits[kind] += 1

    def activate(self) -> None:
        """VMI_Init succeeded: events come through here, and delivery sees the guest's tables."""
        self.active = True
        self.machine.deliverer = Deliverer(self.machine.cpu, self.view)
        self.watch_interrupt_flag()
        self.machine.cpu.set_waiting(self.interrupts.waiting())


class _GuestView(ShadowView):
    """The guest's memory as delivery sees it: gates for privilege 0 are gates for the kernel."""

    def read(self, linear: int, length: int, *, user: bool = False, mark: bool = True) -> bytes:
        data = super().read(linear, length, user=user, mark=mark)
        idt = self._cpu.state.idt
        if length == 8 and idt.base <= linear <= idt.base + idt.limit and not data[5] & 0x60:
            return data[:5] + bytes([data[5] | KERNEL_PRIVILEGE << 5]) + data[6:]
        return data
