"""The guest-side code of the ABI on lguest: its place, its variables, and the call page that leads to it.

Everything lies in pages that the launcher keeps mapped at the top of every address space: code and
trap stubs (read-only, executable), the vCPU page, lguest_data, private variables, the stack for
entries from user mode, and the page table that maps everything to itself while the guest believes
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
from runtime.backends.lguest.descriptors import GUEST_PRIVILEGE
from runtime.backends.lguest.interface import ABI_HOST, interface
from runtime.backends.slotfile import SlotFile, read_slot_file
from runtime.boot.model import EntryState
from runtime.cpu import flags as fl
from runtime.memory import MemoryRange

__all__ = [
    "BACKEND_ID",
    "BOOT_ADDRESS_NAME",
    "CODE_PAGES",
    "HOLE",
    "IDENTITY_PAGE",
    "RESIDENT_PAGES",
    "Resident",
    "call_page",
    "caller_of",
    "place_of",
    "resident",
    "write_identity_table",
    "write_resident",
]

BACKEND_ID = 2
HOLE = 0xFFC0_0000
"""Linear address of the first page."""
PAGE = 4096
CODE_PAGES = 6
_STUB_OFFSET = 4 * PAGE
_STUB_SIZE = 16
_OPEN_OFFSET = 5 * PAGE
"""Code that may be interrupted lies behind everything else: the quiet range is one range."""
_OPEN_ROUTINE = "safe_send"
_VCPU, _LGUEST_DATA, _PRIVATE, _STACK, IDENTITY_PAGE = range(CODE_PAGES, CODE_PAGES + 5)
RESIDENT_PAGES = CODE_PAGES + 5
BOOT_ADDRESS_NAME = "boot"

_SOURCES = (
    "words32.s", "slots32.s", "flags32.s", "registers32.s", "tables32.s", "segments32.s",
    "transfers32.s", "io32.s", "time32.s", "traps32.s", "host32.s", "boot32.s",
)  # fmt: skip
_PLAIN_BARE = frozenset({"abi_query", "pte_write", "table_alloc", "table_release", "descriptor_write"})
"""Calls for which the bare page's code is right at any privilege."""
_FEATURES = ("clock", "alarm", "events", "console", "power", "vcpu_page")
_FLAT_CODE = ABI_HOST.kernel_code << 3 | GUEST_PRIVILEGE
_FLAT_DATA = ABI_HOST.kernel_data << 3 | GUEST_PRIVILEGE
_GUEST_ENTRIES = min(ABI_HOST.owned)
"""Entries of the real GDT that mirror the guest's."""
_BOOT_WORDS = ("eax", "ecx", "edx", "ebx", "esp", "esi")
_LAR_TYPES = sum(1 << kind for kind in (1, 2, 3, 4, 5, 9, 11, 12))
_LSL_TYPES = sum(1 << kind for kind in (1, 2, 3, 9, 11))
"""System descriptor types that LAR and LSL accept (SDM vol. 2)."""

_MESSAGES = {
    "OFF": "the guest powered off",
    "RESTART": "the guest restarts",
    "CRASH": "the guest says that it crashed",
    "TRIPLE": "triple fault: an exception could not be delivered, nor could the double fault",
    "INSIDE": "a fault on the guest's tables while its trap was being delivered",
    "V86": "the guest enters virtual-8086 mode, which lguest does not have",
}

_VARIABLES: tuple[tuple[str, int], ...] = (
    *((f"S_{name}", 4) for name in (
        "eax", "ecx", "edx", "ebx", "esi", "ds", "vector", "error", "nested", "eip", "cs", "flags",
        "user", "esp", "ss", "offset", "selector",
    )),
    ("P_return", 16), ("P_near", 4), ("P_ds", 4), ("P_eax", 4), ("P_site", 8),
    ("P_old_if", 4), ("P_old_flags", 4), ("P_nt", 4), ("P_synced", 4),
    ("P_tr_base", 4), ("P_ldt_base", 4), ("P_ldt_limit", 4), ("P_boot_code", 4), ("P_boot_data", 4),
    ("P_pic_expects", 8), ("P_pic_base", 8), ("P_pat", 8), ("P_debug", 32),
    ("P_deadline", 8), ("P_armed", 4), ("P_alarm_vector", 4), ("P_wall", 8),
    ("P_lar_types", 4), ("P_lsl_types", 4), ("P_identity", 4), ("P_lguest_data", 4), ("P_private", 4),
    *((f"B_{name}", 4) for name in (*_BOOT_WORDS, "entry")),
    ("P_gdt_copy", 32 * 8), ("P_text", 256),
)  # fmt: skip
"""Private variables and their sizes in bytes."""


