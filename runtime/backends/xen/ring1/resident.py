"""The guest-side code of the ABI on Xen, i386: its place, its variables, and the call page that leads to it.

Its pages lie at the top of every address space, below Xen's own hole: code and trap stubs (read-only),
the vCPU page, Xen's shared_info, the console ring, private variables, the stack for entries from user mode,
and the page table that maps everything to itself while the guest believes that paging is off.
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
from runtime.backends.slotfile import SlotFile, read_slot_file
from runtime.backends.xen.layout import numbers, struct
from runtime.backends.xen.selectors import FLAT
from runtime.boot.model import EntryState
from runtime.cpu import flags as fl
from runtime.deprivileged import ring1
from runtime.memory import MemoryRange

__all__ = [
    "BACKEND_ID",
    "BOOT_ADDRESS_NAME",
    "CODE_PAGES",
    "CONSOLE_PAGE",
    "HOLE",
    "IDENTITY_PAGE",
    "PIRQ",
    "PRIVATE_PAGE",
    "RESIDENT_PAGES",
    "SHARED_PAGE",
    "Resident",
    "call_page",
    "caller_of",
    "place_of",
    "resident",
    "write_resident",
]

BACKEND_ID = 3
HOLE = 0xFFC0_0000
PAGE = 4096
BOOT_ADDRESS_NAME = "boot"
CODE_PAGES = 5
STUB_OFFSET, STUB_SIZE = 4 * PAGE, 16
VCPU_PAGE, SHARED_PAGE, CONSOLE_PAGE, PRIVATE_PAGE, STACK_PAGE, IDENTITY_PAGE = range(
    CODE_PAGES, CODE_PAGES + 6
)
RESIDENT_PAGES = CODE_PAGES + 6
PIRQ = 0
"""The physical interrupt of the domain's: the pin of its pair of 8259s."""
EVENT_KIND = 0x200 | 33
RETRY_NS = 1000
GUEST_ENTRIES = 32
"""Descriptors of the guest's GDT that are mirrored in the real one."""
FLAT_CS, FLAT_DS = FLAT[32]["kernel_cs"], FLAT[32]["kernel_ss"]
SHARED_FILES = (
    "slots32.s", "flags32.s", "registers32.s", "tables32.s", "segments32.s", "transfers32.s", "io32.s",
    "time32.s", "traps32.s",
)  # fmt: skip
"""What any kernel at privilege 1 needs, from the shared folder; words32.s says it in Xen's terms."""
PLAIN_BARE = frozenset({"abi_query", "pte_write", "table_alloc", "table_release", "descriptor_write"})
FEATURES = ("clock", "alarm", "events", "console", "power", "vcpu_page")
TWO_RETURNS = frozenset({"irq_enable", "irq_restore", "flags_write"})
HALTS = frozenset({"halt", "safe_halt"})
LAR_TYPES = sum(1 << kind for kind in (1, 2, 3, 4, 5, 9, 11, 12))
LSL_TYPES = sum(1 << kind for kind in (1, 2, 3, 9, 11))
"""System descriptor types that LAR and LSL accept (SDM vol. 2)."""
MESSAGES = {
    "TRIPLE": "triple fault: an exception could not be delivered, nor could the double fault",
    "INSIDE": "a fault on the guest's tables while its trap was being delivered",
    "V86": "the guest enters virtual-8086 mode, which a 64-bit Xen does not have",
}
BOOT_WORDS = ("eax", "ecx", "edx", "ebx", "esp", "esi")
VARIABLES: tuple[tuple[str, int], ...] = (
    *((f"S_{name}", 4) for name in (
        "eax", "ecx", "edx", "ebx", "esi", "ds", "vector", "error", "nested", "eip", "cs", "flags",
        "user", "esp", "ss", "offset", "selector",
    )),
    *((f"LD_{name}", 4) for name in ("irq_enabled", "irq_pending", "blocked_interrupts")),
    ("P_return", 16), ("P_near", 4), ("P_ds", 4), ("P_eax", 4), ("P_site", 8),
    ("P_old_if", 4), ("P_old_flags", 4), ("P_nt", 4), ("P_synced", 4),
    ("P_tr_base", 4), ("P_ldt_base", 4), ("P_ldt_limit", 4), ("P_boot_code", 4), ("P_boot_data", 4),
    ("P_pic_expects", 8), ("P_pic_base", 8), ("P_pat", 8), ("P_debug", 32),
    ("P_deadline", 8), ("P_armed", 4), ("P_alarm_vector", 4), ("P_wall", 8),
    ("P_lar_types", 4), ("P_lsl_types", 4), ("P_identity", 4), ("P_gdt_machine", 4), ("P_descriptor", 4),
    ("P_sources", 4), ("P_interest", 4), ("P_pic_bit", 4), ("P_alarm_bit", 4), ("P_alarm_port", 4),
    ("P_console_port", 4),
    ("P_argument", 16), ("P_mmuext", 16), ("P_gate", 16), ("P_message", 4),
    *((f"B_{name}", 4) for name in (*BOOT_WORDS, "entry")),
    ("P_gdt_copy", GUEST_ENTRIES * 8),
)  # fmt: skip
"""Private variables and their sizes in bytes."""
TABLES = (("HC", "hypercall"), ("MMUEXT", "mmuext"), ("SCHED", "sched"), ("EVENT", "event"), ("VIRQ", "virq"))
PHYSDEV = {"set_iopl": 6, "eoi": 12}
CONSOLE = {"out": 1024, "out_cons": 3080, "out_prod": 3084}
CONSOLE_OUT_SIZE = 2048


