"""The guest-side code of the ABI on Xen: its place, its variables, and the call pages that lead to it.

Everything lies in pages that the domain's builder keeps mapped at two places in the kernel's address
space: at the end of Xen's hole for 64-bit code, and below 4 GiB for 32-bit code, which can name no
other. Code, trap stubs and the trap table are read-only; then come the vCPU page, private variables, the
real GDT, a stack, shared_info, and tables that map everything to itself while the guest believes that
paging is off.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pvpatch.abi.asm import assemble
from pvpatch.abi.layout import vcpu_page
from pvpatch.abi.page import bare_slots, build_page
from pvpatch.abi.spec import load_spec
from runtime.backends.slotfile import SlotFile, read_slot_file
from runtime.backends.xen.console import OUT_CONS, OUT_PROD
from runtime.backends.xen.layout import PAGE_SIZE, numbers, struct
from runtime.backends.xen.selectors import FLAT
from runtime.boot.model import EntryState
from runtime.cpu import flags as fl
from runtime.deprivileged.callers import CallerIndex
from runtime.memory import MemoryRange

__all__ = [
    "BACKEND_ID",
    "CODE_PAGES",
    "CONSOLE_PORT",
    "HOLE",
    "LOW_HOLE",
    "RESIDENT_PAGES",
    "Resident",
    "call_page",
    "caller_of",
    "identity_root",
    "page_of",
    "place_of",
    "resident",
    "write_resident",
]

BACKEND_ID = 3
HOLE = 0xFFFF_87FF_FFE0_0000
"""Linear address of the first page, in the last 2 MiB of Xen's hole."""
LOW_HOLE = 0xFFE0_0000
"""The same pages for 32-bit code."""
CODE_PAGES = 8
_STUBS, _TRAPS = 5 * PAGE_SIZE, 6 * PAGE_SIZE
_STUB_SIZE = 16
_PAGES = ("vcpu", "private", "gdt", "stack", "shared", "console", "identity", "identity_low")
RESIDENT_PAGES = CODE_PAGES + len(_PAGES)
_SOURCES = (
    "words64.s", "identification64.s", "services64.s", "tables64.s", "traps64.s", "transfers64.s",
)  # fmt: skip
_FEATURES = ("clock", "alarm", "events", "console", "power", "vcpu_page")
_CODE32, _CODE64, _DATA = 0xE023, FLAT[64]["kernel_cs"], FLAT[64]["kernel_ss"]
_WIDE_RESULT = frozenset({"clock_ns", "wallclock_ns"})
_WIDE_ARGUMENT = frozenset({"alarm_set"})
_FORCED_DPL = {fl.BP: 3, fl.OV: 3}
_MASKS_EVENTS = 4
_LAR_TYPES = sum(1 << kind for kind in (2, 9, 11, 12))
_LSL_TYPES = sum(1 << kind for kind in (2, 9, 11))
"""System descriptor types that LAR and LSL accept in long mode (SDM vol. 2)."""
LINE_PORT, CONSOLE_PORT = 63, 62
"""The event channels of the pair of 8259s and of the console ring; the builder binds them."""