@dataclass(frozen=True)
class Resident:
    """The assembled guest-side code."""

    code: bytes
    labels: Mapping[str, int]
    variables: Mapping[str, int]
    """Name -> offset in the private page."""
    messages: Mapping[str, int]


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


def _messages(start: int) -> dict[str, int]:
    places, at = {}, start
    for name, text in _MESSAGES.items():
        places[name] = at
        at += len(text) + 1
    return places


def _page_symbols(variables: Mapping[str, int], messages: Mapping[str, int]) -> dict[str, int]:
    """Everything that the assembly text names and that is not code."""
    known = interface()
    symbols = {name: HOLE + _PRIVATE * PAGE + offset for name, offset in variables.items()}
    shared = HOLE + _LGUEST_DATA * PAGE
    symbols |= {f"LD_{name}": shared + offset for name, (offset, _) in known.fields.items()}
    symbols |= {f"V_{field.name}": HOLE + _VCPU * PAGE + field.offset for field in vcpu_page().fields}
    symbols |= {f"HC_{call.name}": number for number, call in known.hypercalls.items()}
    symbols |= {f"MESSAGE_{name}": offset for name, offset in messages.items()}
    symbols |= {
        "HOLE": HOLE,
        "STUBS": HOLE + _STUB_OFFSET,
        "quiet_end": HOLE + _OPEN_OFFSET,
        "STACK_TOP": HOLE + (_STACK + 1) * PAGE,
        "FLAT_CS": _FLAT_CODE,
        "FLAT_DS": _FLAT_DATA,
        "GATE_SELECTOR": _FLAT_CODE << 16,
        "GUEST_ENTRIES": _GUEST_ENTRIES,
        "LAST_SELECTOR": (_GUEST_ENTRIES - 1) * 8,
        "TEXT_OFFSET": variables["P_text"],
    }
    return symbols


def _stub(vector: int, common: int) -> bytes:
    """PUSH error code (where hardware pushes none); PUSH vector and kind; JMP common."""
    known = interface()
    own = known.first_vector <= vector <= known.first_vector + known.controller_interrupt
    has_code = vector in fl.HAS_ERROR_CODE
    kind = vector | (0x100 if has_code else 0) | (0x200 if own else 0)
    code = (b"" if has_code else b"\x6a\x00") + b"\x68" + kind.to_bytes(4, "little") + b"\xe9"
    end = HOLE + _STUB_OFFSET + vector * _STUB_SIZE + len(code) + 4
    return (code + ((common - end) & 0xFFFFFFFF).to_bytes(4, "little")).ljust(_STUB_SIZE, b"\xcc")


@functools.cache
def _source() -> SlotFile:
    """The assembly text of all files, in order."""
    return read_slot_file(*(Path(__file__).with_name(name) for name in _SOURCES))


@functools.cache
def resident() -> Resident:
    """Assemble the code; the same for every machine, since its places are linear addresses."""
    text = _source()
    variables = _variables()
    messages = _messages(sum(size for _, size in _VARIABLES))
    symbols = _page_symbols(variables, messages)
    quiet = "\n".join(f"{name}:\n{body}" for name, body in text.routines.items() if name != _OPEN_ROUTINE)
    place = HOLE + _OPEN_OFFSET
    open_code = assemble(text.routines[_OPEN_ROUTINE], 32, place, symbols | {"fault_iret": HOLE})
    symbols |= {_OPEN_ROUTINE: place, "safe_point": open_code.labels["safe_point"]}
    built = assemble(quiet, 32, HOLE, symbols)
    labels = {**built.labels, _OPEN_ROUTINE: place}
    known_end = {"fault_iret": labels["fault_iret"]}
    open_code = assemble(text.routines[_OPEN_ROUTINE], 32, place, symbols | known_end)
    if len(built.code) > _STUB_OFFSET or open_code.labels["safe_point"] != symbols["safe_point"]:
        raise ValueError(f"the guest-side code takes {len(built.code)} bytes, {_STUB_OFFSET} are there")
    stubs = b"".join(_stub(vector, labels["common"]) for vector in range(256))
    code = (built.code.ljust(_STUB_OFFSET, b"\xcc") + stubs).ljust(_OPEN_OFFSET, b"\xcc") + open_code.code
    return Resident(code.ljust(CODE_PAGES * PAGE, b"\xcc"), labels, variables, messages)


_TWO_RETURNS = frozenset({"irq_enable", "irq_restore", "flags_write"})
_HALTS = frozenset({"halt", "safe_halt"})


