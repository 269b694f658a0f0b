"""One paravirtual domain's state: what the hypercalls change and the deliveries read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from runtime.backends.xen.events import EventChannels
from runtime.backends.xen.frames import FrameTable, PhysicalMemory
from runtime.backends.xen.grants import GrantTable
from runtime.backends.xen.guestspace import GuestSpace
from runtime.backends.xen.layout import PAGE_SIZE, struct
from runtime.backends.xen.paging import PageTables
from runtime.backends.xen.timers import Timers

__all__ = ["FIRST_RESERVED_GDT_ENTRY", "Callback", "Cpu", "Domain", "Trap"]

FIRST_RESERVED_GDT_PAGE = 14
FIRST_RESERVED_GDT_ENTRY = FIRST_RESERVED_GDT_PAGE * 512


class Cpu(Protocol):
    """What the model asks of the emulated CPU."""

    def set_page_table(self, root: int) -> None: ...
    def flush(self, address: int | None = None) -> None: ...
    def set_task_switched(self, value: bool) -> None: ...
    def set_segment_base(self, register: str, base: int) -> None: ...
    def reload_tables(self) -> None: ...


@dataclass
class Trap:
    """An entry of the virtual trap table (struct trap_info)."""

    dpl: int = 0
    mask_events: bool = False
    cs: int = 0
    address: int = 0


@dataclass
class Callback:
    """A registered entry point: selector (pv32 only), address, and whether it masks events."""

    cs: int = 0
    address: int = 0
    mask_events: bool = False


@dataclass
class Domain:
    """The domain and its one vcpu. Frame numbers are machine frames, times are ns of system time."""

    width: int
    domid: int
    memory: PhysicalMemory
    frames: FrameTable
    tables: PageTables
    space: GuestSpace
    events: EventChannels
    grants: GrantTable
    timers: Timers
    cpu: Cpu
    shared_info: int
    hole: tuple[int, int]
    m2p: int
    """Machine address of the machine-to-phys table (entries of 4 or 8 bytes)."""
    max_pages: int
    privileged_console: bool = False

    kernel_root: int = 0
    user_root: int = 0
    kernel_mode: bool = True
    traps: dict[int, Trap] = field(default_factory=dict)
    callbacks: dict[str, Callback] = field(default_factory=dict)
    kernel_ss: int = 0
    kernel_sp: int = 0
    gdt_frames: list[int] = field(default_factory=list)
    gdt_entries: int = 0
    ldt_base: int = 0
    ldt_entries: int = 0
    debug_registers: list[int] = field(default_factory=lambda: [0, 0, 0, 0, 0, 0, 0xFFFF0FF0, 0x400])
    vm_assist: int = 0
    iopl: int = 0
    nmi_address: int = 0
    nmi_cs: int = 0
    virtual_cr0: int = 0x8005003B
    virtual_cr4: int = 0x2660
    fs_base: int = 0
    gs_kernel: int = 0
    gs_user: int = 0
    blocked: bool = False
    poll_ports: tuple[int, ...] = ()
    shutdown: str = ""
    runstate_area: int = 0
    """Guest virtual address where the run state is kept up to date, 0: none."""
    console_output: bytearray = field(default_factory=bytearray)
    log: Callable[[str], None] = lambda _text: None
    """Where Xen's own console messages about this domain go."""

    # -- the shared page ---------------------------------------------------------------------

    @property
    def vcpu_info(self) -> int:
        """Machine address of this vcpu's vcpu_info."""
        return self.events.vcpu_info

    def _byte(self, name: str) -> int:
        return self.vcpu_info + struct("vcpu_info", self.width).offsets[name]

    @property
    def upcall_mask(self) -> bool:
        """Are event upcalls blocked? (The sense is the opposite of the interrupt flag's.)"""
        return self.memory.load(self._byte("upcall_mask"), 1) != b"\0"

    @upcall_mask.setter
    def upcall_mask(self, value: bool) -> None:
        self.memory.store(self._byte("upcall_mask"), b"\1" if value else b"\0")

    @property
    def upcall_pending(self) -> bool:
        """Has an unmasked port become pending?"""
        return self.memory.load(self._byte("upcall_pending"), 1) != b"\0"

    def set_cr2(self, address: int) -> None:
        """Tell the guest where it faulted (vcpu_info.arch.cr2)."""
        offset, size = struct("vcpu_info", self.width).place("cr2")
        self.memory.store(self.vcpu_info + offset, address.to_bytes(size, "little"))

    def pfn_of(self, mfn: int) -> int:
        """Machine frame -> pseudo-physical frame (the M2P table)."""
        size = self.width // 8
        return int.from_bytes(self.memory.load(self.m2p + mfn * size, size), "little")

    def set_pfn_of(self, mfn: int, pfn: int) -> None:
        """Update the M2P table."""
        size = self.width // 8
        self.memory.store(self.m2p + mfn * size, (pfn & ((1 << self.width) - 1)).to_bytes(size, "little"))

    def descriptor_base(self, selector: int) -> int:
        """The base of the data segment that a selector names in the guest's GDT; 0 for none."""
        index = selector >> 3
        if selector & 4 or index >= self.gdt_entries:
            return 0
        frame, slot = divmod(index, 512)
        raw = int.from_bytes(self.memory.load(self.gdt_frames[frame] * PAGE_SIZE + slot * 8, 8), "little")
        return raw >> 16 & 0xFFFFFF | raw >> 56 << 24

    @property
    def current_pages(self) -> int:
        """Frames that the domain owns."""
        return self.frames.owned_count()

    def page_address(self, mfn: int) -> int:
        """Machine address of a frame."""
        return mfn * PAGE_SIZE