@dataclass(frozen=True)
class Resident:
    """The assembled guest-side code."""

    code: bytes
    labels: Mapping[str, int]
    variables: Mapping[str, int]
    """Name -> offset in the private page."""
    messages: Mapping[int, str]
    """What the code says when it gives up, by number."""


def _places() -> dict[str, int]:
    places, at = {}, 0
    for name, size in VARIABLES:
        places[name] = at
        at += size
    return places


def place_of(name: str) -> int:
    """Offset of a V_, P_ or LD_ variable from the start of the resident pages."""
    if name.startswith("V_"):
        return VCPU_PAGE * PAGE + vcpu_page().offset(name.removeprefix("V_"))
    return PRIVATE_PAGE * PAGE + _places()[name]


def _symbols(variables: Mapping[str, int]) -> dict[str, int]:
    """Everything that the assembly text names and that is not code."""
    shared, time = struct("shared_info", 32), struct("vcpu_time_info", 32)
    vcpu = struct("vcpu_info", 32)
    at_shared, at_console = HOLE + SHARED_PAGE * PAGE, HOLE + CONSOLE_PAGE * PAGE
    symbols = {name: HOLE + PRIVATE_PAGE * PAGE + offset for name, offset in variables.items()}
    symbols |= {f"XS_{name}": at_shared + offset for name, offset in shared.offsets.items()}
    symbols |= {f"XV_{name}": at_shared + offset for name, offset in vcpu.offsets.items()}
    symbols |= {
        f"XT_{name}": at_shared + vcpu.offsets["time"] + offset for name, offset in time.offsets.items()
    }
    symbols |= {f"XC_{name}": at_console + offset for name, offset in CONSOLE.items()}
    symbols |= {f"V_{field.name}": HOLE + VCPU_PAGE * PAGE + field.offset for field in vcpu_page().fields}
    for prefix, table in TABLES:
        symbols |= {f"{prefix}_{name}": number for name, number in numbers(table).items()}
    symbols |= {f"PHYSDEV_{name}": number for name, number in PHYSDEV.items()}
    symbols |= {f"MESSAGE_{name}": number for number, name in enumerate(MESSAGES, 1)}
    return symbols | {
        "HOLE": HOLE,
        "STUBS": HOLE + STUB_OFFSET,
        "STACK_TOP": HOLE + (STACK_PAGE + 1) * PAGE,
        "FLAT_CS": FLAT_CS,
        "FLAT_DS": FLAT_DS,
        "GATE_SELECTOR": FLAT_CS << 16,
        "GUEST_ENTRIES": GUEST_ENTRIES,
        "LAST_SELECTOR": (GUEST_ENTRIES - 1) * 8,
        "EVENT_KIND": EVENT_KIND,
        "RETRY_NS": RETRY_NS,
        "DOMID_SELF": 0x7FF0,
        "CONTROLLER_PIRQ": PIRQ,
        "CONSOLE_OUT_SIZE": CONSOLE_OUT_SIZE,
    }


def _stub(vector: int, common: int) -> bytes:
    """PUSH error code (where Xen pushes none); PUSH vector and kind; JMP common."""
    has_code = vector in fl.HAS_ERROR_CODE
    kind = vector | (0x100 if has_code else 0)
    code = (b"" if has_code else b"\x6a\x00") + b"\x68" + kind.to_bytes(4, "little") + b"\xe9"
    end = HOLE + STUB_OFFSET + vector * STUB_SIZE + len(code) + 4
    return (code + ((common - end) & 0xFFFFFFFF).to_bytes(4, "little")).ljust(STUB_SIZE, b"\xcc")


@functools.cache
def _source() -> SlotFile:
    """The assembly text of all files, in order: words first."""
    here, shared = Path(__file__).parent, Path(ring1.__path__[0])
    files = [
        here / "words32.s",
        *(shared / name for name in SHARED_FILES),
        here / "host32.s",
        here / "boot32.s",
    ]
    return read_slot_file(*files)