@functools.cache
def call_page() -> bytes:
    """The 32-bit call page: short slots that enter the resident code by a far call."""
    spec = load_spec()
    text = _source()
    labels, known = resident().labels, interface()
    bare = bare_slots(32, spec)
    slots = dict(text.slots)
    for call in spec.calls:
        name = call.name
        if name in slots:
            continue
        if name not in text.routines:
            if name in _PLAIN_BARE:
                slots[name] = bare[name]
            continue
        request = "send_interrupts" if name in _TWO_RETURNS else "halt" if name in _HALTS else ""
        slots[name] = f"lcall {_FLAT_CODE}, {labels[name]}\n ret"
        if request:
            number = known.number(request)
            slots[name] += f"\n push eax\n mov eax, {number}\n int {known.vector}\n pop eax\n ret"
    features = sum(1 << feature.bit for feature in spec.features if feature.name in _FEATURES)
    return build_page(32, BACKEND_ID, slots, features=features)


_SHARED_ROUTINES = {
    "switch_tables": "cr0_write", "arm_clock": "alarm_set", "sync_selector": "segment_load",
    "safe_send": "iret", "crash": "shutdown",
}  # fmt: skip
"""Routines that several calls use: the one that their hypercalls are counted for."""


@functools.cache
def _routine_starts() -> tuple[list[int], list[str]]:
    text = _source()
    placed = sorted((resident().labels[name], name) for name in text.routines)
    return [start for start, _ in placed], [name for _, name in placed]


def caller_of(linear: int) -> str | None:
    """The ABI call to whose code an address of the resident pages belongs, None for other code."""
    if not HOLE <= linear < HOLE + CODE_PAGES * PAGE:
        return None
    starts, names = _routine_starts()
    name = names[bisect.bisect_right(starts, linear) - 1]
    name = _SHARED_ROUTINES.get(name, name)
    return name if any(call.name == name for call in load_spec().calls) else None


def write_identity_table(memory: MemoryRange, physical: int) -> None:
    """A page directory of 4 MiB pages that maps every linear address to itself, for user mode too."""
    present_write_user_large = 0xE7  # accessed and dirty as well
    for index in range(1024):
        memory.store_u32(physical + index * 4, index << 22 | present_write_user_large)


def write_resident(memory: MemoryRange, base: int, entry: EntryState) -> None:
    """Put the resident pages at guest-physical `base`, ready to start a guest at `entry`."""
    built = resident()
    memory.store(base, built.code)
    write_identity_table(memory, base + IDENTITY_PAGE * PAGE)
    vcpu = bytearray(VCPU_PAGE_SIZE)
    for name, value in (
        ("cr0", entry.cr0), ("cr3", entry.cr3), ("cr4", entry.cr4),
        ("gdt_base", entry.gdt[0]), ("gdt_limit", entry.gdt[1]), ("idt_limit", 0xFFFF),
    ):  # fmt: skip
        field = vcpu_page()[name]
        vcpu[field.offset : field.offset + field.total] = value.to_bytes(field.total, "little")
    memory.store(base + _VCPU * PAGE, bytes(vcpu))
    known = interface()
    data = bytearray(known.data_size)
    start, size = known.fields["hcall_status"]
    data[start : start + size] = bytes([known.ring_free]) * size
    memory.store(base + _LGUEST_DATA * PAGE, bytes(data))
    _write_private(memory, base, built, entry)


def _write_private(memory: MemoryRange, base: int, built: Resident, entry: EntryState) -> None:
    page = base + _PRIVATE * PAGE
    values = {
        "P_boot_code": entry.code.selector & ~3,
        "P_boot_data": entry.data.selector & ~3,
        "P_identity": base + IDENTITY_PAGE * PAGE,
        "P_lguest_data": base + _LGUEST_DATA * PAGE,
        "P_private": page,
        "P_lar_types": _LAR_TYPES,
        "P_lsl_types": _LSL_TYPES,
        "B_entry": entry.rip,
    }
    for name, value in values.items():
        memory.store_u32(page + built.variables[name], value)
    memory.store_u32(page + built.variables["P_pic_base"], 8)
    memory.store_u32(page + built.variables["P_pic_base"] + 4, 0x70)
    memory.store_u32(page + built.variables["P_debug"] + 24, 0xFFFF0FF0)
    memory.store_u32(page + built.variables["P_debug"] + 28, 0x400)
    memory.store_u64(page + built.variables["P_pat"], 0x0007_0406_0007_0406)
    for name, text in _MESSAGES.items():
        memory.store(page + built.messages[name], text.encode() + b"\0")


