"""The guest-side code of the ABI on VMI: its place, its variables, and the call page that leads to it.

Everything lies in pages that the hypervisor maps at the top of every address space: code and trap stubs
(read-only, executable), the vCPU page, private variables, the stack for entries from user mode, the GDT
and IDT that VMI is given, and the page table that maps everything to itself while the guest believes
that paging is off.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pvpatch.abi.asm import assemble
from pvpatch.abi.layout import vcpu_page
from pvpatch.abi.page import build_page
from pvpatch.abi.spec import load_spec
from runtime.backends.slotfile import SlotFile
from runtime.backends.vmi.interface import interface
from runtime.backends.vmi.tables import KERNEL_PRIVILEGE
from runtime.boot.model import EntryState
from runtime.deprivileged.ring1.guestside import (
    CallerIndex,
    far_slots,
    first_values,
    place_variables,
    source,
    trap_stubs,
    vcpu_symbols,
    write_first_values,
    write_identity_table,
    write_vcpu_page,
)
from runtime.memory import MemoryRange

__all__ = [
    "BACKEND_ID",
    "CODE_BIT",
    "CODE_PAGES",
    "FLAT_CODE",
    "FLAT_DATA",
    "HOLE",
    "IDENTITY_PAGE",
    "RESIDENT_PAGES",
    "Resident",
    "boot_entry",
    "call_page",
    "caller_of",
    "place_of",
    "resident",
    "write_identity_table",
    "write_resident",
]

BACKEND_ID = 4
HOLE = 0xFFC0_0000
"""Linear address of the first page."""
PAGE = 4096
CODE_PAGES = 5
_STUB_OFFSET = 4 * PAGE
_VCPU, _PRIVATE, _STACK, _GDT, _IDT, IDENTITY_PAGE = range(CODE_PAGES, CODE_PAGES + 6)
RESIDENT_PAGES = CODE_PAGES + 6

_CALLS = (
    "EnableInterrupts", "DisableInterrupts", "GetInterruptMask", "Halt", "Shutdown", "Reboot",
    "SetGDT", "SetIDT", "UpdateKernelStack", "WriteGDTEntry", "WriteIDTEntry", "APICWrite",
    "SetCR0", "SetCR3", "SetCR4", "CLTS", "GetCR2", "InvalPage", "FlushTLB",
    "GetCycleFrequency", "GetCycleCounter", "SetAlarm", "CancelAlarm", "GetWallclockTime",
)  # fmt: skip
"""The ROM's calls that the code uses, each through its word in `P_calls`."""
_FEATURES = ("clock", "alarm", "stolen", "events", "console", "power", "vcpu_page")

_GUEST_ENTRIES = 32
"""Entries of the GDT that mirror the guest's; ours follow."""
FLAT_CODE = _GUEST_ENTRIES << 3 | KERNEL_PRIVILEGE
FLAT_DATA = _GUEST_ENTRIES + 1 << 3 | KERNEL_PRIVILEGE
CODE_BIT = 0x100
"""A bit of our code selector that no selector of the guest's entries has."""
_GDT_LIMIT = (_GUEST_ENTRIES + 2) * 8 - 1
_IDT_LIMIT = 256 * 8 - 1
_FLAT_CODE_DESCRIPTOR, _FLAT_DATA_DESCRIPTOR = 0x00CF9B00_0000FFFF, 0x00CF9300_0000FFFF
_ALARM_VECTOR, _PIC_VECTORS, _LAST_OWN_VECTOR = 0xDF, 0xE0, 0xEF
"""Vectors of our own: LVTT, and the two 8259s whatever base the guest gives them."""
_APIC_ADDRESS = 0xFEE0_0000
_MESSAGES = ("CRASH", "TRIPLE", "INSIDE", "V86")
"""Reasons that the shared files give; VMI takes none."""

_VARIABLES: tuple[tuple[str, int], ...] = (
    ("P_edx", 4), ("P_unwound", 4), ("P_stack", 8), ("P_masked", 4), ("P_late", 4), ("P_frequency", 4),
    ("P_gdt_operand", 8), ("P_idt_operand", 8), ("P_native_gdt", 8), ("P_no_gates", 8),
    ("P_calls", 4 * len(_CALLS)),
)  # fmt: skip
"""Private variables of our own and their sizes in bytes."""


@dataclass(frozen=True)
class Resident:
    """The assembled guest-side code."""

    code: bytes
    labels: Mapping[str, int]


@functools.cache
def _variables() -> dict[str, int]:
    return place_variables(_VARIABLES)


def place_of(name: str) -> int:
    """Offset of a V_ or P_ variable from the start of the resident pages."""
    if name.startswith("V_"):
        return _VCPU * PAGE + vcpu_page().offset(name.removeprefix("V_"))
    return _PRIVATE * PAGE + _variables()[name]


