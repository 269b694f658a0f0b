"""Domains without a CPU: the real builder over real memory, for tests of the rules alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from runtime.backends.xen.construction import Construction, Wiring, hidden_frames
from runtime.backends.xen.domain import Domain
from runtime.backends.xen.frames import DOMAIN, PageType
from runtime.backends.xen.grants import DEVICE_MAP
from runtime.backends.xen.layout import PAGE_SIZE
from runtime.backends.xen.paging import FRAME_MASK, PRESENT, SHIFT, WRITE
from runtime.boot.model import BootImage, BootKind, BootRequest, BootSegment
from runtime.memory import GuestMemory
from tests.devices.board import ManualClock

VIRT_BASE = {32: 0xC0000000, 64: 0xFFFFFFFF80000000}
MEMORY_MIB = 8


@dataclass
class RecordingCpu:
    """What hypercalls asked of the CPU."""

    roots: list[int] = field(default_factory=list)
    flushes: int = 0
    task_switched: bool = False
    breakpoints: tuple[int, ...] = ()
    bases: dict[str, int] = field(default_factory=dict)

    def set_page_table(self, root: int) -> None:
        self.roots.append(root)

    def flush(self, address: int | None = None) -> None:
        self.flushes += 1

    def set_task_switched(self, value: bool) -> None:
        self.task_switched = value

    def set_segment_base(self, register: str, base: int) -> None:
        self.bases[register] = base

    def set_breakpoints(self, registers: Sequence[int]) -> None:
        self.breakpoints = tuple(registers)

    def reload_tables(self) -> None:
        self.flushes += 1


def image_for(width: int, code: bytes = b"\xeb\xfe", notes: dict[str, int] | None = None) -> BootImage:
    """A kernel of one page with Xen's notes."""
    base = VIRT_BASE[width]
    values = {"ENTRY": base, "VIRT_BASE": base, "PADDR_OFFSET": base}
    return BootImage(
        name="tiny",
        kind=BootKind.XEN_PV,
        width=width,
        segments=(BootSegment(base, base, code, max(len(code), 0x4000)),),
        entries={BootKind.XEN_PV: base},
        xen=values | (notes or {}),
    )


def make_domain(width: int, memory_mib: int = MEMORY_MIB) -> tuple[Domain, Construction]:
    """A built domain and its parts; the clock is `domain.timers.clock` (a ManualClock)."""
    size = memory_mib << 20
    machine: Any = SimpleNamespace(
        memory=GuestMemory(size, hidden_frames(size // PAGE_SIZE)[1] * PAGE_SIZE),
        clock=ManualClock(),
        image=image_for(width),
        config=SimpleNamespace(request=BootRequest(cmdline="test")),
        console=SimpleNamespace(output=bytearray()),
        trace=lambda kind, **values: None,
    )
    machine.console.write = machine.console.output.extend
    parts = Construction(machine, width, Wiring(RecordingCpu(), lambda: parts.domain.wake()))
    parts.domain.timers.fired = parts.domain.timer_fired
    return parts.domain, parts


def heap_address(parts: Construction, offset: int = 0) -> int:
    """A guest virtual address of writable memory that the kernel does not use: behind the boot stack."""
    return parts.plan.stack_top + PAGE_SIZE + offset


def mfn_at(domain: Domain, address: int) -> int:
    found = domain.tables.walk(domain.kernel_root, address)
    assert found is not None
    return found.address >> 12


def expected_counts(domain: Domain) -> tuple[Counter[int], Counter[int]]:
    """References and type references per frame, counted anew from what the domain holds."""
    frames = domain.frames
    references: Counter[int] = Counter()
    types: Counter[int] = Counter()

    def hold(mfn: int) -> None:
        references[mfn] += 1
        types[mfn] += 1

    for mfn in range(frames.frames):
        if frames.owner[mfn] != DOMAIN:
            continue
        references[mfn] += 0 if frames.released[mfn] else 1
        if frames.pinned[mfn]:
            hold(mfn)
        kind = int(frames.kind[mfn])
        if not frames.type_count[mfn] or not PageType.L1 <= kind <= PageType.L4:
            continue
        _count_entries(domain, mfn, kind, references, types)
    held = [domain.kernel_root, domain.user_root, *domain.gdt_frames, *domain.ldt_frames.values()]
    for mfn in held:
        if mfn:
            hold(mfn)
    for mapping in domain.grants.mappings.values():
        if mapping.flags & DEVICE_MAP:
            references[mapping.mfn] += 1
            types[mapping.mfn] += not mapping.read_only
    for mfn in domain.events.fifo.held if domain.events.fifo else ():
        hold(mfn)
    if domain.events.vcpu_info != domain.shared_info:
        hold(domain.events.vcpu_info >> 12)
    return references, types


def _count_entries(
    domain: Domain, table: int, kind: int, references: Counter[int], types: Counter[int]
) -> None:
    count = 4 if kind == PageType.L3 and domain.width == 32 else 512
    for index in range(count):
        entry = int(domain.memory.entries(table)[index])
        target = (entry & FRAME_MASK) >> 12
        if not entry & PRESENT or not domain.frames.owned(target):
            continue
        if kind == PageType.L1:
            references[target] += 1
            types[target] += bool(entry & WRITE)
        elif target != table:
            references[target] += 1
            types[target] += 1


def check_counts(domain: Domain) -> None:
    """Every count is what it should be, and no table can be written by the guest."""
    frames = domain.frames
    references, types = expected_counts(domain)
    for mfn in range(frames.frames):
        if frames.owner[mfn] != DOMAIN:
            continue
        assert frames.references[mfn] == references[mfn], f"references of {mfn:#x}"
        assert frames.type_count[mfn] == types[mfn], f"type count of {mfn:#x}"
        assert bool(frames.kind[mfn]) == bool(types[mfn]), f"type of {mfn:#x}"
    for mfn in range(frames.frames):
        if frames.owner[mfn] == DOMAIN and frames.kind[mfn] == PageType.L1 and frames.type_count[mfn]:
            for entry in domain.memory.entries(mfn):
                if int(entry) & PRESENT and int(entry) & WRITE:
                    target = (int(entry) & FRAME_MASK) >> 12
                    assert frames.is_shared(target) or frames.kind[target] == PageType.WRITABLE


def l1_entry_address(domain: Domain, address: int) -> int:
    found = domain.tables.leaf_entry(domain.kernel_root, address)
    assert found is not None
    return found


def table_at(domain: Domain, address: int, level: int) -> int:
    """The frame of the table of `level` that maps an address."""
    table = domain.kernel_root
    for above in range(domain.tables.top_level, level, -1):
        index = address >> SHIFT[above] & (3 if above == 3 and domain.width == 32 else 511)
        table = (int(domain.memory.entries(table)[index]) & FRAME_MASK) >> 12
    return table
