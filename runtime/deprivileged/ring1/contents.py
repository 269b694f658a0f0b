"""What the guest-side pages at privilege 1 hold before their first instruction runs."""

from __future__ import annotations

from collections.abc import Mapping

from pvpatch.abi.layout import VCPU_PAGE_SIZE, vcpu_page
from runtime.boot.model import EntryState
from runtime.memory import MemoryRange

__all__ = ["first_values", "write_first_values", "write_identity_table", "write_vcpu_page"]

_BOOT_REGISTERS = ("eax", "ecx", "edx", "ebx", "esp", "ebp", "esi", "edi")
_LAR_TYPES = sum(1 << kind for kind in (1, 2, 3, 4, 5, 9, 11, 12))
_LSL_TYPES = sum(1 << kind for kind in (1, 2, 3, 9, 11))
"""System descriptor types that LAR and LSL accept (SDM vol. 2)."""
_PAT_RESET = 0x0007_0406_0007_0406
_DR6_RESET, _DR7_RESET = 0xFFFF0FF0, 0x400
_PIC_BASES = (0x08, 0x70)
"""As PC firmware leaves them."""
_PAGES_OF_4_MIB = 0xE7
"""Present, writable, user, accessed, dirty, large."""


def write_identity_table(memory: MemoryRange, physical: int) -> None:
    """A page directory of 4 MiB pages that maps every linear address to itself, for user mode too."""
    for index in range(1024):
        memory.store_u32(physical + index * 4, index << 22 | _PAGES_OF_4_MIB)


def write_vcpu_page(memory: MemoryRange, address: int, entry: EntryState) -> None:
    """What the guest believes at its first instruction."""
    page = bytearray(VCPU_PAGE_SIZE)
    for name, value in (
        ("cr0", entry.cr0), ("cr3", entry.cr3), ("cr4", entry.cr4),
        ("gdt_base", entry.gdt[0]), ("gdt_limit", entry.gdt[1]), ("idt_limit", 0xFFFF),
    ):  # fmt: skip
        field = vcpu_page()[name]
        page[field.offset : field.offset + field.total] = value.to_bytes(field.total, "little")
    memory.store(address, bytes(page))


def first_values(entry: EntryState, identity: int) -> dict[str, int]:
    """First values of shared variables: 32 bits each."""
    values = {
        "P_boot_code": entry.code.selector & ~3,
        "P_boot_data": entry.data.selector & ~3,
        "P_identity": identity,
        "P_lar_types": _LAR_TYPES,
        "P_lsl_types": _LSL_TYPES,
        "B_entry": entry.rip,
    }
    return values | {f"B_{name}": entry.registers.get(f"r{name[1:]}", 0) for name in _BOOT_REGISTERS}


def write_first_values(
    memory: MemoryRange, page: int, places: Mapping[str, int], values: Mapping[str, int]
) -> None:
    """Fill the private page at guest-physical `page`."""
    for name, value in values.items():
        memory.store_u32(page + places[name], value)
    for index, base in enumerate(_PIC_BASES):
        memory.store_u32(page + places["P_pic_base"] + 4 * index, base)
    memory.store_u32(page + places["P_debug"] + 24, _DR6_RESET)
    memory.store_u32(page + places["P_debug"] + 28, _DR7_RESET)
    memory.store_u64(page + places["P_pat"], _PAT_RESET)
