"""The guest-side code of the ABI on lguest: its place, its variables, and the call page that leads to it.

Everything lies in pages that the launcher keeps mapped at the top of every address space: code and
trap stubs (read-only, executable), the vCPU page, lguest_data, private variables, the stack for
entries from user mode, and the page table that maps everything to itself while the guest believes
that paging is off.
"""

from __future__ import annotations

import functools
from pathlib import Path

from pvpatch.abi.asm import assemble
from pvpatch.abi.page import build_page
from pvpatch.abi.spec import load_spec
from runtime.backends.lguest.descriptors import GUEST_PRIVILEGE
from runtime.backends.lguest.interface import ABI_HOST, interface
from runtime.boot.model import EntryState
from runtime.deprivileged.callers import CallerIndex
from runtime.deprivileged.ring1 import guestside
from runtime.deprivileged.ring1.contents import (
    first_values,
    write_first_values,
    write_identity_table,
    write_vcpu_page,
)
from runtime.deprivileged.ring1.guestside import ENABLING, HALTING, HOLE, PAGE, GuestSide, Resident
from runtime.deprivileged.ring1.userslots import with_user_half
from runtime.memory import MemoryRange

__all__ = [
    "BACKEND_ID",
    "BOOT_ADDRESS_NAME",
    "CODE_PAGES",
    "HOLE",
    "IDENTITY_PAGE",
    "LENT_STACK",
    "RESIDENT_PAGES",
    "call_page",
    "caller_of",
    "place_of",
    "resident",
    "write_identity_table",
    "write_resident",
]

BACKEND_ID = 2
_OPEN_OFFSET = guestside.CODE_PAGES * PAGE
"""Code that may be interrupted lies behind everything else: the quiet range is one range."""
_OPEN_ROUTINE = "safe_send"
CODE_PAGES = guestside.CODE_PAGES + 1
BOOT_ADDRESS_NAME = "boot"

_FEATURES = ("clock", "alarm", "events", "console", "power", "vcpu_page")
_MESSAGES = {
    "OFF": "the guest powered off",
    "RESTART": "the guest restarts",
    "CRASH": "the guest says that it crashed",
    "TRIPLE": "triple fault: an exception could not be delivered, nor could the double fault",
    "INSIDE": "a fault on the guest's tables while its trap was being delivered",
    "V86": "the guest enters virtual-8086 mode, which lguest does not have",
}

_FIRST_VECTOR = interface().first_vector
_TEXT_SIZE = 256
"""The guest's own words, in front of ours."""
_SIDE = GuestSide(
    folder=Path(__file__).parent,
    files=("host", "boot"),
    data_pages=("vcpu", "lguest_data", "private", "stack", "identity"),
    variables=(
        ("P_wall", 8), ("P_lguest_data", 4), ("P_private", 4), ("P_gdt_copy", 32 * 8), ("P_text", _TEXT_SIZE),
        *((f"MESSAGE_{name}", len(text) + 1) for name, text in _MESSAGES.items()),
    ),
    flat_code=ABI_HOST.kernel_code << 3 | GUEST_PRIVILEGE,
    flat_data=ABI_HOST.kernel_data << 3 | GUEST_PRIVILEGE,
    guest_entries=min(ABI_HOST.owned),
    counted_for={
        "switch_tables": "cr0_write", "arm_clock": "alarm_set", "sync_selector": "segment_load",
        "safe_send": "iret", "crash": "shutdown",
    },
    code_pages=CODE_PAGES,
    own_vectors=range(_FIRST_VECTOR, _FIRST_VECTOR + interface().controller_interrupt + 1),
)  # fmt: skip
RESIDENT_PAGES = _SIDE.page_count
IDENTITY_PAGE = _SIDE.page("identity") // PAGE
place_of = _SIDE.place_of
LENT_STACK = _SIDE.lent_stack


def _symbols() -> dict[str, int]:
    """Everything that the assembly text names and that is not code."""
    known, shared = interface(), HOLE + _SIDE.page("lguest_data")
    symbols = _SIDE.symbols()
    symbols |= {f"LD_{name}": shared + offset for name, (offset, _) in known.fields.items()}
    symbols |= {f"HC_{call.name}": number for number, call in known.hypercalls.items()}
    symbols |= {f"MESSAGE_{name}": _SIDE.private[f"MESSAGE_{name}"] for name in _MESSAGES}
    return symbols | {"quiet_end": HOLE + _OPEN_OFFSET, "TEXT_OFFSET": _SIDE.private["P_text"]}


@functools.cache
def resident() -> Resident:
    """The assembled code: the quiet one, which is most of it, and what may be interrupted behind it."""
    place, text = HOLE + _OPEN_OFFSET, _SIDE.text.routines[_OPEN_ROUTINE]
    symbols = _symbols()
    open_code = assemble(text, 32, place, symbols | {"fault_iret": HOLE})
    symbols |= {_OPEN_ROUTINE: place, "safe_point": open_code.labels["safe_point"]}
    quiet = _SIDE.assemble(symbols, without=_OPEN_ROUTINE)
    labels = {**quiet.labels, _OPEN_ROUTINE: place}
    open_code = assemble(text, 32, place, symbols | {"fault_iret": labels["fault_iret"]})
    if open_code.labels["safe_point"] != symbols["safe_point"]:
        raise ValueError("the place of safe_point does not settle")
    return Resident((quiet.code + open_code.code).ljust(CODE_PAGES * PAGE, b"\xcc"), labels)


@functools.cache
def call_page() -> bytes:
    """The 32-bit call page: short slots that enter the resident code by a far call."""
    known = interface()
    slots = _SIDE.slots(resident().labels)
    for names, request in ((ENABLING, "send_interrupts"), (HALTING, "halt")):
        number = known.number(request)
        for name in names:
            slots[name] += f"\n push eax\n mov eax, {number}\n int {known.vector}\n pop eax\n ret"
    return with_user_half(build_page(32, BACKEND_ID, slots, features=load_spec().feature_mask(*_FEATURES)))


@functools.cache
def _callers() -> CallerIndex:
    return _SIDE.callers(resident().labels)


def caller_of(linear: int) -> str | None:
    """The ABI call to whose code an address of the resident pages belongs, None for other code."""
    return _callers().find(linear)


def write_resident(memory: MemoryRange, base: int, entry: EntryState) -> None:
    """Put the resident pages at guest-physical `base`, ready to start a guest at `entry`."""
    memory.store(base, resident().code)
    write_identity_table(memory, base + _SIDE.page("identity"))
    write_vcpu_page(memory, base + _SIDE.page("vcpu"), entry)
    known = interface()
    data = bytearray(known.data_size)
    start, size = known.fields["hcall_status"]
    data[start : start + size] = bytes([known.ring_free]) * size
    shared, page = base + _SIDE.page("lguest_data"), base + _SIDE.page("private")
    memory.store(shared, bytes(data))
    values = first_values(entry, base + _SIDE.page("identity"))
    values |= {"P_lguest_data": shared, "P_private": page}
    write_first_values(memory, page, _SIDE.private, values)
    for name, text in _MESSAGES.items():
        memory.store(page + _SIDE.private[f"MESSAGE_{name}"], text.encode() + b"\0")
