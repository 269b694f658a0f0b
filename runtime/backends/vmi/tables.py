"""Segment tables: the CPU uses copies in which privilege 0 has become 1.

The guest's own tables stay as it wrote them. Copies follow SetGDT, SetLDT and the Write calls; system
descriptors are left out (a call gate would be a way into the hypervisor), the accessed bit is set because
the copies are read-only to the guest. Stacks of the kernel are in a TSS of ours, at privilege 1.
"""

from __future__ import annotations

from runtime.backends.vmi.errors import GuestKilled
from runtime.backends.vmi.rom import GDT_ENTRIES, HOST_DATA, PAGE
from runtime.cpu import flags as fl
from runtime.cpu.delivery import CpuFault
from runtime.cpu.linear import LinearMemory
from runtime.cpu.segments import Descriptor, load_cache, update_modes
from runtime.cpu.vcpu import VCpu
from runtime.memory import MemoryRange

__all__ = ["GDT_PAGES", "KERNEL_PRIVILEGE", "LDT_PAGES", "SegmentTables"]

KERNEL_PRIVILEGE = 1
GDT_PAGES = LDT_PAGES = GDT_ENTRIES * 8 // PAGE
_GUEST_ENTRIES = GDT_ENTRIES - 1
_DPL, _ACCESSED, _CODE_OR_DATA = 0x6000, 0x100, 0x1000
_FLAT_DATA = (0x0000FFFF, 0x00CFB300)
_LDT_TYPE, _TSS_TYPES = 2, (9, 11)
_TSS_LIMIT = 0x67
_IO_MAP = 0x66
"""Offset of the I/O permission bitmap's offset; past the limit there is none."""
_BUSY_TSS = 0x8B00
_USABLE_SEGMENTS = (fl.ES, fl.DS, fl.FS, fl.GS)


def _allowed(low: int, high: int) -> tuple[int, int]:
    """A descriptor as the CPU may see it."""
    if not high & _CODE_OR_DATA:
        return 0, 0
    if not high & _DPL:
        high |= KERNEL_PRIVILEGE << 13
    return low, high | _ACCESSED


