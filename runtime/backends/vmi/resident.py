"""The guest-side code of the ABI on VMI: its place, its variables, and the call page that leads to it.

Everything lies in pages that the hypervisor maps at the top of every address space: code and trap stubs
(read-only, executable), the vCPU page, private variables, the stack for entries from user mode, the GDT
and IDT that VMI is given, and the page table that maps everything to itself while the guest believes
that paging is off.
"""

from __future__ import annotations

import bisect
import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pvpatch.abi.asm import assemble
from pvpatch.abi.layout import VCPU_PAGE_SIZE, vcpu_page
from pvpatch.abi.page import bare_slots, build_page
from pvpatch.abi.spec import load_spec
from runtime.backends.lguest.resident import write_identity_table
from runtime.backends.slotfile import SlotFile, read_slot_file
from runtime.backends.vmi.interface import interface
from runtime.backends.vmi.tables import KERNEL_PRIVILEGE
from runtime.boot.model import EntryState
from runtime.cpu import flags as fl
from runtime.memory import MemoryRange

__all__ = [
    "BACKEND_ID",
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
_STUB_SIZE = 16
_VCPU, _PRIVATE, _STACK, _GDT, _IDT, IDENTITY_PAGE = range(CODE_PAGES, CODE_PAGES + 6)
RESIDENT_PAGES = CODE_PAGES + 6

_SHARED = Path(__file__).parents[1] / "lguest"
_SOURCES = (
    Path(__file__).with_name("words32.s"),
    *(_SHARED / f"{name}32.s" for name in ("slots", "registers", "tables", "segments", "transfers")),
    *(_SHARED / f"{name}32.s" for name in ("io", "time", "traps")),
    *(Path(__file__).with_name(f"{name}32.s") for name in ("flags", "host", "boot")),
)
_CALLS = (
    "EnableInterrupts", "DisableInterrupts", "GetInterruptMask", "Halt", "Shutdown", "Reboot",
    "SetGDT", "SetIDT", "UpdateKernelStack", "WriteGDTEntry", "WriteIDTEntry", "APICWrite",
    "SetCR0", "SetCR3", "SetCR4", "CLTS", "GetCR2", "InvalPage", "FlushTLB",
    "GetCycleFrequency", "GetCycleCounter", "SetAlarm", "CancelAlarm", "GetWallclockTime",
)  # fmt: skip
"""The ROM's calls that the code uses, each through its word in `P_calls`."""
_PLAIN_BARE = frozenset({"abi_query", "pte_write", "table_alloc", "table_release", "descriptor_write"})
"""Calls for which the bare page's code is right at any privilege."""
_FEATURES = ("clock", "alarm", "stolen", "events", "console", "power", "vcpu_page")

_GUEST_ENTRIES = 32
"""Entries of the GDT that mirror the guest's; ours follow."""
FLAT_CODE = _GUEST_ENTRIES << 3 | KERNEL_PRIVILEGE
FLAT_DATA = _GUEST_ENTRIES + 1 << 3 | KERNEL_PRIVILEGE
_GDT_LIMIT = (_GUEST_ENTRIES + 2) * 8 - 1
_IDT_LIMIT = 256 * 8 - 1
_FLAT_CODE_DESCRIPTOR, _FLAT_DATA_DESCRIPTOR = 0x00CF9B00_0000FFFF, 0x00CF9300_0000FFFF
_ALARM_VECTOR, _PIC_VECTORS, _LAST_OWN_VECTOR = 0xDF, 0xE0, 0xEF
"""Vectors of our own: LVTT, and the two 8259s whatever base the guest gives them."""
_APIC_ADDRESS = 0xFEE0_0000
_BOOT_WORDS = ("eax", "ecx", "edx", "ebx", "esp", "ebp", "esi", "edi")
_LAR_TYPES = sum(1 << kind for kind in (1, 2, 3, 4, 5, 9, 11, 12))
_LSL_TYPES = sum(1 << kind for kind in (1, 2, 3, 9, 11))
"""System descriptor types that LAR and LSL accept (SDM vol. 2)."""
_MESSAGES = ("CRASH", "TRIPLE", "INSIDE", "V86")
"""Reasons that the shared files give; VMI takes none."""

_VARIABLES: tuple[tuple[str, int], ...] = (
    *((f"S_{name}", 4) for name in (
        "eax", "ecx", "edx", "ebx", "esi", "ds", "vector", "error", "nested", "eip", "cs", "flags",
        "user", "esp", "ss", "offset", "selector",
    )),
    ("P_return", 16), ("P_near", 4), ("P_ds", 4), ("P_eax", 4), ("P_edx", 4), ("P_site", 8),
    ("P_old_if", 4), ("P_old_flags", 4), ("P_nt", 4), ("P_synced", 4), ("P_unwound", 4),
    ("P_tr_base", 4), ("P_ldt_base", 4), ("P_ldt_limit", 4), ("P_boot_code", 4), ("P_boot_data", 4),
    ("P_pic_expects", 8), ("P_pic_base", 8), ("P_pat", 8), ("P_debug", 32), ("P_stack", 8),
    ("P_deadline", 8), ("P_armed", 4), ("P_masked", 4), ("P_late", 4), ("P_alarm_vector", 4),
    ("P_frequency", 4), ("P_lar_types", 4), ("P_lsl_types", 4), ("P_identity", 4),
    ("P_gdt_operand", 8), ("P_idt_operand", 8), ("P_native_gdt", 8), ("P_no_gates", 8),
    *((f"B_{name}", 4) for name in (*_BOOT_WORDS, "entry")),
    ("P_calls", 4 * len(_CALLS)),
)  # fmt: skip
"""Private variables and their sizes in bytes."""


@dataclass(frozen=True)
class Resident:
    """The assembled guest-side code."""

    code: bytes
    labels: Mapping[str, int]


@functools.cache
def _variables() -> dict[str, int]:
    places, at = {}, 0
    for name, size in _VARIABLES:
        places[name] = at
        at += size
    return places


def place_of(name: str) -> int:
    """Offset of a V_ or P_ variable from the start of the resident pages."""
    if name.startswith("V_"):
        return _VCPU * PAGE + vcpu_page().offset(name.removeprefix("V_"))
    return _PRIVATE * PAGE + _variables()[name]


def _symbols() -> dict[str, int]:
    """Everything that the assembly text names and that is not code."""
    known = interface()
    symbols = {name: HOLE + _PRIVATE * PAGE + offset for name, offset in _variables().items()}
    symbols |= {f"V_{field.name}": HOLE + _VCPU * PAGE + field.offset for field in vcpu_page().fields}
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


def _stub(vector: int, common: int) -> bytes:
    """PUSH error code (where hardware pushes none); PUSH vector and kind; JMP common."""
    own = _ALARM_VECTOR <= vector <= _LAST_OWN_VECTOR
    has_code = vector in fl.HAS_ERROR_CODE
    kind = vector | (0x100 if has_code else 0) | (0x200 if own else 0)
    code = (b"" if has_code else b"\x6a\x00") + b"\x68" + kind.to_bytes(4, "little") + b"\xe9"
    end = HOLE + _STUB_OFFSET + vector * _STUB_SIZE + len(code) + 4
    return (code + ((common - end) & 0xFFFFFFFF).to_bytes(4, "little")).ljust(_STUB_SIZE, b"\xcc")


@functools.cache
def _source() -> SlotFile:
    """The assembly text of all files, in order."""
    return read_slot_file(*_SOURCES)


@functools.cache
def resident() -> Resident:
    """Assemble the code; the same for every machine, since its places are linear addresses."""
    known = interface()
    text = "\n".join(f"{name}:\n{body}" for name, body in _source().routines.items())
    text += "\nvmi_numbers:\n .long " + ", ".join(str(known.number(name)) for name in _CALLS)
    built = assemble(text, 32, HOLE, _symbols())
    if len(built.code) > _STUB_OFFSET:
        raise ValueError(f"the guest-side code takes {len(built.code)} bytes, {_STUB_OFFSET} are there")
    stubs = b"".join(_stub(vector, built.labels["common"]) for vector in range(256))
    return Resident(built.code.ljust(_STUB_OFFSET, b"\xcc") + stubs, built.labels)


@functools.cache
def call_page() -> bytes:
    """The 32-bit call page: short slots that enter the resident code by a far call."""
    spec = load_spec()
    text, labels = _source(), resident().labels
    bare = bare_slots(32, spec)
    slots = dict(text.slots)
    for call in spec.calls:
        name = call.name
        if name in slots:
            continue
        if name in text.routines:
            slots[name] = f"lcall {FLAT_CODE}, {labels[name]}\n ret"
        elif name in _PLAIN_BARE:
            slots[name] = bare[name]
    features = sum(1 << feature.bit for feature in spec.features if feature.name in _FEATURES)
    return build_page(32, BACKEND_ID, slots, features=features)


_SHARED_ROUTINES = {
    "switch_tables": "cr0_write", "arm_clock": "alarm_set", "now": "clock_ns", "halt_now": "safe_halt",
    "load_descriptor": "segment_load", "sync_selector": "segment_load", "safe_send": "iret",
    "crash": "shutdown", "flush_all": "tlb_flush_all",
}  # fmt: skip
"""Routines that several calls use: the one that their exits are counted for."""


@functools.cache
def _routine_starts() -> tuple[list[int], list[str]]:
    placed = sorted((resident().labels[name], name) for name in _source().routines)
    return [start for start, _ in placed], [name for _, name in placed]


def caller_of(linear: int) -> str | None:
    """The ABI call to whose code an address of the resident pages belongs, None for other code."""
    if not HOLE <= linear < HOLE + _STUB_OFFSET:
        return None
    starts, names = _routine_starts()
    name = names[bisect.bisect_right(starts, linear) - 1]
    name = _SHARED_ROUTINES.get(name, name)
    return name if any(call.name == name for call in load_spec().calls) else None


def boot_entry(base: int) -> EntryState:
    """How the resident pages at guest-physical `base` are entered: natively, paging off."""
    return EntryState(rip=base + resident().labels["boot"] - HOLE, registers={"rbp": base})


def write_resident(memory: MemoryRange, base: int, entry: EntryState) -> None:
    """Put the resident pages at guest-physical `base`, ready to start a guest at `entry`."""
    memory.store(base, resident().code)
    write_identity_table(memory, base + IDENTITY_PAGE * PAGE)
    vcpu = bytearray(VCPU_PAGE_SIZE)
    for name, value in (
        ("cr0", entry.cr0), ("cr3", entry.cr3), ("cr4", entry.cr4),
        ("gdt_base", entry.gdt[0]), ("gdt_limit", entry.gdt[1]), ("idt_limit", 0xFFFF),
    ):  # fmt: skip
        field = vcpu_page()[name]
        vcpu[field.offset : field.offset + field.total] = value.to_bytes(field.total, "little")
    memory.store(base + _VCPU * PAGE, bytes(vcpu))
    memory.store_u64(base + _GDT * PAGE + (FLAT_CODE & ~7), _FLAT_CODE_DESCRIPTOR)
    memory.store_u64(base + _GDT * PAGE + (FLAT_DATA & ~7), _FLAT_DATA_DESCRIPTOR)
    _write_private(memory, base, entry)


def _write_private(memory: MemoryRange, base: int, entry: EntryState) -> None:
    places = _variables()
    page = base + _PRIVATE * PAGE
    values = {
        "P_boot_code": entry.code.selector & ~3,
        "P_boot_data": entry.data.selector & ~3,
        "P_identity": base + IDENTITY_PAGE * PAGE,
        "P_lar_types": _LAR_TYPES,
        "P_lsl_types": _LSL_TYPES,
        "B_entry": entry.rip,
    }
    values |= {f"B_{name}": entry.registers.get(f"r{name[1:]}", 0) for name in _BOOT_WORDS}
    for name, value in values.items():
        memory.store_u32(page + places[name], value)
    for name, limit, start in (
        ("P_gdt_operand", _GDT_LIMIT, HOLE + _GDT * PAGE),
        ("P_idt_operand", _IDT_LIMIT, HOLE + _IDT * PAGE),
        ("P_native_gdt", _GDT_LIMIT, base + _GDT * PAGE),
    ):
        memory.store(page + places[name], limit.to_bytes(2, "little") + start.to_bytes(4, "little"))
    memory.store_u32(page + places["P_pic_base"], 8)
    memory.store_u32(page + places["P_pic_base"] + 4, 0x70)
    memory.store_u32(page + places["P_debug"] + 24, 0xFFFF0FF0)
    memory.store_u32(page + places["P_debug"] + 28, 0x400)
    memory.store_u64(page + places["P_pat"], 0x0007_0406_0007_0406)
