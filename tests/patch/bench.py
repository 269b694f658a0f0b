"""A bare CPU to run an instruction and its thunk on, and compare: Unicorn at privilege 0."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

import unicorn
from iced_x86 import Decoder
from unicorn import x86_const as x86

from pvpatch.abi.layout import slot_offset
from pvpatch.abi.page import build_bare_page
from rewriter.bind_sites import bind_sites
from rewriter.emit.pieces import pieces_of
from rewriter.emit.reach import Reach
from rewriter.emit.thunk import Piece, Thunk, compose_absolute, compose_relative
from rewriter.tactics import Window as PlannedWindow
from rewriter.tactics import Windows
from rewriter.tactics.view import CodeRegion, CodeView

CODE, DATA, STACK, PAGE, THUNK, POINTER, TABLES = (
    0x100000, 0x200000, 0x300000, 0x400000, 0x410000, 0x420000, 0x430000,
)  # fmt: skip
SIZE = 0x10000
TOP = STACK + SIZE // 2
NAMES = ("AX", "CX", "DX", "BX", "SP", "BP", "SI", "DI")
FLAGS = 0x3F7FD7  # everything but reserved bits
PAGES = {bits: build_bare_page(bits, PAGE, PAGE) for bits in (32, 64)}


def register_ids(bits: int) -> list[int]:
    """Unicorn's numbers of the general registers in architectural order."""
    prefix = "R" if bits == 64 else "E"
    low = [getattr(x86, f"UC_X86_REG_{prefix}{name}") for name in NAMES]
    return low + [getattr(x86, f"UC_X86_REG_R{number}") for number in range(8, 16)] if bits == 64 else low


@dataclass
class State:
    """What is compared after a run."""

    registers: list[int]
    flags: int
    memory: bytes
    stack: bytes
    ports: list[tuple[str, int, int, int]] = field(default_factory=list)
    system: dict[str, object] = field(default_factory=dict)


class Bench:
    """One machine; ``load`` puts code in, ``run`` executes it from a start to an end."""

    def __init__(self, bits: int) -> None:
        self.bits = bits
        mode = unicorn.UC_MODE_64 if bits == 64 else unicorn.UC_MODE_32
        self.cpu = unicorn.Uc(unicorn.UC_ARCH_X86, mode)
        for base in (CODE, DATA, STACK, PAGE, THUNK, POINTER, TABLES):
            self.cpu.mem_map(base, SIZE)
        self.cpu.mem_write(PAGE, PAGES[bits])
        self.ports: list[tuple[str, int, int, int]] = []
        self.cpu.hook_add(unicorn.UC_HOOK_INSN, self._in, None, 1, 0, x86.UC_X86_INS_IN)
        self.cpu.hook_add(unicorn.UC_HOOK_INSN, self._out, None, 1, 0, x86.UC_X86_INS_OUT)
        self._segments()

    def _in(self, _cpu: unicorn.Uc, port: int, size: int, _data: object) -> int:
        value = (port * 0x9E3779B1 + size) & ((1 << 8 * size) - 1)
        self.ports.append(("in", port, size, value))
        return value

    def _out(self, _cpu: unicorn.Uc, port: int, size: int, value: int, _data: object) -> None:
        self.ports.append(("out", port, size, value))

    def _segments(self) -> None:
        """A GDT: null, code, data, code of the other width, data again, TSS."""
        code = 0x00AF9B000000FFFF if self.bits == 64 else 0x00CF9B000000FFFF
        data = 0x00CF93000000FFFF
        table = struct.pack("<6Q", 0, code, data, code, data, 0x0000890000000067)
        self.cpu.mem_write(TABLES, table)
        self.cpu.reg_write(x86.UC_X86_REG_GDTR, (0, TABLES, len(table) - 1, 0))
        self.cpu.reg_write(x86.UC_X86_REG_CS, 8)
        for name in ("DS", "ES", "FS", "GS", "SS"):
            self.cpu.reg_write(getattr(x86, f"UC_X86_REG_{name}"), 0x10)

    def load(self, address: int, code: bytes) -> None:
        """Put code in."""
        self.cpu.mem_write(address, code)

    def run(
        self, start: int, end: int, registers: list[int], flags: int, memory: bytes, stack: bytes
    ) -> State:
        """Run from ``start`` until ``end`` is reached; the stack starts with ``stack`` at TOP - 256."""
        cpu = self.cpu
        self.ports.clear()
        cpu.mem_write(DATA, memory)
        cpu.mem_write(TOP - 256, stack)
        for number, value in zip(register_ids(self.bits), registers, strict=False):
            cpu.reg_write(number, value)
        cpu.reg_write(x86.UC_X86_REG_EFLAGS, flags)
        cpu.emu_start(start, end, timeout=2_000_000, count=2000)
        pc = cpu.reg_read(x86.UC_X86_REG_RIP if self.bits == 64 else x86.UC_X86_REG_EIP)
        assert pc == end, f"stopped at {pc:#x} instead of {end:#x}"
        return self.state(len(memory))

    def state(self, memory: int) -> State:
        """Everything that the guest can see; the stack from its pointer upwards."""
        cpu = self.cpu
        values = [cpu.reg_read(number) for number in register_ids(self.bits)]
        system = {
            name: cpu.reg_read(getattr(x86, f"UC_X86_REG_{name}"))
            for name in (
                "CR0",
                "CR2",
                "CR4",
                "DR0",
                "DR7",
                "GDTR",
                "IDTR",
                "DS",
                "ES",
                "FS",
                "GS",
                "SS",
                "CS",
            )
        }
        stack = (
            bytes(cpu.mem_read(values[4], TOP + 1024 - values[4])) if STACK <= values[4] < TOP + 1024 else b""
        )
        return State(
            values,
            cpu.reg_read(x86.UC_X86_REG_EFLAGS) & FLAGS,
            bytes(cpu.mem_read(DATA, memory)),
            stack,
            list(self.ports),
            system,
        )


