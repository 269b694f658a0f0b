"""The guest-side code of the ABI on VMI: its place, its variables, and the call page that leads to it.

Everything lies in pages that the hypervisor maps at the top of every address space: code and trap stubs
(read-only, executable), the vCPU page, private variables, the stack for entries from user mode, the GDT
and IDT that VMI is given, and the page table that maps everything to itself while the guest believes
that paging is off.
"""

from __future__ import annotations

import functools
from pathlib import Path

from pvpatch.abi.page import build_page
from pvpatch.abi.spec import load_spec
from runtime.backends.vmi.interface import interface
from runtime.backends.vmi.tables import KERNEL_PRIVILEGE
from runtime.boot.model import EntryState
from runtime.deprivileged.callers import CallerIndex
from runtime.deprivileged.ring1.contents import (
    first_values,
    write_first_values,
    write_identity_table,
    write_vcpu_page,
)
from runtime.deprivileged.ring1.guestside import CODE_PAGES, HOLE, PAGE, GuestSide, Resident
from runtime.deprivileged.ring1.userslots import with_user_half
from runtime.memory import MemoryRange

__all__ = [
    "BACKEND_ID",
    "CODE_BIT",
    "CODE_PAGES",
    "FLAT_CODE",
    "FLAT_DATA",
    "GUEST_ENTRIES",
    "HOLE",
    "IDENTITY_PAGE",
    "LENT_STACK",
    "RESIDENT_PAGES",
    "boot_entry",
    "call_page",
    "caller_of",
    "place_of",
    "resident",
    "write_identity_table",
    "write_resident",
]

BACKEND_ID = 4
_CALLS = (
    "EnableInterrupts", "DisableInterrupts", "GetInterruptMask", "Halt", "Shutdown", "Reboot",
    "SetGDT", "SetIDT", "UpdateKernelStack", "WriteGDTEntry", "WriteIDTEntry", "APICWrite",
    "SetCR0", "SetCR3", "SetCR4", "CLTS", "GetCR2", "InvalPage", "FlushTLB",
    "GetCycleFrequency", "GetCycleCounter", "SetAlarm", "CancelAlarm", "GetWallclockTime",
)  # fmt: skip
"""The ROM's calls that the code uses, each through its word in `P_calls`."""
_FEATURES = ("clock", "alarm", "stolen", "events", "console", "power", "vcpu_page")

GUEST_ENTRIES = 32
"""Entries of the GDT before ours."""
FLAT_CODE = GUEST_ENTRIES << 3 | KERNEL_PRIVILEGE
FLAT_DATA = GUEST_ENTRIES + 1 << 3 | KERNEL_PRIVILEGE
CODE_BIT = 0x100
"""A bit of our code selector that no selector of the guest's entries has."""
_GDT_LIMIT = (GUEST_ENTRIES + 2) * 8 - 1
_IDT_LIMIT = 256 * 8 - 1
_FLAT_CODE_DESCRIPTOR, _FLAT_DATA_DESCRIPTOR = 0x00CF9B00_0000FFFF, 0x00CF9300_0000FFFF
_ALARM_VECTOR, _PIC_VECTORS, _LAST_OWN_VECTOR = 0xDF, 0xE0, 0xEF
"""Vectors of our own: LVTT, and the two 8259s whatever base the guest gives them."""
_APIC_ADDRESS = 0xFEE0_0000
_MESSAGES = ("CRASH", "TRIPLE", "INSIDE", "V86")
"""Reasons that the shared files give; VMI takes none."""

_SIDE = GuestSide(
    folder=Path(__file__).parent,
    files=("flags", "host", "boot"),
    data_pages=("vcpu", "private", "stack", "gdt", "idt", "identity"),
    variables=(
        ("P_edx", 4), ("P_unwound", 4), ("P_stack", 8), ("P_masked", 4), ("P_late", 4), ("P_frequency", 4),
        ("P_gdt_operand", 8), ("P_idt_operand", 8), ("P_native_gdt", 8), ("P_no_gates", 8),
        ("P_calls", 4 * len(_CALLS)),
    ),
    flat_code=FLAT_CODE,
    flat_data=FLAT_DATA,
    guest_entries=GUEST_ENTRIES,
    counted_for={
        "switch_tables": "cr0_write", "arm_clock": "alarm_set", "now": "clock_ns", "halt_now": "safe_halt",
        "load_descriptor": "segment_load", "sync_selector": "segment_load", "safe_send": "iret",
        "crash": "shutdown", "flush_all": "tlb_flush_all",
    },
    own_vectors=range(_ALARM_VECTOR, _LAST_OWN_VECTOR + 1),
)  # fmt: skip
RESIDENT_PAGES = _SIDE.page_count
IDENTITY_PAGE = _SIDE.page("identity") // PAGE
place_of = _SIDE.place_of
LENT_STACK = _SIDE.lent_stack