@functools.cache
def resident() -> Resident:
    """Assemble the code; the same for every machine, since its places are linear addresses."""
    variables = _places()
    text = "\n".join(f"{name}:\n{body}" for name, body in _source().routines.items())
    built = assemble(text, 32, HOLE, _symbols(variables))
    if len(built.code) > STUB_OFFSET:
        raise ValueError(f"the guest-side code takes {len(built.code)} bytes, {STUB_OFFSET} are there")
    stubs = b"".join(_stub(vector, built.labels["common"]) for vector in range(256))
    messages = dict(enumerate(MESSAGES.values(), 1))
    return Resident(built.code.ljust(STUB_OFFSET, b"\xcc") + stubs, built.labels, variables, messages)


@functools.cache
def call_page() -> bytes:
    """The 32-bit call page: short slots that enter the resident code by a far call."""
    spec = load_spec()
    text, labels, bare = _source(), resident().labels, bare_slots(32, spec)
    slots = dict(text.slots)
    for call in spec.calls:
        name = call.name
        if name in slots:
            continue
        if name not in text.routines:
            if name in PLAIN_BARE:
                slots[name] = bare[name]
            continue
        slots[name] = f"lcall {FLAT_CS}, {labels[name]}\n ret"
        second = "deliver" if name in TWO_RETURNS else "sleep" if name in HALTS else ""
        if second:
            slots[name] += f"\n lcall {FLAT_CS}, {labels[second]}\n ret"
    features = sum(1 << feature.bit for feature in spec.features if feature.name in FEATURES)
    return build_page(32, BACKEND_ID, slots, features=features)


SHARED_ROUTINES = {
    "switch_tables": "cr0_write", "arm_clock": "alarm_set", "load_descriptor": "segment_load",
    "load_gate": "soft_int", "invalidate": "tlb_invalidate", "flush": "tlb_flush_local", "sleep": "halt",
    "kick_console": "console_write", "crash": "shutdown",
}  # fmt: skip
"""Routines that several calls use: the one that their hypercalls are counted for."""


@functools.cache
def _routine_starts() -> tuple[list[int], list[str]]:
    placed = sorted((resident().labels[name], name) for name in _source().routines)
    return [start for start, _ in placed], [name for _, name in placed]


def caller_of(linear: int) -> str | None:
    """The ABI call to whose code an address of the resident pages belongs, None for other code."""
    if not HOLE <= linear < HOLE + CODE_PAGES * PAGE:
        return None
    starts, routines = _routine_starts()
    name = routines[bisect.bisect_right(starts, linear) - 1]
    name = SHARED_ROUTINES.get(name, name)
    return name if any(call.name == name for call in load_spec().calls) else None


def write_resident(
    memory: MemoryRange, base: int, entry: EntryState, gdt_machine: int, console_port: int
) -> None:
    """Put the resident pages at guest-physical `base`, ready to start a guest at `entry`."""
    built = resident()
    memory.store(base, built.code)
    for index in range(1024):  # 4 MiB pages that map everything to itself, accessed and dirty
        memory.store_u32(base + IDENTITY_PAGE * PAGE + index * 4, index << 22 | 0xE7)
    vcpu = bytearray(VCPU_PAGE_SIZE)
    for name, value in (
        ("cr0", entry.cr0), ("cr3", entry.cr3), ("cr4", entry.cr4),
        ("gdt_base", entry.gdt[0]), ("gdt_limit", entry.gdt[1]), ("idt_limit", 0xFFFF),
    ):  # fmt: skip
        field = vcpu_page()[name]
        vcpu[field.offset : field.offset + field.total] = value.to_bytes(field.total, "little")
    memory.store(base + VCPU_PAGE * PAGE, bytes(vcpu))
    page = base + PRIVATE_PAGE * PAGE
    values = {
        "P_boot_code": entry.code.selector & ~3,
        "P_boot_data": entry.data.selector & ~3,
        "P_identity": base + IDENTITY_PAGE * PAGE,
        "P_gdt_machine": gdt_machine,
        "P_console_port": console_port,
        "P_lar_types": LAR_TYPES,
        "P_lsl_types": LSL_TYPES,
        "B_entry": entry.rip,
        "P_pic_base": 8,
    }
    for name, value in values.items():
        memory.store_u32(page + built.variables[name], value)
    memory.store_u32(page + built.variables["P_pic_base"] + 4, 0x70)
    memory.store_u32(page + built.variables["P_debug"] + 24, 0xFFFF0FF0)
    memory.store_u32(page + built.variables["P_debug"] + 28, 0x400)
    memory.store_u64(page + built.variables["P_pat"], 0x0007_0406_0007_0406)
