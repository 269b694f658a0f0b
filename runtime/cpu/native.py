"""Hooks in machine code: what runs at every translated block must not cost a Python call.

A few instructions, assembled at start-up into an executable mapping and registered with
Unicorn as C callbacks. They count executed bytes of code (virtual time), stop the emulator at a
block boundary when a limit is reached or an interrupt can be taken, and answer RDTSC. They follow
the System V calling convention of the host; `ControlBlock` is what they share with Python.
"""

from __future__ import annotations

import ctypes
import mmap
import platform
from typing import Any

from pvpatch.abi.errors import PvpatchError
from runtime.cpu.assemble import assemble64
from runtime.cpu.flags import ARITHMETIC, DF
from runtime.cpu.inline_count import first_run_source, shorter_sequence
from runtime.cpu.layout import CpuState
from runtime.cpu.prices import UNITS_PER_NS, translation_source
from runtime.cpu.translator import translator_facts
from runtime.cpu.walker_code import FLUSH_TLB, walker_source

__all__ = ["UNITS_PER_NS", "ControlBlock", "NativeCode"]

BLOCK_UNITS = 16
"""Charged for each block besides its bytes: a taken branch. Keeps waiting loops short on the host."""


class ControlBlock(ctypes.Structure):
    """State shared between the machine-code hooks and Python. All times in units (1/4 ns)."""

    _fields_ = (
        ("now", ctypes.c_uint64),
        ("limit", ctypes.c_uint64),
        ("deadline", ctypes.c_uint64),
        ("cpu", ctypes.c_uint64),
        ("window", ctypes.c_uint64),
        ("window_mask", ctypes.c_uint64),
        ("window_flip", ctypes.c_uint64),
        ("force", ctypes.c_uint64),
        ("blocks_left", ctypes.c_uint64),
        ("stopped", ctypes.c_uint64),
        ("emu_stop", ctypes.c_uint64),
        ("blocks", ctypes.c_uint64),
        ("tsc_cost", ctypes.c_uint64),
        ("watch_level", ctypes.c_uint64),
        ("watch_callback", ctypes.c_uint64),
        ("engine", ctypes.c_uint64),
        ("uc_ctl", ctypes.c_uint64),
        ("ram", ctypes.c_uint64),
        ("last_entry", ctypes.c_uint64),
        ("executed", ctypes.c_uint64),
        ("executed_pages", ctypes.c_uint64),
        ("large_marks", ctypes.c_uint64 * 3),
        ("supervisor", ctypes.c_uint64),
        ("descriptors", ctypes.c_uint64),
        ("waiting", ctypes.c_uint64),
        ("walk", ctypes.c_uint64 * 4),
        ("fault", ctypes.c_uint64),
        ("fault_code", ctypes.c_uint64),
        ("fault_page", ctypes.c_uint64),
        ("fills", ctypes.c_uint64),
        ("translator", ctypes.c_uint64),
        ("translated_to", ctypes.c_uint64),
        ("translated", ctypes.c_uint64),
        ("unpriced", ctypes.c_uint64),
        ("price_base", ctypes.c_uint64),
        ("price_count", ctypes.c_uint64),
        ("price_table", ctypes.c_uint64),
    )
    now: int
    limit: int
    """`now` at which the block hook takes a closer look: 0 while something waits."""
    deadline: int
    cpu: int
    """Host address of the `CpuState`."""
    window: int
    """Host address of the 32-bit word that says whether interrupts are enabled."""
    window_mask: int
    window_flip: int
    """Interrupts are enabled when (word ^ flip) & mask is not zero."""
    force: int
    blocks_left: int
    """Not zero: the emulator stops where this many blocks have begun; looked at while `limit` is 0."""
    stopped: int
    emu_stop: int
    blocks: int
    tsc_cost: int
    watch_level: int
    """New blocks below this privilege level number are not reported."""
    watch_callback: int
    engine: int
    uc_ctl: int
    ram: int
    """Host address of guest-physical 0."""
    last_entry: int
    """Highest guest-physical address at which a page-table entry may lie."""
    executed: int
    """Host address of one byte per page: not zero once code of it has been fetched."""
    executed_pages: int
    large_marks: Any
    """Host addresses of the emulator's notes on large pages, per MMU mode."""
    supervisor: int
    """Not zero: user accesses are checked as supervisor accesses (what an instruction does by itself)."""
    descriptors: int
    """Not zero: those to the GDT and the LDT are, until the next block begins."""
    waiting: int
    """Not zero: an event waits for the guest to accept interrupts."""
    walk: Any
    fault: int
    fault_code: int
    fault_page: int
    fills: int
    """Address translations given to the emulator, in all."""
    translator: int
    """Host address of the translator's context."""
    translated_to: int
    """Where its last translation that was charged for ended."""
    translated: int
    """Operations translated since all translations were dropped."""
    unpriced: int
    """Blocks that could not be made dearer, because their code is not as expected."""
    price_base: int
    price_count: int
    price_table: int
    """The fields of `HelperPrices`."""


