"""Descriptors and the segment caches of the emulated CPU."""

from __future__ import annotations

from dataclasses import dataclass

from runtime.cpu import flags as fl
from runtime.cpu.linear import LinearMemory
from runtime.cpu.vcpu import VCpu

__all__ = [
    "Descriptor",
    "load_cache",
    "read_descriptor",
    "set_code_segment",
    "set_stack_segment",
    "update_modes",
]


@dataclass(frozen=True)
class Descriptor:
    """An 8-byte code, data or system descriptor: `low` and `high` words as in memory."""

    low: int
    high: int

    @property
    def base(self) -> int:
        """Bits 0..31 of the base."""
        return self.low >> 16 | (self.high & 0xFF) << 16 | self.high & 0xFF000000

    @property
    def limit(self) -> int:
        """Limit in bytes, granularity applied."""
        limit = self.low & 0xFFFF | self.high & 0xF0000
        return limit << 12 | 0xFFF if self.high & fl.DESC_GRANULARITY else limit

    @property
    def dpl(self) -> int:
        """Descriptor privilege level."""
        return self.high >> 13 & 3

    @property
    def present(self) -> bool:
        """The P bit."""
        return bool(self.high & fl.DESC_PRESENT)

    @property
    def kind(self) -> int:
        """The type field (4 bits), meaningful for system descriptors."""
        return self.high >> 8 & 0xF

    @property
    def is_code(self) -> bool:
        """A code segment."""
        return bool(self.high & fl.DESC_SYSTEM and self.high & fl.DESC_CODE)

    @property
    def is_writable_data(self) -> bool:
        """A writable data segment."""
        return bool(
            self.high & fl.DESC_SYSTEM and not self.high & fl.DESC_CODE and self.high & fl.DESC_WRITABLE
        )


def read_descriptor(cpu: VCpu, memory: LinearMemory, selector: int) -> Descriptor | None:
    """The descriptor that `selector` names in the GDT or LDT, or None outside the table's limit.

    Raises `PageFault` when the table is not mapped.
    """
    table = cpu.state.ldt if selector & 4 else cpu.state.gdt
    index = selector & ~7
    if index + 7 > table.limit:
        return None
    raw = memory.read(table.base + index, 8)
    return Descriptor(int.from_bytes(raw[:4], "little"), int.from_bytes(raw[4:], "little"))


def load_cache(cpu: VCpu, index: int, selector: int, base: int, limit: int, attributes: int) -> None:
    """Put values into a segment register's cache without looking at any table."""
    segment = cpu.state.segments[index]
    segment.selector = selector
    segment.base = base
    segment.limit = limit
    segment.flags = attributes & 0x00F0FF00


def update_modes(cpu: VCpu, cpl: int) -> None:
    """Recompute the emulator's summary word from the CS, SS caches and `cpl`."""
    state = cpu.state
    segments = state.segments
    hflags = state.hflags & ~(fl.HF_CPL | fl.HF_CS32 | fl.HF_SS32 | fl.HF_CS64 | fl.HF_ADDSEG)
    hflags |= cpl
    code = segments[fl.CS].flags
    if hflags & fl.HF_LMA and code & fl.DESC_LONG:
        hflags |= fl.HF_CS32 | fl.HF_SS32 | fl.HF_CS64
    else:
        if code & fl.DESC_BIG:
            hflags |= fl.HF_CS32
        if segments[fl.SS].flags & fl.DESC_BIG:
            hflags |= fl.HF_SS32
        if (
            not hflags & fl.HF_CS32
            or state.eflags & fl.VM
            or segments[fl.DS].base
            or segments[fl.ES].base
            or segments[fl.SS].base
        ):
            hflags |= fl.HF_ADDSEG
    state.hflags = hflags


def set_code_segment(cpu: VCpu, selector: int, descriptor: Descriptor) -> None:
    """Load CS; call `update_modes` afterwards."""
    load_cache(cpu, fl.CS, selector, descriptor.base, descriptor.limit, descriptor.high)


def set_stack_segment(cpu: VCpu, selector: int, descriptor: Descriptor) -> None:
    """Load SS; call `update_modes` afterwards."""
    load_cache(cpu, fl.SS, selector, descriptor.base, descriptor.limit, descriptor.high)
