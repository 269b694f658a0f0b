"""The guest-side code at privilege 1: what a backend adds to the shared text, assembled and laid out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from pathlib import Path

from pvpatch.abi.asm import assemble
from pvpatch.abi.layout import vcpu_page
from pvpatch.abi.page import bare_slots
from pvpatch.abi.spec import load_spec
from runtime.backends.slotfile import SlotFile, read_slot_file
from runtime.cpu import flags as fl
from runtime.deprivileged.callers import CallerIndex

__all__ = [
    "CODE_PAGES",
    "ENABLING",
    "HALTING",
    "HOLE",
    "OWN_INTERRUPT",
    "PAGE",
    "STUB_SIZE",
    "GuestSide",
    "Resident",
]

HOLE = 0xFFC0_0000
"""Linear address of the first page; the code and the trap stubs lie there, then the data pages."""
PAGE = 4096
_STUB_OFFSET = 4 * PAGE
STUB_SIZE = 16
CODE_PAGES = 5
"""Pages of code and trap stubs, to which a backend may add."""
_FILES = ("slots", "flags", "registers", "tables", "segments", "transfers", "io", "time", "traps")
_PLAIN_BARE = frozenset({"abi_query", "pte_write", "table_alloc", "table_release", "descriptor_write"})
"""Calls for which the bare page's code is right at any privilege."""
_HAS_ERROR_CODE, OWN_INTERRUPT = 0x100, 0x200
"""What a trap's kind says beside the vector."""
ENABLING = frozenset({"irq_enable", "irq_restore", "flags_write"})
HALTING = frozenset({"halt", "safe_halt"})
"""Calls whose routine returns one byte further where the slot, in the guest's own segment, has more to do."""

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
    *((f"B_{name}", 4) for name in ("eax", "ecx", "edx", "ebx", "esp", "ebp", "esi", "edi", "entry")),
)  # fmt: skip
"""Private variables that the shared files use, and their sizes in bytes."""


@dataclass(frozen=True)
class Resident:
    """The assembled guest-side code."""

    code: bytes
    labels: Mapping[str, int]