_FIELD = {name: getattr(ControlBlock, name).offset for name, _ in ControlBlock._fields_}
_HFLAGS = CpuState.hflags.offset  # type: ignore[attr-defined]
_HF_CPL = 3
_HF_INHIBIT_IRQ = 1 << 3
_RAX = CpuState.gpr.offset
_RCX = _RAX + 8
_RDX = _RAX + 16
_TSC_AUX = CpuState.tsc_aux.offset  # type: ignore[attr-defined]

_CHECK = """
    xor esi, esi
    movabs rax, STOP_CHECK
    jmp rax
"""
"""Stops here if that was asked for, else returns to the translated code. RDI is the engine; the emulator's
routine goes by its return address, so it is jumped to."""

# void block(uc, u64 address, u32 size, ControlBlock *)
_BLOCK = f"""
    lea eax, [rdx + {BLOCK_UNITS}]
    add rax, qword ptr [rcx + {_FIELD["now"]}]
    mov qword ptr [rcx + {_FIELD["now"]}], rax
    inc qword ptr [rcx + {_FIELD["blocks"]}]
    cmp rax, qword ptr [rcx + {_FIELD["limit"]}]
    jae closer
    ret
closer:
    cmp qword ptr [rcx + {_FIELD["descriptors"]}], 0
    jne descriptors_read
look:
    cmp qword ptr [rcx + {_FIELD["force"]}], 0
    jne stop
    mov r8, qword ptr [rcx + {_FIELD["blocks_left"]}]
    test r8, r8
    jne counted
    mov r8, qword ptr [rcx + {_FIELD["cpu"]}]
    test dword ptr [r8 + {_HFLAGS}], {_HF_INHIBIT_IRQ}
    jne resume
    cmp rax, qword ptr [rcx + {_FIELD["deadline"]}]
    jae stop
    mov r8, qword ptr [rcx + {_FIELD["window"]}]
    mov r8d, dword ptr [r8]
    xor r8d, dword ptr [rcx + {_FIELD["window_flip"]}]
    test r8d, dword ptr [rcx + {_FIELD["window_mask"]}]
    je resume
stop:
    mov qword ptr [rcx + {_FIELD["stopped"]}], 1
    mov rdi, qword ptr [rcx + {_FIELD["engine"]}]
    push rdi
    call qword ptr [rcx + {_FIELD["emu_stop"]}]
    pop rdi
    {_CHECK}
counted:
    dec r8
    mov qword ptr [rcx + {_FIELD["blocks_left"]}], r8
    je stop
resume:
    ret
descriptors_read:
    push rax
    push rcx
    sub rsp, 8
    mov qword ptr [rcx + {_FIELD["descriptors"]}], 0
    mov rdi, qword ptr [rcx + {_FIELD["engine"]}]
    mov esi, {FLUSH_TLB}
    xor eax, eax
    call qword ptr [rcx + {_FIELD["uc_ctl"]}]
    add rsp, 8
    pop rcx
    pop rax
    mov r8, qword ptr [rcx + {_FIELD["force"]}]
    or r8, qword ptr [rcx + {_FIELD["waiting"]}]
    or r8, qword ptr [rcx + {_FIELD["blocks_left"]}]
    jne look
    mov r8, qword ptr [rcx + {_FIELD["deadline"]}]
    mov qword ptr [rcx + {_FIELD["limit"]}], r8
    cmp rax, r8
    jae look
    ret
"""

_APART = f"""
    movabs rax, EFLAGS_WORD
    and dword ptr [rax], {~(ARITHMETIC | DF)}
"""
"""Ahead of a hooked instruction inside a block the emulator merges the arithmetic flags and DF into EFLAGS,
where none of its own code expects them: what it reads later would still hold them."""

# void code(uc, u64 address, u32 size, void (*callback)(uc, u64 address, u32 size, void *))
_ARRIVED = f"""
    {_APART}
    push rdi
    call rcx
    pop rdi
    {_CHECK}
"""

# void code(uc, u64 address, u32 size, ControlBlock *)
_STOP_HERE = f"""
    {_APART}
    push rdi
    call qword ptr [rcx + {_FIELD["emu_stop"]}]
    pop rdi
    {_CHECK}
"""

# void code(uc, u64 address, u32 size, ControlBlock *): behind any instruction, if that was asked for
_STOP_IF_ASKED = f"""
    {_APART}
    cmp qword ptr [rcx + {_FIELD["force"]}], 0
    jne stop
    ret
stop:
    mov qword ptr [rcx + {_FIELD["stopped"]}], 1
    push rdi
    call qword ptr [rcx + {_FIELD["emu_stop"]}]
    pop rdi
    {_CHECK}
"""

# void access(uc, int kind, u64 address, int size, i64 value, {u64 first, span; callback} *)
_AT_OFFSET = """
    mov eax, edx
    sub eax, dword ptr [r9]
    and eax, 0xfff
    cmp eax, dword ptr [r9 + 8]
    ja elsewhere
    jmp qword ptr [r9 + 16]
elsewhere:
    ret
"""
"""An access to data: the callback is for those that begin at `first` in a page, or up to `span` behind."""

