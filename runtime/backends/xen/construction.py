"""Start of day: machine memory divided between the domain and Xen, and the domain's parts put together.

What Xen itself does before a domain first runs (arch/x86/domain.c, pv/domain.c) and what the toolstack asks
of it; placing the kernel and its pages is `builder`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pvpatch.abi.errors import ImageError
from runtime.backends.xen.builder import Plan, build
from runtime.backends.xen.console import ConsoleRing
from runtime.backends.xen.domain import FIRST_RESERVED_GDT_PAGE, Cpu, Domain
from runtime.backends.xen.events import Channel, EventChannels
from runtime.backends.xen.frames import DOMAIN, XEN, FrameTable, PageType
from runtime.backends.xen.grants import PERMIT_ACCESS, GrantTable
from runtime.backends.xen.guestspace import GuestSpace
from runtime.backends.xen.layout import PAGE_SIZE, numbers
from runtime.backends.xen.machine_memory import HOLE_TABLES, Hole, MachineMemory, build_hole
from runtime.backends.xen.paging import HoleEntries, PageTables
from runtime.backends.xen.selectors import FLAT
from runtime.backends.xen.store import Store
from runtime.backends.xen.timers import Timers

if TYPE_CHECKING:
    from runtime.machine import Machine

__all__ = ["DOMID", "TSC_HZ", "XEN_GDT", "Construction", "Wiring", "hidden_frames", "hypercall_page"]

HEAP_FRAMES = 1024
DOMID = 1
TSC_HZ = 2_000_000_000
IRET = numbers("hypercall")["iret"]
INVALID_PFN = (1 << 64) - 1
FLAT_CODE, FLAT_DATA = 0x00CF_9B00_0000_FFFF, 0x00CF_9300_0000_FFFF
LONG_CODE = 0x00AF_9B00_0000_FFFF
DPL1, DPL3 = 1 << 45, 3 << 45
XEN_GDT = {
    64: {0xE020: FLAT_CODE | DPL3, 0xE028: FLAT_DATA | DPL3, 0xE030: LONG_CODE | DPL3},
    32: {
        0xE018: FLAT_CODE | DPL1,
        0xE020: FLAT_DATA | DPL1,
        0xE028: FLAT_CODE | DPL3,
        0xE030: FLAT_DATA | DPL3,
    },
}
"""The flat segments in Xen's part of the GDT (include/public/arch-x86/xen-x86_{32,64}.h)."""


