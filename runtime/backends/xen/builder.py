"""Start of day: a kernel image becomes a domain, as the toolstack's domain builder does it.

Follows tools/libs/guest/xg_dom_{core,x86,elfloader}.c and xen/include/public/{xen.h,elfnote.h}: image,
initrd, P2M list, start_info, store page, console page, page tables, boot stack, in this order.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from pvpatch.abi.errors import ImageError
from runtime.backends.xen.layout import PAGE_SIZE, struct
from runtime.backends.xen.machine_memory import MachineMemory
from runtime.backends.xen.paging import PRESENT, SHIFT, USER, WRITE
from runtime.boot.model import BootImage, BootRequest

__all__ = ["Notes", "Plan", "build", "read_notes"]

ACCESSED, DIRTY = 0x20, 0x40
TABLE = PRESENT | WRITE | USER | ACCESSED | DIRTY
READ_ONLY_LEAF = PRESENT | ACCESSED
LEAF = READ_ONLY_LEAF | WRITE
PAD = 512 << 10
ROUND = 4 << 20
SIF_MOD_START_PFN = 8


@dataclass(frozen=True)
class Notes:
    """What an image says of itself to Xen; addresses are guest virtual ones."""

    entry: int
    virt_base: int = 0
    paddr_offset: int = 0
    hypercall_page: int | None = None
    init_p2m: int | None = None
    mod_start_pfn: bool = False


@dataclass
class Plan:
    """The built domain: where everything lies. Frames are pseudo-physical, addresses guest virtual."""

    notes: Notes
    p2m: list[int]
    """Pseudo-physical frame -> machine frame."""
    entry: int = 0
    start_info: int = 0
    store_pfn: int = 0
    console_pfn: int = 0
    root_pfn: int = 0
    page_tables: dict[tuple[int, int], int] = field(default_factory=dict)
    """The frame of every page table, by level and first address."""
    stack_top: int = 0


def read_notes(image: BootImage) -> Notes:
    """What the image asks for, with the toolstack's defaults. Raises ImageError where no entry is known."""

    def number(name: str) -> int | None:
        value = image.xen.get(name)
        return value if isinstance(value, int) else None

    entry = number("ENTRY")
    if entry is None:
        raise ImageError(
            "the image has no entry for Xen", "only Xen PV kernels start on Xen without patching"
        )
    return Notes(
        entry=entry,
        virt_base=number("VIRT_BASE") or 0,
        paddr_offset=number("PADDR_OFFSET") or 0,
        hypercall_page=number("HYPERCALL_PAGE"),
        init_p2m=number("INIT_P2M"),
        mod_start_pfn=bool(number("MOD_START_PFN")),
    )