def _symbols() -> dict[str, int]:
    """Everything that the assembly text names and that is not code."""
    known = interface()
    symbols = {name: HOLE + _PRIVATE * PAGE + offset for name, offset in _variables().items()}
    symbols |= vcpu_symbols(HOLE + _VCPU * PAGE)
    symbols |= {f"VMI_{name}": symbols["P_calls"] + 4 * index for index, name in enumerate(_CALLS)}
    symbols |= {f"MESSAGE_{name}": 0 for name in _MESSAGES}
    return symbols | {
        "HOLE": HOLE,
        "STUBS": HOLE + _STUB_OFFSET,
        "STACK_TOP": HOLE + (_STACK + 1) * PAGE,
        "GDT": HOLE + _GDT * PAGE,
        "P_gdt_copy": HOLE + _GDT * PAGE,
        "IDT": HOLE + _IDT * PAGE,
        "FLAT_CS": FLAT_CODE,
        "FLAT_DS": FLAT_DATA,
        "GATE_SELECTOR": FLAT_CODE << 16,
        "GUEST_ENTRIES": _GUEST_ENTRIES,
        "LAST_SELECTOR": (_GUEST_ENTRIES - 1) * 8,
        "VMI_COUNT": len(_CALLS),
        "ALARM_VECTOR": _ALARM_VECTOR,
        "PIC_VECTORS": _PIC_VECTORS,
        "LAST_OWN_VECTOR": _LAST_OWN_VECTOR,
        "ALARM_FLAGS": known.alarm.wired_lvtt | known.alarm.counters.index("real"),
        "APIC_LVTT": _APIC_ADDRESS | known.lvtt,
        "STACK_END": (_STACK + 1) * PAGE,
        "IDENTITY": IDENTITY_PAGE * PAGE,
        "NATIVE_GDT": place_of("P_native_gdt"),
    }


@functools.cache
def _source() -> SlotFile:
    """The assembly text of all files, in order."""
    return source(Path(__file__).parent, ("flags", "host", "boot"))


@functools.cache
def resident() -> Resident:
    """Assemble the code; the same for every machine, since its places are linear addresses."""
    known = interface()
    text = "\n".join(f"{name}:\n{body}" for name, body in _source().routines.items())
    text += "\nvmi_numbers:\n .long " + ", ".join(str(known.number(name)) for name in _CALLS)
    built = assemble(text, 32, HOLE, _symbols())
    if len(built.code) > _STUB_OFFSET:
        raise ValueError(f"the guest-side code takes {len(built.code)} bytes, {_STUB_OFFSET} are there")
    own = range(_ALARM_VECTOR, _LAST_OWN_VECTOR + 1)
    stubs = trap_stubs(HOLE + _STUB_OFFSET, built.labels["common"], own)
    return Resident(built.code.ljust(_STUB_OFFSET, b"\xcc") + stubs, built.labels)


@functools.cache
def call_page() -> bytes:
    """The 32-bit call page: short slots that enter the resident code by a far call."""
    slots = far_slots(_source(), resident().labels, FLAT_CODE)
    features = sum(1 << feature.bit for feature in load_spec().features if feature.name in _FEATURES)
    return build_page(32, BACKEND_ID, slots, features=features)


_SHARED_ROUTINES = {
    "switch_tables": "cr0_write", "arm_clock": "alarm_set", "now": "clock_ns", "halt_now": "safe_halt",
    "load_descriptor": "segment_load", "sync_selector": "segment_load", "safe_send": "iret",
    "crash": "shutdown", "flush_all": "tlb_flush_all",
}  # fmt: skip
"""Routines that several calls use: the one that their exits are counted for."""


@functools.cache
def _callers() -> CallerIndex:
    return CallerIndex(_source(), resident().labels, _SHARED_ROUTINES)


def caller_of(linear: int) -> str | None:
    """The ABI call to whose code an address of the resident pages belongs, None for other code."""
    return _callers().find(linear) if HOLE <= linear < HOLE + _STUB_OFFSET else None


def boot_entry(base: int) -> EntryState:
    """How the resident pages at guest-physical `base` are entered: natively, paging off."""
    return EntryState(rip=base + resident().labels["boot"] - HOLE, registers={"rbp": base})


def write_resident(memory: MemoryRange, base: int, entry: EntryState) -> None:
    """Put the resident pages at guest-physical `base`, ready to start a guest at `entry`."""
    memory.store(base, resident().code)
    write_identity_table(memory, base + IDENTITY_PAGE * PAGE)
    write_vcpu_page(memory, base + _VCPU * PAGE, entry)
    memory.store_u64(base + _GDT * PAGE + (FLAT_CODE & ~7), _FLAT_CODE_DESCRIPTOR)
    memory.store_u64(base + _GDT * PAGE + (FLAT_DATA & ~7), _FLAT_DATA_DESCRIPTOR)
    _write_private(memory, base, entry)


def _write_private(memory: MemoryRange, base: int, entry: EntryState) -> None:
    places = _variables()
    page = base + _PRIVATE * PAGE
    write_first_values(memory, page, places, first_values(entry, base + IDENTITY_PAGE * PAGE))
    for name, limit, start in (
        ("P_gdt_operand", _GDT_LIMIT, HOLE + _GDT * PAGE),
        ("P_idt_operand", _IDT_LIMIT, HOLE + _IDT * PAGE),
        ("P_native_gdt", _GDT_LIMIT, base + _GDT * PAGE),
    ):
        memory.store(page + places[name], limit.to_bytes(2, "little") + start.to_bytes(4, "little"))
