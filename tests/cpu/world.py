"""A tiny guest world for CPU tests: tables built in Python, code assembled, frames read back.

Every IDT gate leads to a stub that notes vector and stack pointer and ends the run, so that a
test looks at the frame exactly as the CPU left it.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

from pvpatch.abi.asm import assemble
from runtime.backends import Backend, backend_named
from runtime.boot.model import BootImage, BootKind, BootSegment
from runtime.machine import Machine, MachineConfig
from runtime.outcome import RunResult

CODE = 0x100000
USER_CODE = 0x180000
STUBS = 0x110000
STUB_SIZE = 64
GDT = 0x120000
IDT = 0x121000
TSS = 0x122000
TSS2 = 0x123000
NOTE = 0x124000
"""vector u64, stack pointer u64, RFLAGS u64 in the handler."""
KERNEL_STACK = 0x130000
TSS_STACK = 0x140000
IST_STACK = 0x150000
USER_STACK = 0x160000
PAGE_TABLES = 0x170000
"""64-bit: PML4, PDPT, PD (2 MiB pages, user) and, for the fourth 2 MiB, a page table; 32-bit: PD at
PAGE_TABLES + 0x3000 (4 MiB pages), its second entry a page table."""
PAGED = 0x600000
"""Address of the pages whose table entries tests set; mapped one to one, user and writable."""

KCODE, KDATA, UCODE, UDATA, TSS_SEL, TSS2_SEL, CODE1, DATA1, ABSENT = (
    0x08, 0x10, 0x1B, 0x23, 0x28, 0x38, 0x48, 0x50, 0x58,
)  # fmt: skip


def descriptor(base: int, limit: int, access: int, flags: int) -> bytes:
    """Eight bytes; `flags` is the high nibble (G, D/B, L, AVL)."""
    low = (limit & 0xFFFF) | (base & 0xFFFF) << 16
    high = base >> 16 & 0xFF | access << 8 | limit & 0xF0000 | flags << 20 | base & 0xFF000000
    return struct.pack("<II", low, high)


def gate(
    width: int, selector: int, offset: int, kind: int = 0xE, dpl: int = 0, ist: int = 0, present: bool = True
) -> bytes:
    """An IDT entry."""
    access = kind | dpl << 5 | present << 7
    low = offset & 0xFFFF | selector << 16
    high = offset & 0xFFFF0000 | access << 8 | ist
    entry = struct.pack("<II", low, high)
    return entry + struct.pack("<II", offset >> 32, 0) if width == 64 else entry


class _ListTracer:
    def __init__(self, lines: list[str]) -> None:
        self._lines = lines

    def record(self, time_ns: int, kind: str, **values: int | str) -> None:
        self._lines.append(f"{time_ns} {kind} {values}")


@dataclass
class World:
    """What to build; `run` builds and runs it."""

    width: int
    code: str
    user: str = ""
    gates: dict[int, bytes] = field(default_factory=dict)
    tss_limit: int = 0x67
    tss_stack: int = TSS_STACK
    stubs: dict[int, str] = field(default_factory=dict)
    tables: bool = True
    own_page_tables: bool = True
    """At 64 bits: user-accessible tables of 8 MiB instead of the loader's 4 GiB."""
    trace: list[str] | None = None
    instance: Backend | None = None
    """A backend object to use instead of the one called `backend`."""
    paging: bool = False
    pages: dict[int, int] = field(default_factory=dict)
    """Page-table entries of the pages at PAGED, by index."""
    extra: tuple[BootSegment, ...] = ()
    max_time_s: float | None = 1.0
    until: str = ""
    output_limit: int = 1 << 20
    backend: str = "bare"

    def __post_init__(self) -> None:
        self.machine: Machine
        self.result: RunResult

    def _gdt(self) -> bytes:
        mode = 0xA if self.width == 64 else 0xC
        wide_tss = struct.pack("<II", 0, 0)
        return b"".join(
            (
                bytes(8),
                descriptor(0, 0xFFFFF, 0x9B, mode),
                descriptor(0, 0xFFFFF, 0x93, 0xC),
                descriptor(0, 0xFFFFF, 0xFB, mode),
                descriptor(0, 0xFFFFF, 0xF3, 0xC),
                descriptor(TSS, self.tss_limit, 0x89, 0),
                wide_tss,
                descriptor(TSS2, 0x67, 0x89, 0),
                wide_tss,
                descriptor(0, 0xFFFFF, 0xBB, mode),
                descriptor(0, 0xFFFFF, 0xB3, 0xC),
                descriptor(0, 0xFFFFF, 0x1B, mode),
            )
        )

    def _idt(self) -> bytes:
        size = 16 if self.width == 64 else 8
        table = bytearray()
        for vector in range(256):
            table += self.gates.get(vector, gate(self.width, KCODE, STUBS + vector * STUB_SIZE))
            assert len(table) == (vector + 1) * size
        return bytes(table)

    def _tss(self) -> bytes:
        if self.width == 64:
            stacks = struct.pack("<I3Q", 0, self.tss_stack, 0, 0)
            return stacks + struct.pack("<8Q", 0, IST_STACK, *([0] * 6)) + bytes(12)
        ring_1 = struct.pack("<II", 0x145000, DATA1 | 1)
        return struct.pack("<III", 0, self.tss_stack, KDATA) + ring_1 + bytes(84)

    def _page_tables(self) -> bytes:
        quad = struct.Struct("<512Q").pack
        table = [PAGED + index * 0x1000 | 7 for index in range(512)]
        for index, entry in self.pages.items():
            table[index] = entry
        if self.width == 64:
            top = [PAGE_TABLES + 0x1000 | 7] + [0] * 511
            middle = [PAGE_TABLES + 0x2000 | 7] + [0] * 511
            bottom = [0x87, 0x200087, 0x400087, PAGE_TABLES + 0x4000 | 7] + [0] * 508
            return quad(*top) + quad(*middle) + quad(*bottom) + bytes(0x1000) + quad(*table)
        directory = [0x87, PAGE_TABLES + 0x4000 | 7] + [0] * 1022
        low = [0x400000 + index * 0x1000 | 7 for index in range(512)]
        words = struct.Struct("<1024I").pack
        return bytes(0x3000) + words(*directory) + words(*low, *table)

    def _stub(self, vector: int) -> bytes:
        if vector in self.stubs:
            return assemble(self.stubs[vector], self.width, STUBS + vector * STUB_SIZE).code
        if self.width == 64:
            text = f"""
                mov r15d, {NOTE}
                mov qword ptr [r15+8], rsp
                mov dword ptr [r15], {vector}
                pushfq
                pop qword ptr [r15+16]
            """
        else:
            text = f"""
                mov dword ptr [{NOTE + 8}], esp
                mov dword ptr [{NOTE}], {vector}
                pushfd
                pop dword ptr [{NOTE + 16}]
            """
        return assemble(text + "xor eax, eax; out 0xf4, al; hlt", self.width, STUBS + vector * STUB_SIZE).code

    def _prologue(self) -> str:
        if not self.tables:
            return ""
        pointer = NOTE + 0x100
        if self.width == 64:
            return f"""
                mov rbx, {pointer}
                lgdt [rbx]
                lidt [rbx+16]
                {f"mov eax, {PAGE_TABLES}; mov cr3, rax" if self.own_page_tables else ""}
                mov eax, {TSS_SEL}
                ltr ax
                mov eax, {KDATA}
                mov ss, eax
                mov ds, eax
                mov es, eax
                mov rsp, {KERNEL_STACK}
                push {KCODE}
                lea rax, [rip+go]
                push rax
                retfq
            go:
            """
        return f"""
            lgdt [{pointer}]
            lidt [{pointer + 16}]
            mov eax, {TSS_SEL}
            ltr ax
            mov eax, {KDATA}
            mov ss, eax
            mov ds, eax
            mov es, eax
            mov fs, eax
            mov gs, eax
            mov esp, {KERNEL_STACK}
            ljmp {KCODE}, go
        go:
        """

    def paging_on(self) -> str:
        """Code that turns paging on (32-bit); at 64 bits it already is."""
        if self.width == 64:
            return ""
        return f"""
            mov eax, cr4
            or eax, 0x10
            mov cr4, eax
            mov eax, {PAGE_TABLES + 0x3000}
            mov cr3, eax
            mov eax, cr0
            or eax, 0x80010000
            mov cr0, eax
        """

    def to_user(self) -> str:
        """Code that drops to privilege 3 at USER_CODE with IF clear."""
        word = "rax" if self.width == 64 else "eax"
        pushes = "".join(
            f"mov {word}, {value}; push {word}\n" for value in (UDATA, USER_STACK, 2, UCODE, USER_CODE)
        )
        return pushes + ("iretq" if self.width == 64 else "iretd") + "\n"

    def _segments(self) -> tuple[BootSegment, ...]:
        pieces: list[tuple[int, bytes]] = []
        code = self._prologue() + (self.paging_on() if self.paging else "") + self.code
        code += "\n" + self.to_user() if self.user else ""
        pieces.append((CODE, assemble(code, self.width, CODE).code))
        if self.user:
            pieces.append((USER_CODE, assemble(self.user, self.width, USER_CODE).code))
        if self.tables:
            stubs = bytearray()
            for vector in range(256):
                stubs += self._stub(vector).ljust(STUB_SIZE, b"\xcc")
            pieces += [(STUBS, bytes(stubs)), (GDT, self._gdt()), (IDT, self._idt()), (TSS, self._tss())]
            base = struct.Struct("<HQ")
            pieces.append((PAGE_TABLES, self._page_tables()))
            idt_limit = (16 if self.width == 64 else 8) * 256 - 1
            pieces.append((NOTE + 0x100, base.pack(len(self._gdt()) - 1, GDT).ljust(16, b"\0")))
            pieces.append((NOTE + 0x110, base.pack(idt_limit, IDT)))
        return tuple(BootSegment(at, at, data, len(data)) for at, data in pieces) + self.extra

    def run(self) -> World:
        """Build and run; the machine and its result are kept for inspection."""
        image = BootImage("world", BootKind.FLAT, self.width, self._segments(), {BootKind.FLAT: CODE})
        config = MachineConfig(
            memory_mib=8, max_time_s=self.max_time_s, until=self.until, output_limit=self.output_limit
        )
        tracer = _ListTracer(self.trace) if self.trace is not None else None
        self.machine = Machine(config, image, self.instance or backend_named(self.backend), tracer=tracer)
        self.result = self.machine.run()
        return self

    # -- looking at the end ----------------------------------------------------------------------

    @property
    def vector(self) -> int:
        """The vector whose stub ended the run."""
        return self.machine.memory.load_u64(NOTE)

    @property
    def stack_pointer(self) -> int:
        """Stack pointer on entry to the stub."""
        return self.machine.memory.load_u64(NOTE + 8)

    @property
    def handler_flags(self) -> int:
        """RFLAGS in the stub."""
        return self.machine.memory.load_u64(NOTE + 16)

    def frame(self, words: int) -> list[int]:
        """The top `words` of the stack on entry to the stub."""
        size = self.width // 8
        raw = self.machine.memory.load(self.stack_pointer, words * size)
        return [int.from_bytes(raw[i : i + size], "little") for i in range(0, len(raw), size)]

    def code_at(self, label_bytes: bytes, start: int = CODE) -> int:
        """Address of a byte pattern in the code."""
        data = self.machine.memory.load(start, 0x400)
        position = data.find(label_bytes)
        assert position >= 0
        return start + position
