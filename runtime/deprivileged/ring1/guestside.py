"""Variables, trap stubs, first contents and call page of the guest-side code at privilege 1."""

from __future__ import annotations

import bisect
from collections.abc import Mapping
from pathlib import Path

from pvpatch.abi.layout import VCPU_PAGE_SIZE, vcpu_page
from pvpatch.abi.page import bare_slots
from pvpatch.abi.spec import load_spec
from runtime.backends.slotfile import SlotFile, read_slot_file
from runtime.boot.model import EntryState
from runtime.cpu import flags as fl
from runtime.memory import MemoryRange

__all__ = [
    "BOOT_REGISTERS",
    "STUB_SIZE",
    "CallerIndex",
    "far_slots",
    "first_values",
    "place_variables",
    "source",
    "trap_stubs",
    "vcpu_symbols",
    "write_first_values",
    "write_identity_table",
    "write_vcpu_page",
]

STUB_SIZE = 16
BOOT_REGISTERS = ("eax", "ecx", "edx", "ebx", "esp", "ebp", "esi", "edi")
_FILES = ("slots", "flags", "registers", "tables", "segments", "transfers", "io", "time", "traps")
_PLAIN_BARE = frozenset({"abi_query", "pte_write", "table_alloc", "table_release", "descriptor_write"})
"""Calls for which the bare page's code is right at any privilege."""
_LAR_TYPES = sum(1 << kind for kind in (1, 2, 3, 4, 5, 9, 11, 12))
_LSL_TYPES = sum(1 << kind for kind in (1, 2, 3, 9, 11))
"""System descriptor types that LAR and LSL accept (SDM vol. 2)."""
_HAS_ERROR_CODE, _OWN_INTERRUPT = 0x100, 0x200
_PAT_RESET = 0x0007_0406_0007_0406
_DR6_RESET, _DR7_RESET = 0xFFFF0FF0, 0x400
_PIC_BASES = (0x08, 0x70)
"""As PC firmware leaves them."""
_PAGES_OF_4_MIB = 0xE7
"""Present, writable, user, accessed, dirty, large."""

_VARIABLES: tuple[tuple[str, int], ...] = (
    *((f"S_{name}", 4) for name in (
        "eax", "ecx", "edx", "ebx", "esi", "ds", "vector", "error", "nested", "eip", "cs", "flags",
        "user", "esp", "ss", "offset", "selector",
    )),
    ("P_return", 16), ("P_near", 4), ("P_ds", 4), ("P_eax", 4), ("P_site", 8),
    ("P_old_if", 4), ("P_old_flags", 4), ("P_nt", 4), ("P_synced", 4),
    ("P_tr_base", 4), ("P_ldt_base", 4), ("P_ldt_limit", 4), ("P_boot_code", 4), ("P_boot_data", 4),
    ("P_pic_expects", 8), ("P_pic_base", 8), ("P_pat", 8), ("P_debug", 32),
    ("P_deadline", 8), ("P_armed", 4), ("P_alarm_vector", 4),
    ("P_lar_types", 4), ("P_lsl_types", 4), ("P_identity", 4),
    *((f"B_{name}", 4) for name in (*BOOT_REGISTERS, "entry")),
)  # fmt: skip
"""Private variables that the shared files use, and their sizes in bytes."""


def source(folder: Path, own: tuple[str, ...]) -> SlotFile:
    """The backend's words, the shared text, then the backend's own files, as one.

    A file of the backend's takes the place of the shared one of the same name.
    """
    shared = (Path(__file__).with_name(f"{name}32.s") for name in _FILES if name not in own)
    return read_slot_file(folder / "words32.s", *shared, *(folder / f"{name}32.s" for name in own))


def place_variables(own: tuple[tuple[str, int], ...]) -> dict[str, int]:
    """Name -> offset in the private page, the backend's own behind the shared ones."""
    places, at = {}, 0
    for name, size in (*_VARIABLES, *own):
        places[name] = at
        at += size
    return places


def vcpu_symbols(address: int) -> dict[str, int]:
    """V_NAME for every field of the vCPU page at `address`."""
    return {f"V_{field.name}": address + field.offset for field in vcpu_page().fields}


def trap_stubs(address: int, common: int, own: range) -> bytes:
    """256 stubs at `address`: PUSH error code (where hardware pushes none); PUSH vector and kind; JMP common.

    Vectors in `own` are interrupts of the hypervisor's.
    """
    return b"".join(_stub(vector, address + vector * STUB_SIZE, common, own) for vector in range(256))


def _stub(vector: int, address: int, common: int, own: range) -> bytes:
    has_code = vector in fl.HAS_ERROR_CODE
    kind = vector | (_HAS_ERROR_CODE if has_code else 0) | (_OWN_INTERRUPT if vector in own else 0)
    code = (b"" if has_code else b"\x6a\x00") + b"\x68" + kind.to_bytes(4, "little") + b"\xe9"
    distance = (common - (address + len(code) + 4)) & 0xFFFFFFFF
    return (code + distance.to_bytes(4, "little")).ljust(STUB_SIZE, b"\xcc")


def far_slots(text: SlotFile, labels: Mapping[str, int], flat_code: int) -> dict[str, str]:
    """Slot text by call name: what stays in the image, and far calls to routines of the same name."""
    spec = load_spec()
    bare = bare_slots(32, spec)
    slots = dict(text.slots)
    for name in (call.name for call in spec.calls):
        if name in slots:
            continue
        if name in text.routines:
            slots[name] = f"lcall {flat_code}, {labels[name]}\n ret"
        elif name in _PLAIN_BARE:
            slots[name] = bare[name]
    return slots


class CallerIndex:
    """Which ABI call an address of the code belongs to; `shared` says for which call a helper counts."""

    def __init__(self, text: SlotFile, labels: Mapping[str, int], shared: Mapping[str, str]) -> None:
        placed = sorted((labels[name], name) for name in text.routines)
        self._starts = [start for start, _ in placed]
        self._names = [shared.get(name, name) for _, name in placed]
        self._calls = {call.name for call in load_spec().calls}

    def find(self, address: int) -> str | None:
        """The call's name, None for code that is no call's."""
        index = bisect.bisect_right(self._starts, address) - 1
        name = self._names[index] if index >= 0 else ""
        return name if name in self._calls else None


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
    return values | {f"B_{name}": entry.registers.get(f"r{name[1:]}", 0) for name in BOOT_REGISTERS}


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
