"""Xen as one running domain sees it: builds the domain, takes its traps and hypercalls, delivers its events.

The pieces live beside this file (frames and paging, hypercalls, traps, events, timers, emulation); here they
are put together and tied to the machine's hooks. Nothing here knows of the unified ABI.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pvpatch.abi.errors import ImageError
from runtime.backends import Hypervisor
from runtime.backends.xen.builder import Plan, build
from runtime.backends.xen.console import ConsoleRing
from runtime.backends.xen.cpuid import pv_cpuid
from runtime.backends.xen.domain import FIRST_RESERVED_GDT_PAGE, Domain
from runtime.backends.xen.emulate import FORCED_EMULATION, Emulator
from runtime.backends.xen.events import Channel, EventChannels
from runtime.backends.xen.frames import DOMAIN, XEN, FrameTable, PageType
from runtime.backends.xen.grants import GrantTable
from runtime.backends.xen.guestspace import GuestSpace
from runtime.backends.xen.hypercalls import call
from runtime.backends.xen.layout import ERRNO, PAGE_SIZE, names, numbers
from runtime.backends.xen.machine_memory import GDT_PAGES, MachineMemory, build_hole
from runtime.backends.xen.page_writes import PageTableWrites
from runtime.backends.xen.paging import HoleEntries, PageTables
from runtime.backends.xen.store import Store
from runtime.backends.xen.timers import Timers
from runtime.backends.xen.traps import FLAT, DomainCrashError, Traps
from runtime.boot.model import BootKind, EntryState, FlatSegment
from runtime.cpu import flags as fl
from runtime.cpu.cpuid import CpuidAnswer
from runtime.cpu.delivery import Event

__all__ = ["HEAP_FRAMES", "XenHypervisor", "hidden_frames"]

HEAP_FRAMES = 1024
DOMID = 1
TSC_HZ = 2_000_000_000
HYPERCALLS = names("hypercall")
IRET = numbers("hypercall")["iret"]
PV32_VECTOR = 0x82
ENTRY_CR0 = 0x8005003B
ENTRY_CR4 = 0x6A0
HYPERCALL_COST_NS = 500
TRAP_COST_NS = 2000
"""Virtual time of an instruction that traps and is emulated."""
SYSCALL_LENGTH = 2
XEN_GDT = {
    64: {0xE020: 0x00CFFB000000FFFF, 0xE028: 0x00CFF3000000FFFF, 0xE030: 0x00AFFB000000FFFF},
    32: {
        0xE018: 0x00CFBB000000FFFF,
        0xE020: 0x00CFB3000000FFFF,
        0xE028: 0x00CFFB000000FFFF,
        0xE030: 0x00CFF3000000FFFF,
    },
}
"""The flat segments in Xen's part of the GDT (include/public/arch-x86/xen-x86_{32,64}.h)."""