@dataclass(frozen=True)
class GuestSide:
    """What one backend's guest-side code is made of."""

    folder: Path
    files: tuple[str, ...]
    """Its assembly files beside words32.s, without `32.s`; one replaces the shared file of the same name."""
    data_pages: tuple[str, ...]
    """Names of the pages behind the code, in order; `vcpu`, `private`, `stack` and `identity` among them."""
    variables: tuple[tuple[str, int], ...]
    """Its own private variables and their sizes in bytes."""
    flat_code: int
    flat_data: int
    """Selectors of the flat segments that the code runs in."""
    guest_entries: int
    """Entries of the real GDT that mirror the guest's."""
    counted_for: Mapping[str, str]
    """Routines that several calls use: the one that their exits are counted for."""
    code_pages: int = CODE_PAGES
    own_vectors: range = field(default=range(0))
    """Vectors of the hypervisor's own interrupts."""

    # -- places ------------------------------------------------------------------------------------

    @property
    def page_count(self) -> int:
        """All resident pages."""
        return self.code_pages + len(self.data_pages)

    def page(self, name: str) -> int:
        """Offset of a data page from the start of the resident pages."""
        return (self.code_pages + self.data_pages.index(name)) * PAGE

    @property
    def lent_stack(self) -> int:
        """Offset of the end of what a cell's call is lent: half of the stack for entries from user mode, on
        which nothing lives while the kernel runs."""
        return self.page("stack") + PAGE // 2

    @cached_property
    def private(self) -> dict[str, int]:
        """Name of a private variable to its offset in the private page, the backend's own last.

        Raises ValueError if they do not fit.
        """
        variables = (*_VARIABLES, *self.variables)
        ends = list(accumulate(size for _, size in variables))
        if ends[-1] > PAGE:
            raise ValueError(f"the private variables take {ends[-1]} bytes, a page is there")
        return {name: end - size for (name, size), end in zip(variables, ends, strict=True)}

    def place_of(self, name: str) -> int:
        """Offset of a field of the vCPU page (V_NAME) or a private variable from the start of the pages."""
        if name.startswith("V_"):
            return self.page("vcpu") + vcpu_page().offset(name.removeprefix("V_"))
        return self.page("private") + self.private[name]

    # -- code --------------------------------------------------------------------------------------

    @cached_property
    def text(self) -> SlotFile:
        """The backend's words, the shared text, then the backend's own files, as one."""
        shared = (Path(__file__).with_name(f"{name}32.s") for name in _FILES if name not in self.files)
        own = (self.folder / f"{name}32.s" for name in self.files)
        return read_slot_file(self.folder / "words32.s", *shared, *own)

    def symbols(self) -> dict[str, int]:
        """What the shared text names and that is not code."""
        names = (*(f"V_{item.name}" for item in vcpu_page().fields), *self.private)
        return {name: HOLE + self.place_of(name) for name in names} | {
            "HOLE": HOLE,
            "STUBS": HOLE + _STUB_OFFSET,
            "STACK_TOP": HOLE + self.page("stack") + PAGE,
            "FLAT_CS": self.flat_code,
            "FLAT_DS": self.flat_data,
            "GATE_SELECTOR": self.flat_code << 16,
            "GUEST_ENTRIES": self.guest_entries,
            "LAST_SELECTOR": (self.guest_entries - 1) * 8,
        }

    def assemble(self, symbols: Mapping[str, int], *, without: str = "", behind: str = "") -> Resident:
        """The code and the trap stubs: the same for every machine, since their places are linear addresses.

        `without` names a routine that lies elsewhere, `behind` is text that follows the last routine.
        Raises ValueError if the code is too long.
        """
        routines = (f"{name}:\n{body}" for name, body in self.text.routines.items() if name != without)
        built = assemble("\n".join((*routines, behind)), 32, HOLE, symbols)
        if len(built.code) > _STUB_OFFSET:
            raise ValueError(f"the guest-side code takes {len(built.code)} bytes, {_STUB_OFFSET} are there")
        stubs = b"".join(self._stub(vector, built.labels["common"]) for vector in range(256))
        return Resident(built.code.ljust(_STUB_OFFSET, b"\xcc") + stubs, built.labels)

    def _stub(self, vector: int, common: int) -> bytes:
        """PUSH error code (where hardware pushes none); PUSH vector and kind; JMP common."""
        has_code = vector in fl.HAS_ERROR_CODE
        kind = vector | (_HAS_ERROR_CODE if has_code else 0)
        kind |= OWN_INTERRUPT if vector in self.own_vectors else 0
        code = (b"" if has_code else b"\x6a\x00") + b"\x68" + kind.to_bytes(4, "little") + b"\xe9"
        end = HOLE + _STUB_OFFSET + vector * STUB_SIZE + len(code) + 4
        return (code + (common - end & 0xFFFFFFFF).to_bytes(4, "little")).ljust(STUB_SIZE, b"\xcc")

    def slots(self, labels: Mapping[str, int]) -> dict[str, str]:
        """Slot text by call name: what stays in the image, and far calls to routines of the same name."""
        spec = load_spec()
        bare = bare_slots(32, spec)
        slots = dict(self.text.slots)
        for name in (call.name for call in spec.calls):
            if name in slots:
                continue
            if name in self.text.routines:
                slots[name] = self.enter(labels[name])
            elif name in _PLAIN_BARE:
                slots[name] = bare[name]
        return slots

    def enter(self, address: int) -> str:
        """Text of a slot that calls the code at `address` and returns."""
        return f"lcall {self.flat_code}, {address}\n ret"

    def callers(self, labels: Mapping[str, int]) -> CallerIndex:
        """Which ABI call an address of the code belongs to."""
        code = range(HOLE, HOLE + self.code_pages * PAGE)
        return CallerIndex(self.text, labels, self.counted_for, code)