# void code(uc, u64 address, u32 size, ControlBlock *): what follows reads descriptors for user code
_DESCRIPTORS = f"""
    {_APART}
    mov r8, qword ptr [rcx + {_FIELD["cpu"]}]
    mov eax, dword ptr [r8 + {_HFLAGS}]
    and eax, {_HF_CPL}
    cmp eax, {_HF_CPL}
    jne resume
    mov qword ptr [rcx + {_FIELD["descriptors"]}], 1
    mov qword ptr [rcx + {_FIELD["limit"]}], 0
resume:
    ret
"""

# int rdtsc(uc, ControlBlock *): two ticks per nanosecond, each reading costs `tsc_cost`
_RDTSC = f"""
    mov rax, qword ptr [rsi + {_FIELD["now"]}]
    add rax, qword ptr [rsi + {_FIELD["tsc_cost"]}]
    mov qword ptr [rsi + {_FIELD["now"]}], rax
    mov r8, qword ptr [rsi + {_FIELD["cpu"]}]
    shr rax, 1
    mov edx, eax
    mov qword ptr [r8 + {_RAX}], rdx
    shr rax, 32
    mov qword ptr [r8 + {_RDX}], rax
"""
_ONE = """
    mov eax, 1
    ret
"""
_RDTSCP = f"""
    mov eax, dword ptr [r8 + {_TSC_AUX}]
    mov qword ptr [r8 + {_RCX}], rax
"""
# void new_block(uc, block *current, block *previous, ControlBlock *)
_NEW_BLOCK = f"""
    mov r8, qword ptr [rcx + {_FIELD["cpu"]}]
    mov eax, dword ptr [r8 + {_HFLAGS}]
    and eax, {_HF_CPL}
    cmp eax, dword ptr [rcx + {_FIELD["watch_level"]}]
    jb unwatched
    jmp qword ptr [rcx + {_FIELD["watch_callback"]}]
unwatched:
    ret
"""
# void note(uc, u64 address, u32 size, u64 *last)
_NOTE = f"""
    {_APART}
    mov qword ptr [rcx], rsi
    ret
"""
# void count_each(uc, u64 address, u32 size, u64 *told): the first address, and where its counter is
_COUNT_EACH = f"""
    {_APART}
    sub rsi, qword ptr [rcx]
    mov rax, qword ptr [rcx + 8]
    inc qword ptr [rax + rsi*8]
    ret
"""
# u64 read(uc, u64 offset, u32 size, void *): an empty bus floats high
_OPEN_BUS_READ = """
    mov rax, -1
    ret
"""
_OPEN_BUS_WRITE = "ret"


_ROOM = 8192
"""Bytes for all routines."""


class NativeCode:
    """The executable mapping and the addresses of the routines in it."""

    def __init__(self, stop_check: int, eflags: int) -> None:
        """`stop_check` is the host address of the emulator's check for a stop (`EngineFacts.check`), `eflags`
        that of the CPU's EFLAGS."""
        if platform.machine() not in ("x86_64", "AMD64"):
            raise PvpatchError(
                f"running guests needs an x86-64 host, this one is {platform.machine()}",
                "scan, patch and diff work everywhere",
                exit_code=2,
            )
        self._mapping = mmap.mmap(-1, _ROOM, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
        self._base = ctypes.addressof(ctypes.c_char.from_buffer(self._mapping))
        self._used = 0
        self._words = {"STOP_CHECK": hex(stop_check), "EFLAGS_WORD": hex(eflags)}
        block = self._place(_BLOCK)
        sequence = self._place_code(shorter_sequence(_FIELD))
        charge = translation_source(_FIELD, translator_facts())
        self.block = self._place(charge + first_run_source(_FIELD, sequence, block, stop_check, BLOCK_UNITS))
        self.arrived = self._place(_ARRIVED)
        self.stop_here = self._place(_STOP_HERE)
        self.stop_if_asked = self._place(_STOP_IF_ASKED)
        self.at_offset = self._place(_AT_OFFSET)
        self.rdtsc = self._place(_RDTSC + _ONE)
        self.rdtscp = self._place(_RDTSC + _RDTSCP + _ONE)
        self.new_block = self._place(_NEW_BLOCK)
        self.fill_tlb = self._place(walker_source(_FIELD))
        self.note = self._place(_NOTE)
        self.count_each = self._place(_COUNT_EACH)
        self.descriptors = self._place(_DESCRIPTORS)
        self.open_bus_read = self._place(_OPEN_BUS_READ)
        self.open_bus_write = self._place(_OPEN_BUS_WRITE)

    def _place(self, text: str) -> int:
        for word, value in self._words.items():
            text = text.replace(word, value)
        return self._place_code(assemble64(text))

    def _place_code(self, code: bytes) -> int:
        address = self._base + self._used
        assert self._used + len(code) <= _ROOM
        ctypes.memmove(address, code, len(code))
        self._used += (len(code) + 15) & ~15
        return address
