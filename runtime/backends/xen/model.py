"""Xen as one running domain sees it: takes its traps and hypercalls, delivers its events.

The pieces live beside this file (construction, frames and paging, hypercalls, traps, events, timers,
emulation); here they are tied to the machine's hooks. Nothing here knows of the unified ABI.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from pvpatch.abi.errors import ImageError
from runtime.backends import Hypervisor
from runtime.backends.xen.breakpoints import Breakpoints
from runtime.backends.xen.code import CodePages
from runtime.backends.xen.construction import Construction, Wiring
from runtime.backends.xen.cpuid import pv_cpuid
from runtime.backends.xen.domain import FIRST_RESERVED_GDT_PAGE, Domain
from runtime.backends.xen.emulate import FORCED_EMULATION, Emulator
from runtime.backends.xen.frames import PageType, XenError
from runtime.backends.xen.hypercalls import Continue, Leave, call
from runtime.backends.xen.layout import ERRNO, PAGE_SIZE, names, numbers, struct
from runtime.backends.xen.machine_memory import GDT_PAGES, LDT_PAGES, TABLE
from runtime.backends.xen.page_writes import PageTableWrites
from runtime.backends.xen.selectors import FLAT
from runtime.backends.xen.traps import DomainCrashError, Traps
from runtime.boot.model import BootKind, EntryState, FlatSegment
from runtime.cpu import flags as fl
from runtime.cpu.cpuid import CpuidAnswer
from runtime.cpu.delivery import Event
from runtime.cpu.segments import load_cache, update_modes
from runtime.outcome import Outcome

if TYPE_CHECKING:
    from runtime.cpu.watch import CodeReader
    from runtime.machine import Machine

__all__ = ["DomainCpu", "XenHypervisor", "is_own_guest"]

HYPERCALLS = names("hypercall")
EXITS = {number: f"hypercall {name}" for number, name in HYPERCALLS.items()}
IRET = numbers("hypercall")["iret"]
PV32_VECTOR = 0x82
ENTRY_CR0, ENTRY_CR4 = 0x80050033, 0x6A0
CR4_OSXSAVE = 1 << 18
"""Set for a paravirtual guest whatever it writes, since Xen uses XSAVE itself (pv_make_cr4)."""
HYPERCALL_COST_NS = 500
WORK_COST_NS = 100
"""Virtual time of one element of a hypercall's list."""
TRAP_COST_NS = 2000
"""Virtual time of an instruction that traps and is emulated."""
FAST_CALL_LENGTH = INT_LENGTH = 2
PAGE_ENTRY = 0x63
WRITABLE_PAGETABLES = 1 << 2
UPCALL_MASK_WORD = 0x100
"""upcall_mask is the second byte of vcpu_info."""


def is_own_guest(machine: Machine) -> bool:
    """Is the image one of Xen's own guests, as it is?"""
    return machine.patched is None and BootKind.XEN_PV in machine.image.entries


class DomainCpu:
    """The CPU as hypercalls use it."""

    def __init__(self, model: XenHypervisor) -> None:
        self._model = model
        self._cpu = model.machine.cpu

    def set_page_table(self, root: int) -> None:
        """pv32 runs in compatibility mode: its L3 goes into the first slot of an L4 of Xen's own."""
        self._forget()
        hole, memory = self._model.parts.hole, self._model.parts.memory
        if hole.monitor:
            memory.entries(hole.monitor)[0] = root | TABLE
            root = hole.monitor * PAGE_SIZE
        self._cpu.write_control(3, root)

    def flush(self, address: int | None = None) -> None:
        self._forget()
        self._cpu.flush_tlb()

    def _forget(self) -> None:
        self._model.code.forget()
        self._model.parts.domain.tables.stale = False

    def set_task_switched(self, value: bool) -> None:
        cr0 = int(self._cpu.state.cr[0])
        self._cpu.write_control(0, cr0 | fl.CR0_TS if value else cr0 & ~fl.CR0_TS)

    def set_segment_base(self, register: str, base: int) -> None:
        self._cpu.state.segments[fl.FS if register == "fs" else fl.GS].base = base

    def reload_tables(self) -> None:
        self._model.map_descriptor_tables()

    def set_breakpoints(self, registers: Sequence[int]) -> None:
        """A translated domain's registers only remember."""
        if self._model.breakpoints is not None:
            self._model.breakpoints.changed(registers)


