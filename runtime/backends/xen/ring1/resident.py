"""The guest-side code of the ABI on Xen, i386: its place, its variables, and the call page that leads to it.

Its pages lie at the top of every address space, below Xen's own hole: code and trap stubs (read-only),
the vCPU page, Xen's shared_info, the console ring, private variables, the stack for entries from user mode,
and the page table that maps everything to itself while the guest believes that paging is off.
"""

from __future__ import annotations

import functools
from pathlib import Path

from pvpatch.abi.page import build_page
from pvpatch.abi.spec import load_spec
from runtime.backends.xen.layout import numbers, struct
from runtime.backends.xen.selectors import FLAT
from runtime.boot.model import EntryState
from runtime.deprivileged.callers import CallerIndex
from runtime.deprivileged.ring1.contents import (
    first_values,
    write_first_values,
    write_identity_table,
    write_vcpu_page,
)
from runtime.deprivileged.ring1.guestside import (
    CODE_PAGES,
    ENABLING,
    HALTING,
    HOLE,
    OWN_INTERRUPT,
    PAGE,
    GuestSide,
    Resident,
)
from runtime.deprivileged.ring1.userslots import with_user_half
from runtime.memory import MemoryRange

__all__ = [
    "BACKEND_ID",
    "BOOT_ADDRESS_NAME",
    "CODE_PAGES",
    "CONSOLE_PAGE",
    "GUEST_ENTRIES",
    "HOLE",
    "IDENTITY_PAGE",
    "LENT_STACK",
    "PIRQ",
    "RESIDENT_PAGES",
    "SHARED_PAGE",
    "call_page",
    "caller_of",
    "message",
    "place_of",
    "resident",
    "write_resident",
]

BACKEND_ID = 3
BOOT_ADDRESS_NAME = "boot"
PIRQ = 0
"""The physical interrupt of the domain's: the pin of its pair of 8259s."""
_EVENT_VECTOR = 33
_RETRY_NS = 1000
GUEST_ENTRIES = 32
_FEATURES = ("clock", "alarm", "events", "console", "power", "vcpu_page")
_MESSAGES = {
    "TRIPLE": "triple fault: an exception could not be delivered, nor could the double fault",
    "INSIDE": "a fault on the guest's tables while its trap was being delivered",
    "V86": "the guest enters virtual-8086 mode, which a 64-bit Xen does not have",
}
_TABLES = (
    ("HC", "hypercall"), ("MMUEXT", "mmuext"), ("SCHED", "sched"), ("EVENT", "event"), ("VIRQ", "virq"),
)  # fmt: skip
_PHYSDEV = {"set_iopl": 6, "eoi": 12}
_CONSOLE = {"out": 1024, "out_cons": 3080, "out_prod": 3084}
_CONSOLE_OUT_SIZE = 2048
_SIDE = GuestSide(
    folder=Path(__file__).parent,
    files=("host", "boot"),
    data_pages=("vcpu", "shared", "console", "private", "stack", "identity"),
    variables=(
        *((f"LD_{name}", 4) for name in ("irq_enabled", "irq_pending", "blocked_interrupts")),
        ("P_wall", 8), ("P_gdt_machine", 4), ("P_descriptor", 4),
        ("P_sources", 4), ("P_interest", 4), ("P_pic_bit", 4), ("P_alarm_bit", 4), ("P_alarm_port", 4),
        ("P_console_port", 4), ("P_argument", 16), ("P_mmuext", 16), ("P_gate", 16), ("P_message", 4),
        ("P_gdt_copy", GUEST_ENTRIES * 8),
    ),
    flat_code=FLAT[32]["kernel_cs"],
    flat_data=FLAT[32]["kernel_ss"],
    guest_entries=GUEST_ENTRIES,
    counted_for={
        "switch_tables": "cr0_write", "arm_clock": "alarm_set", "load_descriptor": "segment_load",
        "load_gate": "soft_int", "invalidate": "tlb_invalidate", "flush": "tlb_flush_local", "sleep": "halt",
        "kick_console": "console_write", "crash": "shutdown",
    },
)  # fmt: skip
RESIDENT_PAGES = _SIDE.page_count
SHARED_PAGE, CONSOLE_PAGE, IDENTITY_PAGE = (
    _SIDE.page(name) // PAGE for name in ("shared", "console", "identity")
)
place_of = _SIDE.place_of
LENT_STACK = _SIDE.lent_stack


def _symbols() -> dict[str, int]:
    """Everything that the assembly text names and that is not code."""
    shared, time = struct("shared_info", 32), struct("vcpu_time_info", 32)
    vcpu = struct("vcpu_info", 32)
    at_shared, at_console = HOLE + _SIDE.page("shared"), HOLE + _SIDE.page("console")
    symbols = _SIDE.symbols()
    symbols |= {f"XS_{name}": at_shared + offset for name, offset in shared.offsets.items()}
    symbols |= {f"XV_{name}": at_shared + offset for name, offset in vcpu.offsets.items()}
    symbols |= {
        f"XT_{name}": at_shared + vcpu.offsets["time"] + offset for name, offset in time.offsets.items()
    }
    symbols |= {f"XC_{name}": at_console + offset for name, offset in _CONSOLE.items()}
    for prefix, table in _TABLES:
        symbols |= {f"{prefix}_{name}": number for name, number in numbers(table).items()}
    symbols |= {f"PHYSDEV_{name}": number for name, number in _PHYSDEV.items()}
    symbols |= {f"MESSAGE_{name}": number for number, name in enumerate(_MESSAGES, 1)}
    return symbols | {
        "EVENT_KIND": OWN_INTERRUPT | _EVENT_VECTOR,
        "RETRY_NS": _RETRY_NS,
        "DOMID_SELF": 0x7FF0,
        "CONTROLLER_PIRQ": PIRQ,
        "CONSOLE_OUT_SIZE": _CONSOLE_OUT_SIZE,
    }


def message(number: int) -> str:
    """What the code says when it gives up, by the number in P_message."""
    return dict(enumerate(_MESSAGES.values(), 1)).get(number, "the guest says that it crashed")


@functools.cache
def resident() -> Resident:
    """The assembled code."""
    return _SIDE.assemble(_symbols())


@functools.cache
def call_page() -> bytes:
    """The 32-bit call page: short slots that enter the resident code by a far call."""
    labels = resident().labels
    slots = _SIDE.slots(labels)
    for names, routine in ((ENABLING, "deliver"), (HALTING, "sleep")):
        for name in names:
            slots[name] += f"\n {_SIDE.enter(labels[routine])}"
    return with_user_half(build_page(32, BACKEND_ID, slots, features=load_spec().feature_mask(*_FEATURES)))


@functools.cache
def _callers() -> CallerIndex:
    return _SIDE.callers(resident().labels)


def caller_of(linear: int) -> str | None:
    """The ABI call to whose code an address of the resident pages belongs, None for other code."""
    return _callers().find(linear)


def write_resident(
    memory: MemoryRange, base: int, entry: EntryState, gdt_machine: int, console_port: int
) -> None:
    """Put the resident pages at guest-physical `base`, ready to start a guest at `entry`."""
    memory.store(base, resident().code)
    write_identity_table(memory, base + _SIDE.page("identity"))
    write_vcpu_page(memory, base + _SIDE.page("vcpu"), entry)
    values = first_values(entry, base + _SIDE.page("identity"))
    values |= {"P_gdt_machine": gdt_machine, "P_console_port": console_port}
    write_first_values(memory, base + _SIDE.page("private"), _SIDE.private, values)