_MESSAGES = {
    "TRIPLE": "triple fault: an exception could not be delivered, nor could the double fault\n",
    "NARROW": "the guest turns paging on without long mode: this domain's tables have four levels\n",
    "TRAP": "an exception or INT n before long mode, which this domain cannot deliver\n",
    "BASE": "the guest loads a 32-bit segment with a base: this domain's are flat\n",
    "FRAME": "the guest returns to a context that the CPU refuses\n",
}
_VARIABLES: tuple[tuple[str, int], ...] = (
    *((f"S_{name}", 8) for name in (
        "rax", "rcx", "rdx", "rsi", "rdi", "r10", "r11", "vector", "error", "rip", "cs", "flags", "rsp", "ss",
        "target", "user", "nested", "kind",
    )),
    ("P_frame", 72), ("P_mmuext", 72), ("P_invlpg", 24), ("P_one_trap", 32), ("P_poll", 24),
    ("P_bind_timer", 16), ("P_sysenter_callback", 16), ("P_gdt_frame", 8), ("P_gdt_physical", 8),
    ("P_identity", 8), ("P_entry", 8), ("P_events", 8), ("P_timer_port", 8), ("P_line_port", 8),
    ("P_pic", 16), ("P_star", 8), ("P_lstar", 8), ("P_cstar", 8), ("P_fmask", 8), ("P_gs", 8),
    ("P_kernel_gs", 8), ("P_user_gs", 8), ("P_user_rsp", 8), ("P_sysenter_cs", 8), ("P_sysenter_esp", 8),
    ("P_sysenter_eip", 8), ("P_console_port", 8), ("P_pat", 8), ("P_aux", 8), ("P_tr_base", 8),
    ("P_ldt_base", 8), ("P_ldt_limit", 8), ("P_changed", 8),
    ("P_code_long", 8), ("P_raise_mask", 8), ("P_raise_error", 8), ("P_raise_vector", 8), ("P_raise_rip", 8),
    ("P_deadline", 8), ("P_armed", 8), ("P_alarm_vector", 8), ("P_alarm_masked", 8), ("P_alarm_held", 8),
    ("P_reason", 8),
)  # fmt: skip
"""Private variables and their sizes in bytes."""
_PLAIN = frozenset({
    "abi_query", "pte_write", "table_alloc", "table_release", "descriptor_write", "kernel_stack_set", "yield",
    "tsc_read", "tscp_read", "pmc_read", "arpl",
    "in8", "in16", "in32", "out16", "out32",
    *(f"{way}{size}" for way in ("ins", "outs") for size in (8, 16, 32)),
})  # fmt: skip
"""Calls for which the bare page's code is right here too: port instructions fault and Xen answers them."""
_UNDEFINED = frozenset({
    "fsbase_read", "fsbase_write", "gsbase_read", "gsbase_write", "xcr_read", "xcr_write", "monitor", "mwait",
    "safe_mwait", "pcid_invalidate", "user_access_allow", "user_access_forbid", "xsaves", "xrstors",
})  # fmt: skip
"""Instructions of features that CPUID hides: invalid, as on a CPU without them."""
_NOTHING = frozenset({"cache_writeback", "cache_invalidate"})


@dataclass(frozen=True)
class Resident:
    """The assembled guest-side code."""

    code: bytes
    labels: Mapping[str, int]


def page_of(name: str) -> int:
    """Offset of a page of data from the start of the resident pages."""
    return (CODE_PAGES + _PAGES.index(name)) * PAGE_SIZE


@functools.cache
def _variables() -> dict[str, int]:
    """Offset of every variable and message from the start of the resident pages."""
    places = {f"V_{field.name}": page_of("vcpu") + field.offset for field in vcpu_page().fields}
    at = page_of("private")
    for name, size in _VARIABLES:
        places[name] = at
        at += size
    for name, text in _MESSAGES.items():
        places[f"MESSAGE_{name}"] = at
        at += len(text) + 1
    if at > page_of("gdt"):
        raise ValueError("the private variables do not fit into their page")
    places["P_gdt"] = page_of("gdt")
    return places


def place_of(name: str) -> int:
    """Offset of a V_ or P_ variable from the start of the resident pages."""
    return _variables()[name]


def _shared() -> dict[str, int]:
    """The words of shared_info that the code uses."""
    page, info, time = struct("shared_info", 64), struct("vcpu_info", 64), struct("vcpu_time_info", 64)
    start = page_of("shared")
    ticks = start + info.offsets["time"]
    return {
        "I_mask": start + info.offsets["upcall_mask"],
        "I_pending": start + info.offsets["upcall_pending"],
        "I_selector": start + info.offsets["pending_sel"],
        "I_cr2": start + info.offsets["cr2"],
        "I_time_version": ticks + time.offsets["version"],
        "I_time_tsc": ticks + time.offsets["tsc_timestamp"],
        "I_time_ns": ticks + time.offsets["system_time"],
        "I_time_mul": ticks + time.offsets["tsc_to_system_mul"],
        "I_time_shift": ticks + time.offsets["tsc_shift"],
        "E_pending": start + page.offsets["evtchn_pending"],
        "E_wc_sec": start + page.offsets["wc_sec"],
        "E_wc_nsec": start + page.offsets["wc_nsec"],
        "E_wc_sec_hi": start + page.offsets["wc_sec_hi"],
    }