class XenHypervisor(Hypervisor):
    """One domain on one CPU."""

    parts: Construction
    domain: Domain
    traps: Traps
    emulator: Emulator
    page_writes: PageTableWrites
    width: int
    _last_spurious = (0, -1)
    _mask_watched = -1
    """Machine address of the vcpu_info whose mask is the interrupt window."""

    def __init__(self, machine: Machine) -> None:
        super().__init__(machine)
        self.code = CodePages()
        self.breakpoints: Breakpoints | None = None
        self.ports_execute = not is_own_guest(machine)

    def code_reader(self) -> CodeReader:
        """By the tables that Xen checked; a translated domain has none of those."""
        return self.code if is_own_guest(self.machine) else self.machine.linear

    def load(self) -> EntryState:
        """Build the domain from an image with Xen's notes. Raises ImageError for any other image."""
        machine = self.machine
        if BootKind.XEN_PV not in machine.image.entries:
            raise ImageError(
                f"{machine.image.name} is no Xen PV kernel",
                "a native kernel starts on Xen when it is patched and this backend has slot code for it",
            )
        self.width = machine.image.width
        self.parts = Construction(machine, self.width, Wiring(DomainCpu(self), self._event_pending))
        self.domain = domain = self.parts.domain
        self.code.serve(domain)
        self.traps = Traps(domain, machine.cpu)
        self.emulator = Emulator(domain, machine.cpu, machine, self.parts.write_hypercall_page)
        self.page_writes = PageTableWrites(domain, machine.cpu)
        self.breakpoints = Breakpoints(machine, self._machine_address, self._breakpoint)
        domain.timers.fired = domain.timer_fired
        domain.timers.watchdog_barked = lambda: machine.crash("the guest's watchdog timed out")
        return self._entry_state()

    def _entry_state(self) -> EntryState:
        """The state of xg_dom_x86.c; pv32 is put right in `entered`, since its code segment is 32-bit."""
        plan, hole, flat = self.parts.plan, self.parts.hole, FLAT[self.width]
        root = hole.monitor or plan.p2m[plan.root_pfn]
        return EntryState(
            rip=plan.entry,
            long_mode=True,
            registers={"rsi": plan.start_info, "rsp": plan.stack_top},
            rflags=fl.IF | 2,
            cr0=ENTRY_CR0,
            cr3=root * PAGE_SIZE,
            cr4=ENTRY_CR4 | CR4_OSXSAVE,
            gdt=(hole.gdt, GDT_PAGES * PAGE_SIZE - 1),
            code=FlatSegment(flat["kernel_cs"], attributes=0x00A0FB00),
            data=FlatSegment(flat["kernel_ss"], attributes=0x00C0F300),
        )

    def entered(self) -> None:
        """NX and SYSCALL, segments, the GDT's pages, and the word that says whether events may come."""
        cpu, flat = self.machine.cpu, FLAT[self.width]
        cpu.state.efer |= fl.EFER_NXE | fl.EFER_SCE
        cpu.state.tr.selector = cpu.state.tr.limit = cpu.state.tr.flags = 0
        if self.width == 64:
            for index in (fl.DS, fl.ES, fl.FS, fl.GS):
                cpu.state.segments[index].selector = 0
        else:
            load_cache(cpu, fl.CS, flat["kernel_cs"], 0, 0xFFFFFFFF, 0x00C0BB00)
            for index in (fl.SS, fl.DS, fl.ES, fl.FS, fl.GS):
                load_cache(cpu, index, flat["kernel_ss"], 0, 0xFFFFFFFF, 0x00C0B300)
            update_modes(cpu, 1)
        self.domain.cpu.set_page_table(self.domain.kernel_root * PAGE_SIZE)
        self.map_descriptor_tables()
        self._watch_mask()

    def _watch_mask(self) -> None:
        """Interrupts are accepted while vcpu_info.upcall_mask is 0."""
        machine, place = self.machine, self.domain.vcpu_info
        if place != self._mask_watched:
            self._mask_watched = place
            machine.cpu.set_interrupt_window(
                machine.memory.host_address + place, UPCALL_MASK_WORD, UPCALL_MASK_WORD
            )

    def map_descriptor_tables(self) -> None:
        """Map the guest's descriptor pages and Xen's own behind them; LDT pages that are not there fault."""
        domain, state, hole = self.domain, self.machine.cpu.state, self.parts.hole
        frames: dict[int, int] = dict(enumerate(domain.gdt_frames))
        frames[FIRST_RESERVED_GDT_PAGE] = self.parts.gdt_frame
        frames |= {GDT_PAGES + page: mfn for page, mfn in domain.ldt_frames.items()}
        for page in range(GDT_PAGES + LDT_PAGES):
            entry = frames[page] << 12 | PAGE_ENTRY if page in frames else 0
            self.parts.memory.store(hole.per_domain_table + page * 8, entry.to_bytes(8, "little"))
        state.gdt.base, state.gdt.limit = hole.gdt, GDT_PAGES * PAGE_SIZE - 1
        state.ldt.base, state.ldt.limit = hole.ldt, max(0, domain.ldt_entries * 8 - 1)
        state.ldt.flags = 0x8200 if domain.ldt_entries else 0
        self.machine.cpu.flush_tlb()

    # -- events --------------------------------------------------------------------------------

    def _event_pending(self) -> None:
        self.domain.wake()
        self.machine.cpu.set_waiting(self.interrupt_waiting())

    def interrupt_waiting(self) -> bool:
        """Is an upcall due? Asked on each return from Xen: a store that clears the mask makes none come, the
        guest looks for itself what has become pending meanwhile (test_all_events)."""
        return self.domain.upcall_pending and not self.domain.upcall_mask

    def deliver_interrupt(self) -> None:
        """The event upcall."""
        self._guarded(self.traps.event)

    def console_input(self, data: bytes) -> None:
        """Bytes typed at the guest's console."""
        self.parts.ring.type(data)

    def _sleep(self) -> None:
        """The guest blocked: time passes until something wakes it."""
        domain = self.domain
        domain.timers.enter("blocked")
        domain.publish_runstate()
        while domain.blocked and not domain.shutdown:
            if not self.machine.pass_time():
                break
        if domain.blocked and not self.machine.is_ending:
            self.machine.end(Outcome.HALTED, "blocked with nothing to wait for")
        domain.wake()
        domain.timers.enter("running")
        domain.publish_runstate()

    # -- hypercalls ----------------------------------------------------------------------------

    def on_syscall(self) -> bool:
        """pv64: from the kernel a hypercall, from user mode a system call for the guest's kernel.

        The machine adds the instruction's length afterwards.
        """
        state = self.machine.cpu.state
        if self.width != 64:
            self._guarded(lambda: self.traps.exception(fl.UD, 0, False))
        else:
            state.rip += FAST_CALL_LENGTH
            if self.domain.kernel_mode:
                self._hypercall64()
            else:
                self._guarded(self.traps.syscall)
        state.rip -= FAST_CALL_LENGTH
        return True

    def on_sysenter(self) -> bool:
        """From user mode: the guest kernel's sysenter callback, if it has one."""
        if not self.traps.sysenter():
            self._guarded(lambda: self.traps.exception(fl.GP, 0, True))
        self.machine.cpu.state.rip -= FAST_CALL_LENGTH
        return True

    def _hypercall64(self) -> None:
        cpu = self.machine.cpu
        gpr = cpu.registers
        number = self._begin((1 << 64) - 1)
        if number == IRET:
            self._guarded(self.traps.iret)
        else:
            registers = (fl.RDI, fl.RSI, fl.RDX, 10, 8, 9)
            result = self._carry_out(number, [gpr[i] for i in registers])
            if isinstance(result, Leave):
                self._leave(result)
            else:
                gpr[fl.RCX], gpr[11] = cpu.state.rip, cpu.rflags
                self._answer(result, registers, FAST_CALL_LENGTH, (1 << 64) - 1)
        self._finish()

    def _hypercall32(self) -> None:
        gpr = self.machine.cpu.registers
        number = self._begin(0xFFFFFFFF)
        if number == IRET:
            self._guarded(self.traps.iret)
        else:
            registers = (fl.RBX, fl.RCX, fl.RDX, fl.RSI, fl.RDI, fl.RBP)
            result = self._carry_out(number, [gpr[i] & 0xFFFFFFFF for i in registers])
            if isinstance(result, Leave):
                self._leave(result)
            else:
                self._answer(result, registers, INT_LENGTH, 0xFFFFFFFF)
        self._finish()

    def _leave(self, where: Leave) -> None:
        """`iret` in a multicall ends it: the guest's accumulator is the result of the entry and of all."""
        self._guarded(self.traps.iret)
        layout = struct("multicall_entry", self.width)
        try:
            self.domain.space.set_field(where.entry, layout, "result", self.machine.cpu.registers[fl.RAX])
        except XenError as error:
            self.domain.log(str(error))

    def _begin(self, mask: int) -> int:
        """Count a hypercall; its number."""
        machine = self.machine
        number = machine.cpu.registers[fl.RAX] & mask
        machine.stats.exits[EXITS.get(number, "hypercall unknown number")] += 1
        if machine.tracer is not None:
            name = HYPERCALLS.get(number, "unknown number")
            machine.trace("hypercall", number=number, name=name, rip=machine.cpu.state.rip)
        self.domain.work_done = 0
        return number

    def _carry_out(self, number: int, arguments: Sequence[int]) -> int | Continue | Leave:
        try:
            return call(self.domain, number, arguments)
        except DomainCrashError as crash:
            self._crash(crash)
            return -int(ERRNO.ENOSYS)

    def _answer(self, result: int | Continue, registers: Sequence[int], length: int, mask: int) -> None:
        """Give the result, or have the guest make the call again with what is left to do."""
        cpu = self.machine.cpu
        if isinstance(result, Continue):
            for register, value in zip(registers, result.arguments, strict=False):
                cpu.registers[register] = value & mask
            cpu.state.rip -= length
        else:
            cpu.registers[fl.RAX] = result & mask

    def _finish(self) -> None:
        """Charge the hypercall; what it may have left to do: shut down, sleep, an NMI, a moved vcpu_info."""
        domain = self.domain
        self.machine.clock.spend_ns(HYPERCALL_COST_NS + domain.work_done * WORK_COST_NS)
        if domain.shutdown:
            self._shut_down(domain.shutdown)
        elif domain.blocked:
            self._sleep()
            domain.publish_time()
        if domain.nmi_pending:
            self._guarded(self.traps.nmi)
        self._watch_mask()
        self.machine.cpu.set_waiting(self.interrupt_waiting())

    def _shut_down(self, reason: str) -> None:
        machine = self.machine
        if reason == "reboot":
            machine.reset("SCHEDOP_shutdown: reboot")
        elif reason == "crash":
            machine.crash("the guest shut itself down with reason crash")
        else:
            machine.power_off(f"SCHEDOP_shutdown: {reason}")

    def _guarded(self, work: Callable[[], None]) -> None:
        """Run something that may end the domain."""
        try:
            work()
        except DomainCrashError as crash:
            self._crash(crash)

    def _crash(self, crash: DomainCrashError) -> None:
        self.machine.crash(f"domain_crash: d{self.domain.domid}v0 {crash}")

    # -- debugging -----------------------------------------------------------------------------

    def _machine_address(self, linear: int) -> int | None:
        found = self.domain.tables.walk(self.domain.space.root(), linear)
        return None if found is None else found.address

    def _breakpoint(self, bits: int, is_fault: bool) -> None:
        """#DB of a breakpoint, for an instruction a fault: DR6 says which."""
        self.domain.debug_registers[6] |= bits
        self._guarded(lambda: self.traps.exception(fl.DB, 0, False, is_fault))
        self.machine.cpu.set_waiting(self.interrupt_waiting())

    # -- traps ---------------------------------------------------------------------------------

    def on_event(self, event: Event) -> bool:
        """Every exception and INT n of the guest: answered by Xen, or bounced to the guest's handler."""
        if event.software:
            self._guarded(lambda: self._software(event.vector))
        elif not self._answered(event):
            code = self._error_code(event)
            self._guarded(lambda: self.traps.exception(event.vector, code, event.pushes_error_code))
        self.machine.cpu.set_waiting(self.interrupt_waiting())
        return True

    def _software(self, vector: int) -> None:
        if self.width == 32 and vector == PV32_VECTOR and self.traps.in_kernel:
            self._hypercall32()
        elif not self.traps.software(vector):
            self.machine.cpu.state.rip -= INT_LENGTH
            self.traps.exception(fl.GP, vector << 3 | 2, True)

    def _answered(self, event: Event) -> bool:
        """What Xen deals with itself."""
        if event.vector == fl.PAGE_FAULT:
            return self._page_fault(event.error_code)
        if event.vector == fl.GP and event.error_code == 0:
            self.machine.clock.spend_ns(TRAP_COST_NS)
            return self.emulator.privileged(self.traps.in_kernel)
        if event.vector == fl.UD:
            return self._forced_cpuid()
        if event.vector == fl.DB:
            self._keep_debug_status()
        if event.vector == fl.NM:
            self.domain.cpu.set_task_switched(False)
        return False

    def _keep_debug_status(self) -> None:
        """What #DB was for adds up in the guest's DR6; the real one is cleared (do_debug in x86/traps.c)."""
        real, registers = self.machine.cpu.state.dr, self.domain.debug_registers
        registers[6] |= int(real[6]) & fl.DR6_STATUS
        real[6] = fl.DR6_RESET

    def _page_fault(self, error_code: int) -> bool:
        """A write to a page table, a page of the LDT, a stale translation, or the guest's own fault."""
        domain = self.domain
        address = int(self.machine.cpu.state.cr[2])
        ldt = self.parts.hole.ldt
        if ldt <= address < ldt + LDT_PAGES * PAGE_SIZE:
            if domain.map_ldt_page((address - ldt) // PAGE_SIZE):
                return True
            address += domain.ldt_base - ldt
        elif self._is_table_write(error_code) and self.page_writes.emulate(address):
            return True
        elif self._is_spurious(address, error_code):
            self.machine.cpu.flush_tlb()
            return True
        domain.cr2 = address
        return False

    def _is_table_write(self, error_code: int) -> bool:
        wanted = bool(self.domain.vm_assist & WRITABLE_PAGETABLES)
        return wanted and self.traps.in_kernel and error_code & 3 == 3

    def _is_spurious(self, address: int, error_code: int) -> bool:
        """Do the tables allow the access by now? Asked once per address and moment, lest it never ends."""
        moment = (address, self.machine.clock.now_ns)
        if error_code & 16 or moment == self._last_spurious:
            return False
        found = self.domain.tables.walk(self.domain.space.root(), address)
        if found is None or (error_code & 4 and not found.user) or (error_code & 2 and not found.writable):
            return False
        self._last_spurious = moment
        return True

    def _error_code(self, event: Event) -> int:
        """The page-fault error code with the user bit as the guest means it."""
        if event.vector != fl.PAGE_FAULT:
            return event.error_code
        return event.error_code & ~4 | (0 if self.traps.in_kernel else 4)

    def on_invalid_opcode(self) -> bool:
        """The forced-emulation prefix arrives as an invalid opcode."""
        return self._forced_cpuid()

    def _forced_cpuid(self) -> bool:
        state = self.machine.cpu.state
        at = state.segments[fl.CS].base + state.rip
        length = len(FORCED_EMULATION)
        if self.machine.linear.try_read(at, length + 2) != FORCED_EMULATION + b"\x0f\xa2":
            return False
        self.machine.cpuid()
        state.rip += length + 2
        return True

    def on_cpuid(self, leaf: int, subleaf: int, bare: CpuidAnswer) -> CpuidAnswer:
        """CPUID is faulted and answered by Xen's policy, prefix or not."""
        self.machine.clock.spend_ns(TRAP_COST_NS)
        self.machine.cpu.set_waiting(self.interrupt_waiting())
        return pv_cpuid(leaf, subleaf, bare, self.domain.timers, self.width)

    def counters(self) -> dict[str, int]:
        """Deliveries and emulated instructions by kind."""
        own = {f"delivered {name}": count for name, count in self.traps.delivered.items()}
        own |= {f"emulated {name}": count for name, count in self.emulator.counts.items()}
        own["emulated page-table write"] = self.page_writes.count
        own["frames in use as tables"] = sum(
            int((self.domain.frames.columns.kind == kind).sum())
            for kind in range(PageType.L1, PageType.L4 + 1)
        )
        return own