def hidden_frames(ram_frames: int) -> tuple[int, int]:
    """(frames of the M2P table, all hidden frames) for a machine with that much RAM."""
    m2p = -(-(ram_frames + HEAP_FRAMES + 8192) * 8 // PAGE_SIZE)
    tables = 16 + -(-m2p // 512)
    return m2p, m2p + tables + HEAP_FRAMES


class _DomainCpu:
    """The CPU as hypercalls use it."""

    def __init__(self, model: XenHypervisor) -> None:
        self._model = model
        self._cpu = model.machine.cpu

    def set_page_table(self, root: int) -> None:
        self._cpu.write_control(3, root)

    def flush(self, address: int | None = None) -> None:
        self._cpu.flush_tlb()

    def set_task_switched(self, value: bool) -> None:
        cr0 = int(self._cpu.state.cr[0])
        self._cpu.write_control(0, cr0 | fl.CR0_TS if value else cr0 & ~fl.CR0_TS)

    def set_segment_base(self, register: str, base: int) -> None:
        self._cpu.state.segments[fl.FS if register == "fs" else fl.GS].base = base

    def reload_tables(self) -> None:
        self._model.map_descriptor_tables()


class XenHypervisor(Hypervisor):
    """One domain on one CPU."""

    domain: Domain
    traps: Traps
    emulator: Emulator
    page_writes: PageTableWrites
    store: Store
    ring: ConsoleRing

    def load(self) -> EntryState:
        """Build the domain from an image with Xen's notes. Raises ImageError for any other image."""
        image = self.machine.image
        if BootKind.XEN_PV not in image.entries and image.kind is not BootKind.XEN_PV:
            raise ImageError(
                f"{image.name} is no Xen PV kernel", "native guests on xen need this backend's slot code"
            )
        self.width = image.width
        self._lay_out()
        plan = self._build_domain()
        return self._entry_state(plan)

    # -- building ------------------------------------------------------------------------------

    def _lay_out(self) -> None:
        """Machine memory: the domain's frames first, in an order of Xen's own, then Xen's."""
        machine = self.machine
        self.memory = MachineMemory(machine.memory.whole)
        self.ram_frames = machine.memory.size // PAGE_SIZE
        m2p_frames, _ = hidden_frames(self.ram_frames)
        m2p = self.ram_frames
        self.hole = build_hole(self.memory, self.width, m2p + m2p_frames, m2p, m2p_frames)
        heap = m2p + m2p_frames + 16 + -(-m2p_frames // 512)
        self.frames = FrameTable(self.memory, self.memory.frames)
        self.frames.owner[m2p:heap] = XEN
        self.frames.stock(list(range(self.memory.frames - 1, heap - 1, -1)))
        self.gdt_frame = self.frames.allocate(XEN)
        self.shared_info = self.frames.allocate(XEN) * PAGE_SIZE
        self.frames.share(self.shared_info // PAGE_SIZE)
        for selector, descriptor in XEN_GDT[self.width].items():
            offset = selector - FIRST_RESERVED_GDT_PAGE * PAGE_SIZE
            self.memory.store(self.gdt_frame * PAGE_SIZE + offset, descriptor.to_bytes(8, "little"))

    def _build_domain(self) -> Plan:
        machine, memory, frames, width = self.machine, self.memory, self.frames, self.width
        tables = PageTables(frames, width, HoleEntries(self.hole.slot, self.hole.values))
        extent = (self.hole.first, self.hole.last)
        space = GuestSpace(memory, tables, lambda: self._root(), extent)
        self.domain = domain = Domain(
            width=width,
            domid=DOMID,
            memory=memory,
            frames=frames,
            tables=tables,
            space=space,
            events=EventChannels(memory, self.shared_info, width, DOMID),
            grants=GrantTable(frames),
            timers=Timers(machine.clock, memory, TSC_HZ),
            cpu=_DomainCpu(self),
            shared_info=self.shared_info,
            hole=extent,
            m2p=self.hole.m2p,
            max_pages=self.ram_frames,
            log=lambda text: self.machine.trace("xen", text=text),
        )
        p2m = list(range(self.ram_frames - 1, -1, -1))
        for mfn in p2m:
            frames.give(mfn, DOMAIN)
        for pfn, mfn in enumerate(p2m):
            domain.set_pfn_of(mfn, pfn)
        fixed = {
            "shared_info": self.shared_info,
            "store_evtchn": domain.events.allocate(
                Channel("interdomain", listener=lambda: self.store.serve())
            ),
            "console_evtchn": domain.events.allocate(
                Channel("interdomain", listener=lambda: self.ring.serve())
            ),
        }
        plan = build(memory, machine.image, machine.config.request, p2m, width, fixed)
        self._connect(plan, fixed["store_evtchn"], fixed["console_evtchn"])
        self._finish(plan)
        return plan

    def _connect(self, plan: Plan, store_port: int, console_port: int) -> None:
        domain, p2m = self.domain, plan.p2m
        self.store = Store(
            self.memory, p2m[plan.store_pfn] * PAGE_SIZE, DOMID, lambda: self._notify(store_port)
        )
        home = self.store.home
        for path, value in (
            ("domid", str(DOMID)),
            ("name", "guest"),
            ("vm", "/vm/guest"),
            ("memory/target", str(len(p2m) * 4)),
            ("memory/static-max", str(len(p2m) * 4)),
            ("cpu/0/availability", "online"),
            ("console/type", "xenconsoled"),
            ("console/ring-ref", str(p2m[plan.console_pfn])),
            ("console/port", str(console_port)),
            ("control/platform-feature-multiprocessor-suspend", "1"),
            ("device", ""),
            ("data", ""),
        ):
            self.store.set(f"{home}/{path}", value.encode())
        self.ring = ConsoleRing(
            self.memory,
            p2m[plan.console_pfn] * PAGE_SIZE,
            self.machine.console.write,
            lambda: self._notify(console_port),
        )
        domain.timers.fired = self._timer_fired

    def _finish(self, plan: Plan) -> None:
        """What the builder asks of Xen at the end: validate and pin the tables, fill the pages Xen fills."""
        domain = self.domain
        root = plan.p2m[plan.root_pfn]
        domain.tables.pin(root, domain.tables.top_level)
        domain.tables.get_root(root)
        domain.kernel_root = root
        domain.kernel_sp, domain.kernel_ss = plan.stack_top, FLAT[self.width]["kernel_ss"]
        self.traps = Traps(domain, self.machine.cpu)
        self.emulator = Emulator(domain, self.machine.cpu)
        self.page_writes = PageTableWrites(domain, self.machine.cpu)
        self.emulator.write_hypercall_page = lambda gpa: self._hypercall_page_at(plan.p2m, gpa)
        page = plan.notes.hypercall_page
        if page is not None:
            self._hypercall_page_at(plan.p2m, (page - plan.notes.virt_base) & ((1 << self.width) - 1))
        domain.upcall_mask = True
        domain.timers.publish(domain.vcpu_info + 0x20, self.machine.clock.now_ns * TSC_HZ // 10**9)
        self.memory.store(
            self.shared_info + (0x900 if self.width == 32 else 0xC00), (2).to_bytes(4, "little")
        )

    def _hypercall_page_at(self, p2m: Sequence[int], gpa: int) -> None:
        """Write the 128 stubs at a pseudo-physical address; one outside the domain is ignored."""
        pfn = gpa // PAGE_SIZE
        if 0 <= pfn < len(p2m):
            self.memory.store(p2m[pfn] * PAGE_SIZE, hypercall_page(self.width))

    def _entry_state(self, plan: Plan) -> EntryState:
        flat = FLAT[self.width]
        long_mode = self.width == 64
        return EntryState(
            rip=plan.entry,
            long_mode=long_mode,
            registers={"rsi": plan.start_info, "rsp": plan.stack_top},
            rflags=fl.IF | 2,
            cr0=ENTRY_CR0,
            cr3=plan.p2m[plan.root_pfn] * PAGE_SIZE,
            cr4=ENTRY_CR4,
            gdt=(self.hole.gdt, GDT_PAGES * PAGE_SIZE - 1),
            code=FlatSegment(flat["kernel_cs"], attributes=0x00A0FB00 if long_mode else 0x00C0BB00),
            data=FlatSegment(flat["kernel_ss"], attributes=0x00C0F300 if long_mode else 0x00C0B300),
        )

    def entered(self) -> None:
        """NX for the guest's tables, the GDT's pages, and the word that says whether events may come."""
        state = self.machine.cpu.state
        state.efer |= fl.EFER_NXE | (fl.EFER_SCE if self.width == 64 else 0)
        if self.width == 64:
            for index in (fl.DS, fl.ES, fl.FS, fl.GS):
                segment = state.segments[index]
                segment.selector = 0
        self.map_descriptor_tables()
        self.watch_mask()

    def watch_mask(self) -> None:
        """Interrupts are accepted while vcpu_info.upcall_mask (second byte of the structure) is 0."""
        machine = self.machine
        machine.cpu.set_interrupt_window(machine.memory.host_address + self.domain.vcpu_info, 0x100, 0x100)

    def map_descriptor_tables(self) -> None:
        """Map the guest's descriptor pages and Xen's own behind them; point LDTR at the guest's LDT."""
        domain, cpu = self.domain, self.machine.cpu
        flags = 0x63
        for page in range(GDT_PAGES):
            mfn = self.gdt_frame if page >= FIRST_RESERVED_GDT_PAGE else None
            if page < len(domain.gdt_frames):
                mfn = domain.gdt_frames[page]
            entry = mfn << 12 | flags if mfn is not None else 0
            self.memory.store(self.hole.gdt_table + page * 8, entry.to_bytes(8, "little"))
        cpu.state.gdt.base, cpu.state.gdt.limit = self.hole.gdt, GDT_PAGES * PAGE_SIZE - 1
        cpu.state.ldt.base = domain.ldt_base
        cpu.state.ldt.limit = max(0, domain.ldt_entries * 8 - 1)
        cpu.state.ldt.flags = 0x8200 if domain.ldt_entries else 0
        cpu.flush_tlb()

    def _root(self) -> int:
        domain = self.domain
        return domain.kernel_root if domain.kernel_mode or self.width == 32 else domain.user_root

    # -- events --------------------------------------------------------------------------------

    def _notify(self, port: int) -> None:
        self.domain.events.set_pending(port)
        self._tell_cpu()

    def _timer_fired(self) -> None:
        self.domain.events.raise_virq(0)
        self._tell_cpu()

    def _tell_cpu(self) -> None:
        self.machine.cpu.set_waiting(self.interrupt_waiting())

    def interrupt_waiting(self) -> bool:
        """An unmasked port is pending, or a port that the guest polls."""
        domain = self.domain
        if domain.upcall_pending:
            return True
        return domain.blocked and any(domain.events.pending(port) for port in domain.poll_ports)

    def deliver_interrupt(self) -> None:
        """The event upcall."""
        self._guarded(self.traps.event)

    def console_input(self, data: bytes) -> None:
        """Bytes typed at the guest's console."""
        self.ring.type(data)

    def _sleep(self) -> None:
        """The guest blocked: time passes until something wakes it."""
        domain = self.domain
        domain.timers.enter("blocked")
        while domain.blocked and not self.interrupt_waiting():
            if not self.machine.pass_time():
                break
        domain.blocked, domain.poll_ports = False, ()
        domain.timers.enter("running")

    # -- hypercalls ----------------------------------------------------------------------------

    def on_syscall(self) -> bool:
        """pv64: from the kernel a hypercall, from user mode a system call for the guest's kernel."""
        if self.width != 64:
            return False
        state = self.machine.cpu.state
        if not self.domain.kernel_mode:
            state.rip += SYSCALL_LENGTH
            self._guarded(self.traps.syscall)
            state.rip -= SYSCALL_LENGTH
            return True
        gpr = state.gpr
        number = int(gpr[fl.RAX]) & 0xFFFFFFFF
        self._count(number)
        if number == IRET:
            self._guarded(self.traps.iret)
            state.rip -= SYSCALL_LENGTH
        else:
            arguments = [int(gpr[i]) for i in (fl.RDI, fl.RSI, fl.RDX, 10, 8, 9)]
            flags = self.machine.cpu.rflags
            gpr[fl.RAX] = self._hypercall(number, arguments) & (1 << 64) - 1
            gpr[fl.RCX], gpr[11] = state.rip + SYSCALL_LENGTH, flags
        self._after()
        return True

    def _hypercall32(self) -> None:
        gpr = self.machine.cpu.state.gpr
        number = int(gpr[fl.RAX]) & 0xFFFFFFFF
        self._count(number)
        if number == IRET:
            self._guarded(self.traps.iret)
        else:
            registers = (fl.RBX, fl.RCX, fl.RDX, fl.RSI, fl.RDI, fl.RBP)
            arguments = [int(gpr[i]) & 0xFFFFFFFF for i in registers]
            gpr[fl.RAX] = self._hypercall(number, arguments) & 0xFFFFFFFF
        self._after()

    def _hypercall(self, number: int, arguments: Sequence[int]) -> int:
        result = -int(ERRNO.ENOSYS)

        def run() -> None:
            nonlocal result
            result = call(self.domain, number, arguments)

        self._guarded(run)
        return result

    def _count(self, number: int) -> None:
        name = HYPERCALLS.get(number, f"unknown {number}")
        self.machine.stats.exits[f"hypercall {name}"] += 1
        self.machine.trace("hypercall", number=number, name=name, rip=self.machine.cpu.state.rip)
        self.machine.clock.spend_ns(HYPERCALL_COST_NS)

    def _after(self) -> None:
        """What a hypercall may have left to do: shut down, sleep, a moved vcpu_info, console text."""
        domain = self.domain
        if domain.console_output:
            self.machine.console.write(bytes(domain.console_output))
            domain.console_output.clear()
        if domain.shutdown:
            self._shut_down(domain.shutdown)
        elif domain.blocked:
            self._sleep()
        self.watch_mask()
        self._tell_cpu()

    def _shut_down(self, reason: str) -> None:
        machine = self.machine
        if reason == "reboot":
            machine.reset("SCHEDOP_shutdown: reboot")
        elif reason == "crash":
            machine.crash("the guest shut itself down with reason crash")
        else:
            machine.power_off(f"SCHEDOP_shutdown: {reason}")

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
        except DomainCrashError as crash:
            self.machine.crash(f"Xen crashed the domain: {crash}")

    # -- traps ---------------------------------------------------------------------------------

    def on_event(self, event: Event) -> bool:
        """Every exception and INT n of the guest: answered by Xen, or bounced to the guest's handler."""
        if event.software:
            self._guarded(lambda: self._software(event.vector))
        elif not self._answered(event):
            self._guarded(
                lambda: self.traps.exception(event.vector, self._error_code(event), event.pushes_error_code)
            )
        self._tell_cpu()
        return True

    def _software(self, vector: int) -> None:
        if self.width == 32 and vector == PV32_VECTOR and self.machine.cpu.cpl == 1:
            self._hypercall32()
            return
        if not self.traps.software(vector):
            self.machine.cpu.state.rip -= 2
            self.traps.exception(fl.GP, vector << 3 | 2, True)

    def _answered(self, event: Event) -> bool:
        if event.vector == fl.PAGE_FAULT:
            return self._page_fault(event.error_code)
        if event.vector == fl.GP and event.error_code == 0 and self.traps.in_kernel:
            return self.emulator.privileged()
        if event.vector == fl.UD:
            return self._forced_cpuid()
        if event.vector == fl.NM:
            self.domain.cpu.set_task_switched(False)
        return False

    def _page_fault(self, error_code: int) -> bool:
        """A write to a read-only page table, a stale translation, or the guest's own fault."""
        address = int(self.machine.cpu.state.cr[2])
        if self.traps.in_kernel and error_code & 3 == 3 and self.page_writes.emulate(address):
            return True
        found = self.domain.tables.walk(self._root(), address)
        if (
            found is not None
            and found.user
            and not error_code & 16
            and (found.writable or not error_code & 2)
            and self._last_spurious != (address, self.machine.clock.now_ns)
        ):
            self._last_spurious = (address, self.machine.clock.now_ns)
            self.machine.cpu.flush_tlb()
            return True
        self.domain.set_cr2(address)
        return False

    _last_spurious = (0, -1)

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
        return pv_cpuid(leaf, subleaf, bare, self.domain.timers, self.width)

    def counters(self) -> dict[str, int]:
        """Deliveries and emulated instructions by kind."""
        own = {f"delivered {name}": count for name, count in self.traps.delivered.items()}
        own.update({f"emulated {name}": count for name, count in self.emulator.counts.items()})
        own["emulated page-table write"] = self.page_writes.count
        own["frames in use as tables"] = sum(
            int((self.frames.kind == kind).sum()) for kind in range(PageType.L1, PageType.L4 + 1)
        )
        return own


def hypercall_page(width: int) -> bytes:
    """128 stubs of 32 bytes (docs/guest-guide/x86/hypercall-abi.rst); `iret` is jumped to."""
    page = bytearray(b"\xcc" * PAGE_SIZE)
    for number in range(PAGE_SIZE // 32):
        n32 = number.to_bytes(4, "little")
        if width == 64:
            code = b"\x51\x41\x53\xb8" + n32 + b"\x0f\x05\x41\x5b\x59\xc3"
            if number == IRET:
                code = b"\x51\x41\x53\x50\xb8" + n32 + b"\x0f\x05"
        else:
            code = b"\xb8" + n32 + b"\xcd\x82\xc3"
            if number == IRET:
                code = b"\x50\xb8" + n32 + b"\xcd\x82"
        page[number * 32 : number * 32 + len(code)] = code
    return bytes(page)