@dataclass(frozen=True)
class Window:
    """Code at CODE as a window: its pieces, its end, and what a thunk needs."""

    bits: int
    pieces: tuple[Piece, ...]
    code: bytes

    @property
    def end(self) -> int:
        """Behind the code."""
        return CODE + len(self.code)


def view_of(code: bytes, bits: int) -> CodeView:
    """A code view of straight code at CODE, followed by padding."""
    data = code + b"\x90" * 64
    lengths = bytearray(len(data))
    for instruction in Decoder(bits, data, ip=CODE):
        lengths[instruction.ip - CODE] = instruction.len
    region = CodeRegion(CODE, data, bytes(lengths), bytes(bits if length else 0 for length in lengths))
    return CodeView((region,), frozenset())


def window_of(code: bytes, bits: int, sites: set[int], reach: Reach) -> Window:
    """Bind the instructions whose indices are in ``sites``; Refused sites raise ValueError."""
    view = view_of(code, bits)
    instructions = list(Decoder(bits, code, ip=CODE))
    chosen = [instructions[index].ip for index in sorted(sites)]
    bound = bind_sites(view, reach, chosen, {})
    if bound.kept:
        raise ValueError("; ".join(bound.kept.values()))
    window = PlannedWindow(
        CODE, CODE + len(code), bits, tuple(item.ip for item in instructions), tuple(chosen), True, ""
    )
    moved = pieces_of(view, bound, Windows(), window, called=reach.kind == "absolute")
    return Window(bits, moved.pieces, code)


def slot(number: int) -> int:
    """Address of a slot of the bench's page."""
    return PAGE + slot_offset(number)


def thunk_code(thunk: Thunk, *, calls: bool) -> bytes:
    """The thunk's code at THUNK; ``calls``: as a loader leaves it that takes the guest's privilege."""
    encoded = thunk.assembly.encode(THUNK)
    data = bytearray(encoded.data)
    for cell in thunk.cells if calls else ():
        if cell.body is not None:
            start = encoded.labels[cell.start]
            data[start : start + 2] = bytes([0xEB, encoded.labels[cell.body] - start - 2])
    return bytes(data)


def run_patched(
    bench: Bench,
    window: Window,
    reach: str,
    arguments: tuple[list[int], int, bytes, bytes],
    *,
    calls: bool = False,
) -> State:
    """Run the window's thunk the way a site would reach it: its instructions, or the calls of its sites."""
    if reach == "relative":
        thunk = compose_relative(window.bits, window.pieces, window.end, slot)
        bench.load(THUNK, thunk_code(thunk, calls=calls))
        return bench.run(THUNK, window.end, *arguments)
    size = 6 if window.bits == 32 else 7
    thunk = compose_absolute(window.bits, window.pieces, CODE + size, window.end, slot, called=True)
    bench.load(THUNK, thunk_code(thunk, calls=calls))
    bench.load(POINTER, THUNK.to_bytes(8, "little"))
    opcode = b"\xff\x15" if window.bits == 32 else b"\xff\x14\x25"
    bench.load(CODE, opcode + POINTER.to_bytes(4, "little"))
    return bench.run(CODE, window.end, *arguments)


def run_original(bench: Bench, window: Window, arguments: tuple[list[int], int, bytes, bytes]) -> State:
    """Run the window's own code."""
    bench.load(CODE, window.code)
    return bench.run(CODE, window.end, *arguments)