def hidden_frames(ram_frames: int) -> tuple[int, int]:
    """(frames of the M2P table, all hidden frames) for a machine with that much RAM."""
    m2p = -(-(ram_frames + HEAP_FRAMES + 8192) * 8 // PAGE_SIZE)
    return m2p, m2p + _hole_frames(m2p) + HEAP_FRAMES


def _hole_frames(m2p_frames: int) -> int:
    return HOLE_TABLES + -(-m2p_frames // 512)


@dataclass(frozen=True)
class Wiring:
    """What the domain's parts call back: the hypervisor that runs it."""

    cpu: Cpu
    event_pending: Callable[[], None]


class Construction:
    """A domain made of a machine and an image; raises ImageError where the image is not one for Xen."""

    def __init__(self, machine: Machine, width: int, wiring: Wiring) -> None:
        self.machine = machine
        self.width = width
        self.memory = MachineMemory(machine.memory.whole)
        self.ram_frames = machine.memory.size // PAGE_SIZE
        self.frames = FrameTable(self.memory, self.memory.frames)
        self.hole = self._lay_out()
        self.gdt_frame = self.frames.allocate(XEN)
        self.shared_info = self.frames.allocate(XEN) * PAGE_SIZE
        self.frames.share(self.shared_info // PAGE_SIZE)
        for selector, descriptor in XEN_GDT[width].items():
            offset = selector - FIRST_RESERVED_GDT_PAGE * PAGE_SIZE
            self.memory.store(self.gdt_frame * PAGE_SIZE + offset, descriptor.to_bytes(8, "little"))
        self.domain = self._domain(wiring)
        self.store = Store(self.memory, DOMID)
        self.ring = ConsoleRing(self.memory, machine.console.write)
        self.plan = self._build()

    def _lay_out(self) -> Hole:
        """The domain's frames first, in an order of Xen's own; then Xen's: M2P, page tables, heap."""
        m2p_frames, _ = hidden_frames(self.ram_frames)
        m2p = self.ram_frames
        heap = m2p + m2p_frames + _hole_frames(m2p_frames)
        self.frames.columns.owner[m2p:heap] = XEN
        self.frames.stock(list(range(self.memory.frames - 1, heap - 1, -1)))
        return build_hole(self.memory, self.width, m2p + m2p_frames, m2p, m2p_frames)

    def _domain(self, wiring: Wiring) -> Domain:
        machine, memory, frames = self.machine, self.memory, self.frames
        tables = PageTables(frames, self.width, HoleEntries(self.hole.slot, self.hole.values))
        space = GuestSpace(memory, tables, self._root, self.hole.extent)
        domain = Domain(
            width=self.width,
            domid=DOMID,
            memory=memory,
            frames=frames,
            tables=tables,
            space=space,
            events=EventChannels(memory, frames, self.shared_info, self.width, DOMID, wiring.event_pending),
            grants=GrantTable(frames),
            timers=Timers(machine.clock, TSC_HZ),
            cpu=wiring.cpu,
            shared_info=self.shared_info,
            hole=self.hole.extent,
            m2p=self.hole.m2p,
            max_pages=self.ram_frames,
            log=lambda text: machine.trace("xen", text=text),
        )
        tables.on_descriptors_unmapped = domain.drop_ldt
        tables.flush = wiring.cpu.flush

        def freed(mfn: int) -> None:
            tables.settle()
            domain.set_pfn_of(mfn, INVALID_PFN)

        frames.on_free = freed
        return domain

    def _root(self) -> int:
        domain = self.domain
        return domain.kernel_root if domain.kernel_mode or self.width == 32 else domain.user_root

    def _build(self) -> Plan:
        domain, frames = self.domain, self.frames
        p2m = list(range(self.ram_frames - 1, -1, -1))  # its own inverse: the M2P table reads the same
        frames.give_first(self.ram_frames, DOMAIN)
        self.memory.store(self.hole.m2p, np.array(p2m, f"<u{self.width // 8}").tobytes())
        store_port = domain.events.allocate(Channel("interdomain", listener=self.store.serve))
        console_port = domain.events.allocate(Channel("interdomain", listener=self.ring.serve))
        fixed = {
            "shared_info": self.shared_info,
            "store_evtchn": store_port,
            "console_evtchn": console_port,
        }
        machine = self.machine
        plan = build(self.memory, machine.image, machine.config.request, p2m, self.width, fixed)
        self.store.connect(p2m[plan.store_pfn] * PAGE_SIZE, lambda: domain.events.notify(store_port))
        self.ring.connect(p2m[plan.console_pfn] * PAGE_SIZE, lambda: domain.events.notify(console_port))
        domain.grants.grow(1)
        for reference, pfn in enumerate((plan.console_pfn, plan.store_pfn)):
            domain.grants.write_v1(reference, PERMIT_ACCESS, 0, p2m[pfn])
        self._fill_store(p2m[plan.console_pfn], console_port, len(p2m) * PAGE_SIZE >> 10)
        self._finish(plan)
        return plan

    def _fill_store(self, console_mfn: int, console_port: int, kib: int) -> None:
        """The paths that the toolstack writes for a domain without devices."""
        home = self.store.home
        for path, value in (
            ("domid", str(DOMID)),
            ("name", "guest"),
            ("vm", "/vm/guest"),
            ("memory/target", str(kib)),
            ("memory/static-max", str(kib)),
            ("cpu/0/availability", "online"),
            ("console/type", "xenconsoled"),
            ("console/ring-ref", str(console_mfn)),
            ("console/port", str(console_port)),
            ("control/platform-feature-multiprocessor-suspend", "1"),
            ("control/platform-feature-xs_reset_watches", "1"),
            ("control/shutdown", ""),
            ("control/feature-poweroff", ""),
            ("control/feature-reboot", ""),
            ("control/feature-suspend", ""),
            ("control/sysrq", ""),
            ("device/suspend/event-channel", ""),
            ("data", ""),
            ("drivers", ""),
            ("feature", ""),
            ("attr", ""),
            ("error", ""),
        ):
            self.store.set(f"{home}/{path}", value.encode())

    def _finish(self, plan: Plan) -> None:
        """What the builder asks of Xen at the end: pin the tables, fill the pages that Xen fills."""
        domain = self.domain
        root = plan.p2m[plan.root_pfn]
        domain.tables.pin(root, domain.tables.top_level)
        domain.tables.get_root(root)
        domain.kernel_root = root
        domain.kernel_sp, domain.kernel_ss = plan.stack_top, FLAT[self.width]["kernel_ss"]
        page = plan.notes.hypercall_page
        if page is not None:
            pfn = ((page - plan.notes.virt_base) & ((1 << self.width) - 1)) // PAGE_SIZE
            if pfn >= len(plan.p2m) or not self.write_hypercall_page(plan.p2m[pfn]):
                raise ImageError(f"the hypercall page at {page:#x} is outside the domain's memory")
        domain.upcall_mask = True
        domain.timers.refresh(domain.publish_time)
        domain.set_wallclock()

    def write_hypercall_page(self, mfn: int) -> bool:
        """Write the 128 stubs into a frame of the domain; False for a frame that cannot be written."""
        if not self.frames.owned(mfn) or not self.frames.can_be(mfn, PageType.WRITABLE):
            return False
        self.memory.store(mfn * PAGE_SIZE, hypercall_page(self.width))
        return True


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