def _symbols() -> dict[str, int]:
    """Everything that the assembly text names and that is not code."""
    known, symbols = interface(), _SIDE.symbols()
    symbols |= {f"VMI_{name}": symbols["P_calls"] + 4 * index for index, name in enumerate(_CALLS)}
    symbols |= {f"MESSAGE_{name}": 0 for name in _MESSAGES}
    return symbols | {
        "GDT": HOLE + _SIDE.page("gdt"),
        "P_gdt_copy": HOLE + _SIDE.page("gdt"),
        "IDT": HOLE + _SIDE.page("idt"),
        "VMI_COUNT": len(_CALLS),
        "ALARM_VECTOR": _ALARM_VECTOR,
        "PIC_VECTORS": _PIC_VECTORS,
        "LAST_OWN_VECTOR": _LAST_OWN_VECTOR,
        "ALARM_FLAGS": known.alarm.wired_lvtt | known.alarm.counters.index("real"),
        "APIC_LVTT": _APIC_ADDRESS | known.lvtt,
        "STACK_END": _SIDE.page("stack") + PAGE,
        "IDENTITY": _SIDE.page("identity"),
        "NATIVE_GDT": place_of("P_native_gdt"),
    }


@functools.cache
def resident() -> Resident:
    """The assembled code."""
    numbers = ", ".join(str(interface().number(name)) for name in _CALLS)
    return _SIDE.assemble(_symbols(), behind=f"vmi_numbers:\n .long {numbers}")


@functools.cache
def call_page() -> bytes:
    """The 32-bit call page: short slots that enter the resident code by a far call."""
    slots, features = _SIDE.slots(resident().labels), load_spec().feature_mask(*_FEATURES)
    return with_user_half(build_page(32, BACKEND_ID, slots, features=features))


@functools.cache
def _callers() -> CallerIndex:
    return _SIDE.callers(resident().labels)


def caller_of(linear: int) -> str | None:
    """The ABI call to whose code an address of the resident pages belongs, None for other code."""
    return _callers().find(linear)


def boot_entry(base: int) -> EntryState:
    """How the resident pages at guest-physical `base` are entered: natively, paging off."""
    return EntryState(rip=base + resident().labels["boot"] - HOLE, registers={"rbp": base})


def write_resident(memory: MemoryRange, base: int, entry: EntryState) -> None:
    """Put the resident pages at guest-physical `base`, ready to start a guest at `entry`."""
    memory.store(base, resident().code)
    write_identity_table(memory, base + _SIDE.page("identity"))
    write_vcpu_page(memory, base + _SIDE.page("vcpu"), entry)
    memory.store_u64(base + _SIDE.page("gdt") + (FLAT_CODE & ~7), _FLAT_CODE_DESCRIPTOR)
    memory.store_u64(base + _SIDE.page("gdt") + (FLAT_DATA & ~7), _FLAT_DATA_DESCRIPTOR)
    _write_private(memory, base, entry)


def _write_private(memory: MemoryRange, base: int, entry: EntryState) -> None:
    places = _SIDE.private
    page = base + _SIDE.page("private")
    write_first_values(memory, page, places, first_values(entry, base + _SIDE.page("identity")))
    for name, limit, start in (
        ("P_gdt_operand", _GDT_LIMIT, HOLE + _SIDE.page("gdt")),
        ("P_idt_operand", _IDT_LIMIT, HOLE + _SIDE.page("idt")),
        ("P_native_gdt", _GDT_LIMIT, base + _SIDE.page("gdt")),
    ):
        memory.store(page + places[name], limit.to_bytes(2, "little") + start.to_bytes(4, "little"))