class SegmentTables:
    """The real GDT, LDT and TSS, and what the guest believes about its own.

    `gdt`, `ldt`, `tss` are (linear, physical) places of the copies.
    """

    def __init__(
        self, cpu: VCpu, view: LinearMemory, memory: MemoryRange,
        gdt: tuple[int, int], ldt: tuple[int, int], tss: tuple[int, int],
    ) -> None:  # fmt: skip
        self._cpu = cpu
        self._view = view
        self._memory = memory
        self._gdt_linear, self._gdt = gdt
        self._ldt_linear, self._ldt = ldt
        self._tss_linear, self._tss = tss
        self.gdt_base = self.gdt_limit = 0
        self.ldt_selector = self.ldt_base = self.ldt_limit = 0
        self.tr_selector = 0
        self._put(self._gdt, HOST_DATA >> 3, *_FLAT_DATA)
        memory.store(self._tss + _IO_MAP, b"\xff\xff")

    # -- copies ------------------------------------------------------------------------------------

    def _put(self, table: int, index: int, low: int, high: int) -> None:
        self._memory.store(table + index * 8, low.to_bytes(4, "little") + high.to_bytes(4, "little"))

    def _copy(self, table: int, base: int, limit: int) -> None:
        """The guest's table at `base` into the copy. Raises `PageFault` before anything changes."""
        entries = min((limit + 1) // 8, _GUEST_ENTRIES)
        raw = self._view.read(base, entries * 8) if entries else b""
        self._memory.store(table, bytes(_GUEST_ENTRIES * 8))
        for index in range(entries):
            at = index * 8
            low = int.from_bytes(raw[at : at + 4], "little")
            high = int.from_bytes(raw[at + 4 : at + 8], "little")
            if low or high:
                self._put(table, index, *_allowed(low, high))

    def real(self, selector: int) -> Descriptor | None:
        """The descriptor that the CPU finds for a selector, None for none."""
        index = selector >> 3
        table = self._ldt if selector & 4 else self._gdt
        limit = (self._cpu.state.ldt.limit + 1) // 8 if selector & 4 else _GUEST_ENTRIES
        if index >= min(limit, _GUEST_ENTRIES) or selector & ~3 == 0:
            return None
        at = table + index * 8
        return Descriptor(self._memory.load_u32(at), self._memory.load_u32(at + 4))

    def use(self) -> None:
        """Point the CPU at the copies."""
        state = self._cpu.state
        state.gdt.base, state.gdt.limit = self._gdt_linear, GDT_ENTRIES * 8 - 1
        state.tr.base, state.tr.limit = self._tss_linear, _TSS_LIMIT
        state.tr.flags, state.tr.selector = _BUSY_TSS, 0

    # -- the calls ---------------------------------------------------------------------------------

    def set_gdt(self, base: int, limit: int) -> None:
        """SetGDT: copy the table, then reload the segment registers from it."""
        self._copy(self._gdt, base, limit)
        self.gdt_base, self.gdt_limit = base, limit
        self.reload()

    def _system(self, selector: int, kinds: tuple[int, ...]) -> Descriptor:
        """A system descriptor of the guest's GDT, checked as LLDT and LTR check it."""
        if selector & 4 or (selector | 7) > self.gdt_limit:
            raise CpuFault(fl.GP, selector & 0xFFFC)
        raw = self._view.read(self.gdt_base + (selector & ~7), 8)
        found = Descriptor(int.from_bytes(raw[:4], "little"), int.from_bytes(raw[4:], "little"))
        if found.high & _CODE_OR_DATA or found.kind not in kinds:
            raise CpuFault(fl.GP, selector & 0xFFFC)
        if not found.present:
            raise CpuFault(fl.NP, selector & 0xFFFC)
        return found

    def set_ldt(self, selector: int) -> None:
        """SetLDT: a null selector means that there is none."""
        ldt = self._cpu.state.ldt
        if selector & ~3 == 0:
            base = limit = 0
            ldt.base, ldt.limit, ldt.flags = 0, 0, 0
        else:
            found = self._system(selector, (_LDT_TYPE,))
            base, limit = found.base, min(found.limit, _GUEST_ENTRIES * 8 - 1)
            self._copy(self._ldt, base, limit)
            ldt.base, ldt.limit, ldt.flags = self._ldt_linear, limit, found.high & 0xF0FF00
        ldt.selector = selector
        self.ldt_selector, self.ldt_base, self.ldt_limit = selector, base, limit
        self.reload()

    def set_tr(self, selector: int) -> None:
        """SetTR: the stack for entries into the kernel is read from it once; UpdateKernelStack changes it."""
        found = self._system(selector, _TSS_TYPES)
        if found.limit < _TSS_LIMIT:
            raise CpuFault(fl.TS_FAULT, selector & 0xFFFC)
        raw = self._view.read((found.base + 4) & 0xFFFFFFFF, 6)
        self.tr_selector = selector
        self.set_stack(int.from_bytes(raw[4:6], "little"), int.from_bytes(raw[:4], "little"))

    def set_stack(self, selector: int, pointer: int) -> None:
        """UpdateKernelStack."""
        selector = selector & 0xFFFC | KERNEL_PRIVILEGE
        self._memory.store_u32(self._tss + 4 + KERNEL_PRIVILEGE * 8, pointer)
        self._memory.store_u32(self._tss + 8 + KERNEL_PRIVILEGE * 8, selector)

    def write_entry(self, table: int, index: int, low: int, high: int) -> None:
        """Write one descriptor of the table at linear `table`; a table in use changes for the CPU too."""
        index &= 0x1FFF
        raw = low.to_bytes(4, "little") + high.to_bytes(4, "little")
        self._view.write((table + index * 8) & 0xFFFFFFFF, raw)
        for base, limit, copy in (
            (self.gdt_base, self.gdt_limit, self._gdt),
            (self.ldt_base, self.ldt_limit, self._ldt),
        ):
            if table == base and index * 8 + 7 <= limit and index < _GUEST_ENTRIES:
                self._put(copy, index, *_allowed(low, high))

    def reload(self) -> None:
        """Load every segment register anew; data registers whose descriptor is gone become null."""
        state = self._cpu.state
        for index in _USABLE_SEGMENTS:
            selector = state.segments[index].selector
            found = self.real(selector)
            if found is None or not found.present or not found.high & _CODE_OR_DATA:
                load_cache(self._cpu, index, 0, 0, 0, 0)
            else:
                load_cache(self._cpu, index, selector, found.base, found.limit, found.high)
        for index, wanted in ((fl.CS, "code"), (fl.SS, "stack")):
            selector = state.segments[index].selector
            found = self.real(selector)
            good = found is not None and found.present and found.dpl == KERNEL_PRIVILEGE
            if found is None or not good or not (found.is_code if index == fl.CS else found.is_writable_data):
                raise GuestKilled(f"its {wanted} segment {selector:#x} is not in the new table")
            load_cache(self._cpu, index, selector, found.base, found.limit, found.high)
        update_modes(self._cpu, KERNEL_PRIVILEGE)