def _symbols() -> dict[str, int]:
    """Everything that the assembly text names and that is not code."""
    places = _variables() | _shared()
    symbols = {name: HOLE + offset for name, offset in places.items()}
    symbols |= {f"PLACE_{name}": offset - page_of("vcpu") for name, offset in _variables().items()}
    symbols |= {f"HC_{name}": number for name, number in numbers("hypercall").items()}
    symbols |= {f"SCHED_{name}": number for name, number in numbers("sched").items()}
    symbols |= {f"EVENT_{name}": number for name, number in numbers("event").items()}
    return symbols | {
        "CONSOLE": HOLE + page_of("console"),
        "RING_out_cons": OUT_CONS,
        "RING_out_prod": OUT_PROD,
        "VARIABLES": HOLE + page_of("vcpu"),
        "STACK_TOP": HOLE + page_of("stack") + PAGE_SIZE,
        "STUBS": HOLE + _STUBS,
        "TRAPS": HOLE + _TRAPS,
        "FLAT_CODE64": _CODE64 & ~3,
        "FLAT_CODE32": _CODE32 & ~3,
        "FLAT_DATA": _DATA,
        "LAR_TYPES": _LAR_TYPES,
        "LSL_TYPES": _LSL_TYPES,
    }


@functools.cache
def _source() -> SlotFile:
    return read_slot_file(*(Path(__file__).parent / name for name in _SOURCES))


def _narrow_entry(name: str) -> str:
    """The entry of a call from 32-bit code: upper halves of registers mean nothing there."""
    widen = "".join(f" mov {r}, {r}\n" for r in ("esp", "eax", "ecx", "edx", "ebx", "esi", "edi"))
    if name in _WIDE_ARGUMENT:
        widen += " push rdx\n shl rdx, 32\n lea rax, [rax+rdx]\n pop rdx\n"
    after = " mov rdx, rax\n shr rdx, 32\n" if name in _WIDE_RESULT else ""
    if name in _WIDE_RESULT:
        after = " pushfq\n" + after + " popfq\n"
    return f"{widen} call {name}\n{after} retf\n"


def _narrow_calls() -> tuple[str, ...]:
    """Calls that 32-bit code reaches by a far call and that return."""
    there = set(_source().routines) - {"far_call", "soft_int", "swapgs", "cr8_read", "cr8_write"}
    return tuple(call.name for call in load_spec().calls if call.kind == "call" and call.name in there)


@functools.cache
def resident() -> Resident:
    """Assemble the guest-side code. Raises `AsmError` for text that does not verify."""
    text = "".join(f"{name}:\n{body}" for name, body in _source().routines.items())
    text += "".join(f"narrow_{name}:\n{_narrow_entry(name)}" for name in _narrow_calls())
    built = assemble(text, 64, HOLE, _symbols())
    if len(built.code) > _STUBS:
        raise ValueError(f"the guest-side code takes {len(built.code)} bytes, {_STUBS} are there")
    stubs = b"".join(_stub(vector, built.labels["common"]) for vector in range(256))
    table = b"".join(_trap(vector) for vector in range(256)) + bytes(16)
    code = built.code.ljust(_STUBS, b"\xcc") + stubs + table
    return Resident(code.ljust(CODE_PAGES * PAGE_SIZE, b"\xcc"), built.labels)


def _stub(vector: int, common: int) -> bytes:
    """`push kind; jmp common` for one vector."""
    kind = vector | (0x100 if vector in fl.HAS_ERROR_CODE else 0)
    end = HOLE + _STUBS + vector * _STUB_SIZE + 10
    code = b"\x68" + kind.to_bytes(4, "little") + b"\xe9" + (common - end & 0xFFFFFFFF).to_bytes(4, "little")
    return code.ljust(_STUB_SIZE, b"\xcc")


def _trap(vector: int) -> bytes:
    """struct trap_info: every trap masks events."""
    flags = _FORCED_DPL.get(vector, 0) | _MASKS_EVENTS
    address = HOLE + _STUBS + vector * _STUB_SIZE
    return bytes(struct("trap_info", 64).pack(vector=vector, flags=flags, cs=_CODE64, address=address))


@functools.cache
def call_page(width: int) -> bytes:
    """The call page of one width: short slots that enter the resident code."""
    spec = load_spec()
    labels = resident().labels
    bare = bare_slots(width, spec)
    narrow = _narrow_calls()
    slots = {}
    for call in spec.calls:
        name = call.name
        if name in _PLAIN:
            slots[name] = bare[name]
        elif name in _NOTHING:
            slots[name] = "ret"
        elif width == 64 and name in labels:
            slots[name] = f" jmp [rip+where]\nwhere:\n .quad {labels[name]}"
        elif width == 32 and name in narrow:
            slots[name] = f" lcall {_CODE64}, {_low(labels[f'narrow_{name}'])}\n ret"
        elif width == 32 and name in ("far_jump", "far_return"):
            slots[name] = f" lcall {_CODE64}, {_low(labels['far_jump32'])}"
        elif width == 32 and name == "far_call":
            slots[name] = f" lcall {_CODE64}, {_low(labels['far_call32'])}"
        elif name in _UNDEFINED or call.kind == "jump" or not call.results:
            slots[name] = "ud2"
    return build_page(width, BACKEND_ID, slots, features=spec.feature_mask(*_FEATURES))


