"""The guest-side code of the ABI on lguest: its place, its variables, and the call page that leads to it.

Everything lies in pages that the launcher keeps mapped at the top of every address space: code and
trap stubs (read-only, executable), the vCPU page, lguest_data, private variables, the stack for
entries from user mode, and the page table that maps everything to itself while the guest believes
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
from runtime.backends.lguest.descriptors import GUEST_PRIVILEGE
from runtime.backends.lguest.interface import ABI_HOST, interface
from runtime.backends.slotfile import SlotFile
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
_OPEN_OFFSET = 5 * PAGE
"""Code that may be interrupted lies behind everything else: the quiet range is one range."""
_OPEN_ROUTINE = "safe_send"
_VCPU, _LGUEST_DATA, _PRIVATE, _STACK, IDENTITY_PAGE = range(CODE_PAGES, CODE_PAGES + 5)
RESIDENT_PAGES = CODE_PAGES + 5
BOOT_ADDRESS_NAME = "boot"

_FEATURES = ("clock", "alarm", "events", "console", "power", "vcpu_page")
_FLAT_CODE = ABI_HOST.kernel_code << 3 | GUEST_PRIVILEGE
_FLAT_DATA = ABI_HOST.kernel_data << 3 | GUEST_PRIVILEGE
_GUEST_ENTRIES = min(ABI_HOST.owned)
"""Entries of the real GDT that mirror the guest's."""
_MESSAGES = {
    "OFF": "the guest powered off",
    "RESTART": "the guest restarts",
    "CRASH": "the guest says that it crashed",
    "TRIPLE": "triple fault: an exception could not be delivered, nor could the double fault",
    "INSIDE": "a fault on the guest's tables while its trap was being delivered",
    "V86": "the guest enters virtual-8086 mode, which lguest does not have",
}

_VARIABLES: tuple[tuple[str, int], ...] = (
    ("P_wall", 8), ("P_lguest_data", 4), ("P_private", 4), ("P_gdt_copy", 32 * 8), ("P_text", 256),
)  # fmt: skip
"""Private variables of our own and their sizes in bytes."""


@dataclass(frozen=True)
class Resident:
    """The assembled guest-side code."""

    code: bytes
    labels: Mapping[str, int]
    variables: Mapping[str, int]
    """Name -> offset in the private page."""
    messages: Mapping[str, int]


@functools.cache
def _variables() -> dict[str, int]:
    return place_variables(_VARIABLES)


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
    symbols |= vcpu_symbols(HOLE + _VCPU * PAGE)
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


@functools.cache
def _source() -> SlotFile:
    """The assembly text of all files, in order."""
    return source(Path(__file__).parent, ("host", "boot"))


@functools.cache
def resident() -> Resident:
    """Assemble the code; the same for every machine, since its places are linear addresses."""
    text = _source()
    variables = _variables()
    messages = _messages(variables["P_text"] + 256)
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
    first = interface().first_vector
    own = range(first, first + interface().controller_interrupt + 1)
    stubs = trap_stubs(HOLE + _STUB_OFFSET, labels["common"], own)
    code = (built.code.ljust(_STUB_OFFSET, b"\xcc") + stubs).ljust(_OPEN_OFFSET, b"\xcc") + open_code.code
    return Resident(code.ljust(CODE_PAGES * PAGE, b"\xcc"), labels, variables, messages)


_TWO_RETURNS = frozenset({"irq_enable", "irq_restore", "flags_write"})
_HALTS = frozenset({"halt", "safe_halt"})


@functools.cache
def call_page() -> bytes:
    """The 32-bit call page: short slots that enter the resident code by a far call."""
    known = interface()
    slots = far_slots(_source(), resident().labels, _FLAT_CODE)
    for names, request in ((_TWO_RETURNS, "send_interrupts"), (_HALTS, "halt")):
        number = known.number(request)
        for name in names:
            slots[name] += f"\n push eax\n mov eax, {number}\n int {known.vector}\n pop eax\n ret"
    features = sum(1 << feature.bit for feature in load_spec().features if feature.name in _FEATURES)
    return build_page(32, BACKEND_ID, slots, features=features)


_SHARED_ROUTINES = {
    "switch_tables": "cr0_write", "arm_clock": "alarm_set", "sync_selector": "segment_load",
    "safe_send": "iret", "crash": "shutdown",
}  # fmt: skip
"""Routines that several calls use: the one that their hypercalls are counted for."""


@functools.cache
def _callers() -> CallerIndex:
    return CallerIndex(_source(), resident().labels, _SHARED_ROUTINES)


def caller_of(linear: int) -> str | None:
    """The ABI call to whose code an address of the resident pages belongs, None for other code."""
    return _callers().find(linear) if HOLE <= linear < HOLE + CODE_PAGES * PAGE else None


def write_resident(memory: MemoryRange, base: int, entry: EntryState) -> None:
    """Put the resident pages at guest-physical `base`, ready to start a guest at `entry`."""
    built = resident()
    memory.store(base, built.code)
    write_identity_table(memory, base + IDENTITY_PAGE * PAGE)
    write_vcpu_page(memory, base + _VCPU * PAGE, entry)
    known = interface()
    data = bytearray(known.data_size)
    start, size = known.fields["hcall_status"]
    data[start : start + size] = bytes([known.ring_free]) * size
    memory.store(base + _LGUEST_DATA * PAGE, bytes(data))
    _write_private(memory, base, built, entry)


def _write_private(memory: MemoryRange, base: int, built: Resident, entry: EntryState) -> None:
    page = base + _PRIVATE * PAGE
    values = first_values(entry, base + IDENTITY_PAGE * PAGE)
    values |= {"P_lguest_data": base + _LGUEST_DATA * PAGE, "P_private": page}
    write_first_values(memory, page, built.variables, values)
    for name, text in _MESSAGES.items():
        memory.store(page + built.messages[name], text.encode() + b"\0")