class _Builder:
    """Places things one after the other in pseudo-physical memory."""

    def __init__(self, memory: MachineMemory, image: BootImage, p2m: list[int], width: int) -> None:
        self.memory = memory
        self.image = image
        self.width = width
        self.word = width // 8
        self.plan = Plan(read_notes(image), p2m)
        self.next_pfn = 0
        self.mask = (1 << width) - 1

    def virtual(self, pfn: int) -> int:
        """The virtual address that the initial tables give a frame."""
        return (pfn * PAGE_SIZE + self.plan.notes.virt_base) & self.mask

    def put(self, pseudo: int, data: bytes) -> None:
        """Write at a pseudo-physical address. Raises ImageError beyond the domain's memory."""
        done = 0
        while done < len(data):
            pfn, offset = divmod(pseudo + done, PAGE_SIZE)
            if pfn >= len(self.plan.p2m):
                raise ImageError("the kernel does not fit into the domain's memory", "give more --memory")
            here = min(len(data) - done, PAGE_SIZE - offset)
            self.memory.store(self.plan.p2m[pfn] * PAGE_SIZE + offset, data[done : done + here])
            done += here

    def pages(self, count: int) -> int:
        """The next `count` frames; the first one."""
        first = self.next_pfn
        self.next_pfn += count
        if self.next_pfn > len(self.plan.p2m):
            raise ImageError("the kernel does not fit into the domain's memory", "give more --memory")
        return first

    def load_kernel(self) -> None:
        """Segments by physical address, as the ELF loader of the toolstack does."""
        notes = self.plan.notes
        end = 0
        for segment in self.image.segments:
            pseudo = segment.paddr - notes.paddr_offset
            if pseudo < 0 or pseudo + segment.memsz > len(self.plan.p2m) * PAGE_SIZE:
                raise ImageError(
                    f"segment at {segment.paddr:#x} lies outside the domain's memory", "give more --memory"
                )
            self.put(pseudo, segment.data[: segment.memsz])
            end = max(end, pseudo + segment.memsz)
        self.next_pfn = -(-end // PAGE_SIZE)

    def blob(self, data: bytes) -> int:
        """Whole pages with this content; their first frame."""
        first = self.pages(-(-len(data) // PAGE_SIZE))
        self.put(first * PAGE_SIZE, data)
        return first


def build(
    memory: MachineMemory,
    image: BootImage,
    request: BootRequest,
    p2m: list[int],
    width: int,
    fixed: dict[str, int],
) -> Plan:
    """Build the domain in `memory`; `fixed` gives start_info fields that the hypervisor chose
    (shared_info, store_evtchn, console_evtchn). Raises ImageError when the image does not fit."""
    builder = _Builder(memory, image, p2m, width)
    plan, notes = builder.plan, builder.plan.notes
    builder.load_kernel()
    words = b"".join(mfn.to_bytes(builder.word, "little") for mfn in p2m)
    initrd_pfn = p2m_pfn = 0
    if request.initrd and not notes.mod_start_pfn:
        initrd_pfn = builder.blob(request.initrd)
    if notes.init_p2m is None:
        p2m_pfn = builder.blob(words)
    info_pfn, plan.store_pfn, plan.console_pfn = builder.pages(1), builder.pages(1), builder.pages(1)
    end = _page_tables(builder, len(words))
    builder.next_pfn = max(builder.next_pfn, end // PAGE_SIZE)
    if request.initrd and notes.mod_start_pfn:
        initrd_pfn = builder.blob(request.initrd)
    if notes.init_p2m is not None:
        p2m_pfn = builder.blob(words)
        _map(builder, notes.init_p2m, p2m_pfn, _pages(len(words)))
    plan.start_info = builder.virtual(info_pfn)
    plan.entry = notes.entry
    values = {
        "nr_pages": len(p2m),
        "store_mfn": p2m[plan.store_pfn],
        "console_mfn": p2m[plan.console_pfn],
        "pt_base": builder.virtual(plan.root_pfn),
        "nr_pt_frames": len(plan.page_tables),
        "mfn_list": notes.init_p2m if notes.init_p2m is not None else builder.virtual(p2m_pfn),
        **fixed,
    }
    if request.initrd:
        values["mod_start"] = initrd_pfn if notes.mod_start_pfn else builder.virtual(initrd_pfn)
        values["mod_len"] = len(request.initrd)
        values["flags"] = SIF_MOD_START_PFN if notes.mod_start_pfn else 0
    if notes.init_p2m is not None:
        values["first_p2m_pfn"], values["nr_p2m_frames"] = p2m_pfn, _pages(len(words))
    layout = struct("start_info", width)
    info = layout.pack(**values)
    info[:32] = f"xen-3.0-x86_{'64' if width == 64 else '32p'}".encode().ljust(32, b"\0")
    at, size = layout.place("cmd_line")
    info[at : at + size] = request.cmdline.encode()[: size - 1].ljust(size, b"\0")
    builder.put(info_pfn * PAGE_SIZE, bytes(info))
    return plan


def _pages(size: int) -> int:
    return -(-size // PAGE_SIZE)


def _page_tables(builder: _Builder, p2m_bytes: int) -> int:
    """Tables for [virt_base, end rounded to 4 MiB) and for a P2M list of its own place, then the boot stack.

    The tables are mapped read-only in themselves. Returns the mapped size from virt_base in bytes.
    """
    plan = builder.plan
    levels = 4 if builder.width == 64 else 3
    count = 0
    while True:
        end = builder.next_pfn + count + 1
        size = min((end * PAGE_SIZE + PAD + ROUND - 1) & -ROUND, len(plan.p2m) * PAGE_SIZE)
        ranges = [(builder.virtual(0), size)]
        if plan.notes.init_p2m is not None:
            ranges.append((plan.notes.init_p2m, _pages(p2m_bytes) * PAGE_SIZE))
        needed = _tables_needed(ranges, levels)
        if len(needed) == count:
            break
        count = len(needed)
    first = builder.pages(count)
    stack = builder.pages(1)
    plan.stack_top = builder.virtual(stack) + PAGE_SIZE
    plan.page_tables = {key: first + index for index, key in enumerate(needed)}
    plan.root_pfn = plan.page_tables[levels, 0]
    for (level, base), pfn in plan.page_tables.items():
        entries = builder.memory.entries(plan.p2m[pfn])
        entries[:] = 0
        for (below, start), child in plan.page_tables.items() if level > 1 else ():
            if below == level - 1 and (
                level == levels or start >> SHIFT[level + 1] == base >> SHIFT[level + 1]
            ):
                flags = PRESENT if builder.width == 32 and level == 3 else TABLE
                entries[start >> SHIFT[level] & 511] = plan.p2m[child] << 12 | flags
    _map(builder, builder.virtual(0), 0, size // PAGE_SIZE)
    return size


def _map(builder: _Builder, virtual: int, first_pfn: int, count: int) -> None:
    """Leaf entries for frames in a row; page tables are mapped read-only."""
    plan = builder.plan
    tables = set(plan.page_tables.values())
    for pfn in range(first_pfn, first_pfn + count):
        address = virtual + (pfn - first_pfn) * PAGE_SIZE
        table = builder.memory.entries(plan.p2m[plan.page_tables[1, address >> SHIFT[2] << SHIFT[2]]])
        flags = READ_ONLY_LEAF if pfn in tables else LEAF
        table[address >> SHIFT[1] & 511] = plan.p2m[pfn] << 12 | flags


def _tables_needed(ranges: list[tuple[int, int]], levels: int) -> list[tuple[int, int]]:
    """(level, first address) of every table, top first; pv32 always has all four L2 tables."""
    needed: dict[tuple[int, int], None] = {(levels, 0): None}
    for level in range(levels - 1, 0, -1):
        step = 1 << SHIFT[level + 1]
        if levels == 3 and level == 2:
            for index in range(4):
                needed[level, index * step] = None
            continue
        for start, size in ranges:
            for base in range(start & -step, start + size, step):
                needed[level, base] = None
    return list(needed)