def _low(address: int) -> int:
    return address - HOLE + LOW_HOLE


_SHARED_ROUTINES = {
    "load_base": "cr3_write", "leave": "iret", "transfer": "iret", "unmask": "irq_enable",
    "set_base": "msr_write", "mirror_one": "gdt_load", "crash": "shutdown",
}  # fmt: skip
"""Routines that several calls use: the one that their hypercalls are counted for."""


@functools.cache
def _callers() -> CallerIndex:
    return CallerIndex(_source(), resident().labels, _SHARED_ROUTINES, range(HOLE, HOLE + _STUBS))


def caller_of(linear: int) -> str | None:
    """The ABI call to whose code an address of the resident pages belongs, None for other code."""
    if LOW_HOLE <= linear < LOW_HOLE + _STUBS:
        linear += HOLE - LOW_HOLE
    return _callers().find(linear)


# -- what lies in the pages at the start ---------------------------------------------------------


def identity_root(base: int) -> int:
    """Frame number of the tables that map the first 4 GiB to themselves."""
    return (base + page_of("identity")) // PAGE_SIZE


def write_identity(memory: MemoryRange, base: int) -> None:
    """One top table, one of gigabyte pages; accessed and dirty already."""
    memory.store_u64(base + page_of("identity"), base + page_of("identity_low") | 0x27)
    for index in range(4):
        memory.store_u64(base + page_of("identity_low") + index * 8, index << 30 | 0xE7)


def write_resident(memory: MemoryRange, base: int, entry: EntryState) -> None:
    """Put the resident pages at guest-physical `base`, ready to start a guest at `entry`."""
    memory.store(base, resident().code)
    write_identity(memory, base)
    values = {
        "V_cr0": entry.cr0 & 0xFFFFFFFF, "V_cr3": entry.cr3, "V_cr4": entry.cr4,
        "V_gdt_base": entry.gdt[0], "V_gdt_limit": entry.gdt[1],
        "V_efer": 0x500 if entry.long_mode else 0,
        "P_code_long": 1 if entry.long_mode else 0,
        "P_entry": entry.rip, "P_identity": identity_root(base), "P_line_port": LINE_PORT,
        "P_console_port": CONSOLE_PORT,
        "P_gdt_frame": (base + page_of("gdt")) // PAGE_SIZE, "P_gdt_physical": base + page_of("gdt"),
        "P_pat": 0x0007_0406_0007_0406,
    }  # fmt: skip
    places = _variables()
    for name, value in values.items():
        size = 4 if name == "V_gdt_limit" else 8
        memory.store(base + places[name], value.to_bytes(size, "little"))
    for name, text in _MESSAGES.items():
        memory.store(base + places[f"MESSAGE_{name}"], text.encode() + b"\0")
    memory.store_u32(base + places["V_idt_limit"], 0)
    code, data = entry.code.selector & ~3, entry.data.selector & ~3
    for index in range(6):
        memory.store_u32(base + places["V_segments"] + 4 * index, code if index == fl.CS else data)
    memory.store_u32(base + places["P_pic"] + 4, 8)
    memory.store_u32(base + places["P_pic"] + 12, 0x70)
    _write_structures(memory, base)


def _write_structures(memory: MemoryRange, base: int) -> None:
    """The arguments of hypercalls, as far as they are always the same."""
    places, commands = _variables(), numbers("mmuext")
    operations = ("new_baseptr", "new_user_baseptr", "tlb_flush_local")
    for index, name in enumerate(operations):
        memory.store_u32(base + places["P_mmuext"] + index * struct("mmuext_op", 64).size, commands[name])
    memory.store_u32(base + places["P_invlpg"], commands["invlpg_local"])
    memory.store(base + places["P_one_trap"] + 2, _CODE64.to_bytes(2, "little"))
    callback = numbers("callback")["sysenter"] | 1 << 16
    memory.store_u32(base + places["P_sysenter_callback"], callback)
