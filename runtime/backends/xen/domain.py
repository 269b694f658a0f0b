"""One paravirtual domain's state: what the hypercalls change and the deliveries read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from runtime.backends.xen.events import EventChannels
from runtime.backends.xen.frames import FrameTable, PageType, PhysicalMemory, XenError
from runtime.backends.xen.grants import GrantTable
from runtime.backends.xen.guestspace import GuestSpace
from runtime.backends.xen.layout import PAGE_SIZE, struct
from runtime.backends.xen.paging import PageTables
from runtime.backends.xen.timers import Timers
from runtime.devices.rtc import DEFAULT_EPOCH
from runtime.ports import AlarmHandle

__all__ = ["FIRST_RESERVED_GDT_ENTRY", "Callback", "Cpu", "Domain", "PhysicalInterrupt", "Trap"]

FIRST_RESERVED_GDT_PAGE = 14
FIRST_RESERVED_GDT_ENTRY = FIRST_RESERVED_GDT_PAGE * 512
VIRQ_TIMER = 0
WORK_LIMIT = 2048


class Cpu(Protocol):
    """What the model asks of the emulated CPU."""

    def set_page_table(self, root: int) -> None: ...
    def flush(self, address: int | None = None) -> None: ...
    def set_task_switched(self, value: bool) -> None: ...
    def set_segment_base(self, register: str, base: int) -> None: ...
    def reload_tables(self) -> None: ...
    def set_breakpoints(self, registers: Sequence[int]) -> None: ...


class PhysicalInterrupt(Protocol):
    """A line that was given to the domain, as physical interrupt 0."""

    def bind(self, port: int) -> None:
        """From now on it raises this port."""

    def end(self) -> None:
        """The guest has dealt with it."""


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
    log: Callable[[str], None]
    """Where Xen's own console messages about this domain go."""

    translated: bool = False
    """Frames are guest-physical and Xen walks the guest's tables: no direct paging, a fixed reservation."""
    physical_interrupt: PhysicalInterrupt | None = None
    """The one physical interrupt that the domain was given, if any."""

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
    ldt_frames: dict[int, int] = field(default_factory=dict)
    """Pages of the LDT that Xen has mapped and checked: page number to machine frame."""
    debug_registers: list[int] = field(default_factory=lambda: [0, 0, 0, 0, 0, 0, 0xFFFF0FF0, 0x400])
    vm_assist: int = 0
    iopl: int = 0
    nmi_pending: bool = False
    virtual_cr0: int = 0x80050033
    virtual_cr4: int = 0x2660
    fs_base: int = 0
    gs_kernel: int = 0
    gs_user: int = 0
    blocked: bool = False
    shutdown: str = ""
    runstate_area: int = 0
    """Guest virtual address where the run state is kept up to date, 0: none."""
    time_area: int = 0
    """The same for vcpu_time_info, which user mode may map."""
    work_done: int = 0
    """Units of work of the current hypercall: list elements, pages."""
    _poll_alarm: AlarmHandle | None = None

    def __post_init__(self) -> None:
        self._vcpu_offsets = struct("vcpu_info", self.width).offsets

    # -- bounded work ------------------------------------------------------------------------

    def work(self, units: int = 1) -> None:
        """Count work done for the current hypercall."""
        self.work_done += units

    @property
    def exhausted(self) -> bool:
        """Has the current hypercall done its share (hypercall_preempt_check)?"""
        return self.work_done >= WORK_LIMIT

    # -- the shared page ---------------------------------------------------------------------

    @property
    def vcpu_info(self) -> int:
        """Machine address of this vcpu's vcpu_info."""
        return self.events.vcpu_info

    def _byte(self, name: str) -> int:
        return self.events.vcpu_info + self._vcpu_offsets[name]

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

    @property
    def cr2(self) -> int:
        """Where the guest faulted last (vcpu_info.arch.cr2)."""
        offset, size = struct("vcpu_info", self.width).place("cr2")
        return int.from_bytes(self.memory.load(self.vcpu_info + offset, size), "little")

    @cr2.setter
    def cr2(self, address: int) -> None:
        offset, size = struct("vcpu_info", self.width).place("cr2")
        self.memory.store(self.vcpu_info + offset, (address & (1 << 8 * size) - 1).to_bytes(size, "little"))

    def publish_time(self) -> None:
        """Write vcpu_time_info where the guest reads it (update_vcpu_system_time)."""
        offset, _ = struct("vcpu_info", self.width).place("time")
        content = self.timers.time_info()
        self.memory.store(self.vcpu_info + offset, content)
        if self.time_area:
            self._keep_up_to_date(self.time_area, content)

    def set_wallclock(self) -> None:
        """Seconds since 1970 at system time 0, under an even version number."""
        layout = struct("shared_info", self.width)
        epoch = int(DEFAULT_EPOCH.timestamp())
        for name, value in (("wc_sec", epoch & 0xFFFFFFFF), ("wc_sec_hi", epoch >> 32), ("wc_version", 2)):
            self.memory.store(self.shared_info + layout.offsets[name], value.to_bytes(4, "little"))

    def publish_runstate(self) -> None:
        """Write the run state where the guest asked for it."""
        if self.runstate_area:
            self._keep_up_to_date(self.runstate_area, self.timers.runstate(self.width))

    def _keep_up_to_date(self, address: int, data: bytes) -> None:
        """Write to an area of the guest's; one that it has unmapped meanwhile is passed over."""
        try:
            self.space.write(address, data)
        except XenError as error:
            self.log(str(error))

    # -- sleep -------------------------------------------------------------------------------

    def sleep(self, ports: tuple[int, ...] = (), until_ns: int | None = None) -> None:
        """Block until an event, one of `ports`, or a time."""
        self.blocked, self.events.polled = True, ports
        if until_ns is not None:
            self._poll_alarm = self.timers.schedule(until_ns, self.wake)

    def wake(self) -> None:
        """Go on after `sleep`; harmless for a vcpu that runs."""
        self.blocked, self.events.polled = False, ()
        if self._poll_alarm is not None:
            self.timers.clock.cancel(self._poll_alarm)
            self._poll_alarm = None

    def timer_fired(self) -> None:
        """A timer of the vcpu is due."""
        self.events.raise_virq(VIRQ_TIMER)

    # -- frames ------------------------------------------------------------------------------

    def set_pfn_of(self, mfn: int, pfn: int) -> None:
        """Update the M2P table."""
        size = self.width // 8
        self.memory.store(self.m2p + mfn * size, (pfn & ((1 << self.width) - 1)).to_bytes(size, "little"))

    @property
    def current_pages(self) -> int:
        """Frames that the domain owns."""
        return self.frames.owned_count()

    # -- descriptor tables ---------------------------------------------------------------------

    def descriptor_base(self, selector: int) -> int:
        """The base of the data segment that a selector names in the guest's GDT; 0 for none."""
        index = selector >> 3
        if selector & 4 or index >= self.gdt_entries:
            return 0
        frame, slot = divmod(index, 512)
        raw = int.from_bytes(self.memory.load(self.gdt_frames[frame] * PAGE_SIZE + slot * 8, 8), "little")
        return raw >> 16 & 0xFFFFFF | raw >> 56 << 24

    def drop_ldt(self) -> None:
        """Forget the mapped pages of the LDT; they are checked again when next used."""
        if not self.ldt_frames:
            return
        for mfn in self.ldt_frames.values():
            self.tables.put_type(mfn)
        self.ldt_frames.clear()
        self.cpu.reload_tables()

    def map_ldt_page(self, page: int) -> bool:
        """Have the CPU see one page of the guest's LDT (pv_map_ldt_shadow_page): False where the guest maps
        nothing there or its descriptors are not to be had."""
        if page in self.ldt_frames or page * 512 >= self.ldt_entries:
            return False
        found = self.tables.walk(self.space.root(), self.ldt_base + page * PAGE_SIZE)
        if found is None:
            return False
        mfn = found.address >> 12
        try:
            self.tables.get_type(mfn, PageType.SEGMENT)
        except XenError as error:
            self.log(str(error))
            return False
        self.ldt_frames[page] = mfn
        self.cpu.reload_tables()
        return True
