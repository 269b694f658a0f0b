"""The emulator's translator: how large its memory may grow, how long a block is, and what it made last.

Nothing names these things in the emulator's interface. As in `runtime.cpu.calibrate`, the places are those of
the known build, and each is proved by an experiment before it is believed.
"""

from __future__ import annotations

import ctypes
import itertools
import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import iced_x86
import unicorn
from unicorn import unicorn_const as uc_const
from unicorn.unicorn_py3.unicorn import uclib

from runtime.cpu.layout import UnknownCpuLayout

__all__ = ["BUFFER_SIZE", "LONGEST_BLOCK", "TranslatorFacts", "helper_address", "translator_facts"]

BUFFER_SIZE = 128 << 20
"""Bytes of address space for translated code. It is never full: all translations are dropped before
(`runtime.cpu.prices.MOST_TRANSLATED`), at a moment that depends on the guest alone."""
LONGEST_BLOCK = 64
"""Instructions. The emulator's own 512 are more than its array of temporaries has room for: `fsin` leaves
one behind each time, and 470 in a row overwrite what follows the array."""

_ENGINES_BLOCK = 512
_ADDRESS, _CODE_SIZE = 0x1000, 0x1000
_FSIN, _HLT, _NOP = b"\xd9\xfe", b"\xf4", b"\x90"
_ACCESSES = {
    b"\x48\x8b\x04\x25\0\x10\0\0": 1,  # mov rax, [0x1000]
    b"\x88\x04\x25\0\x1f\0\0": 1,  # mov [0x1f00], al
    b"\xff\x04\x25\0\x1f\0\0": 2,  # inc dword ptr [0x1f00]
    b"\xdb\x04\x25\0\x1f\0\0": 1,  # fild dword ptr [0x1f00]
    b"\xdb\x14\x25\0\x1f\0\0": 1,  # fist dword ptr [0x1f00]
}
"""Instructions of 64-bit code with the number of their accesses, for each width that the translator knows."""
_BLOCK_HOOK = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_uint64, ctypes.c_uint32, ctypes.c_void_p)


@dataclass(frozen=True)
class TranslatorFacts:
    """Offsets in bytes."""

    context: int
    """In the engine: the pointer to the translator's context."""
    position: int = 0xC0
    """In the context: where in the buffer the next translation goes; it moves with each one."""
    operations: int = 0x38
    """In the context: a 32-bit number, the operations of the last translation."""
    first: int = 0x7388
    """In the context: the first of those operations."""
    following: int = 8
    """In an operation: the next one. Its first byte is its kind, the second the number of inputs (low half)
    and outputs of a call; the arguments begin at `arguments`, 8 bytes each, and the routine follows them."""
    arguments: int = 24
    call: int = 2
    """Kind of an operation that calls a routine of the emulator."""
    accesses: range = range(133, 137)
    """Kinds of the operations that access the guest's memory."""


def _refuse(what: str) -> UnknownCpuLayout:
    return UnknownCpuLayout(
        f"this Unicorn translates differently from the known one: {what}", "install unicorn==2.1.4"
    )


def _routine(name: str) -> int:
    """Host address of an exported routine of the emulator."""
    try:
        return ctypes.cast(getattr(uclib, f"{name}_x86_64"), ctypes.c_void_p).value or 0
    except AttributeError:
        raise _refuse(f"there is no {name}") from None


def helper_address(name: str) -> int:
    """Host address of the routine that carries out an instruction for translated code.

    Raises `UnknownCpuLayout` if there is none.
    """
    return _routine(f"helper_{name}")


def _code_of(name: str, size: int) -> Iterator[iced_x86.Instruction]:
    address = _routine(name)
    return iter(iced_x86.Decoder(64, ctypes.string_at(address, size), ip=address))


def _context_offset() -> int:
    """Offset in the engine of the translator's context, as the routine that frees the buffer reads it."""
    first = next(_code_of("free_code_gen_buffer", 16))
    if first.mnemonic != iced_x86.Mnemonic.MOV or first.memory_base != iced_x86.Register.RDI:
        raise _refuse("its context is not found")
    return int(first.memory_displacement)


def _shorten_blocks() -> None:
    """Write `LONGEST_BLOCK` over the emulator's limit, in this process's copy of its code."""
    mnemonics = (iced_x86.Mnemonic.CMP, iced_x86.Mnemonic.MOV)
    limits = [
        one
        for one in _code_of("tb_gen_code", 0x90)
        if one.mnemonic in mnemonics and one.op1_kind == iced_x86.OpKind.IMMEDIATE32
        and one.op0_kind == iced_x86.OpKind.REGISTER and one.immediate32 == _ENGINES_BLOCK
    ]  # fmt: skip
    if [one.mnemonic for one in limits] != list(mnemonics):
        raise _refuse("its longest block is not set where it was")
    begin = limits[0].ip & -mmap.PAGESIZE
    size = limits[1].next_ip - begin
    protect = ctypes.CDLL(None, use_errno=True).mprotect
    protect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    if protect(begin, size, mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC):
        raise UnknownCpuLayout(f"the emulator cannot be adjusted (error {ctypes.get_errno()})", "")
    for one in limits:
        ctypes.memmove(one.next_ip - 4, LONGEST_BLOCK.to_bytes(4, "little"), 4)
    protect(begin, size, mmap.PROT_READ | mmap.PROT_EXEC)


class _Experiment:
    """A scratch engine in 64-bit mode that notes what the translator says at each block's start."""

    def __init__(self, facts: TranslatorFacts) -> None:
        self.uc = unicorn.Uc(uc_const.UC_ARCH_X86, uc_const.UC_MODE_64)
        self.uc.ctl_set_tcg_buffer_size(BUFFER_SIZE)
        self.uc.mem_map(_ADDRESS, _CODE_SIZE)
        self._facts = facts
        self._context = ctypes.c_uint64.from_address(self.uc._uch.value + facts.context).value
        self._next = _ADDRESS
        self.sizes: list[int] = []
        self.seen: list[tuple[int, int, list[int], int]] = []
        self._hook: Any = _BLOCK_HOOK(self._block)
        handle = ctypes.c_size_t()
        pointer = ctypes.cast(self._hook, ctypes.c_void_p)
        one, none = ctypes.c_uint64(1), ctypes.c_uint64(0)
        uclib.uc_hook_add(
            self.uc._uch, ctypes.byref(handle), uc_const.UC_HOOK_BLOCK, pointer, None, one, none
        )

    def _block(self, _uc: int, _address: int, size: int, _data: int) -> None:
        facts = self._facts
        position = ctypes.c_uint64.from_address(self._context + facts.position).value
        count = ctypes.c_uint32.from_address(self._context + facts.operations).value
        self.sizes.append(size)
        self.seen.append((position, count, *self._effects(count)))

    def _effects(self, count: int) -> tuple[list[int], int]:
        """The routines that the last translation calls, and how often it accesses memory."""
        facts = self._facts
        calls, accesses = [], 0
        place = ctypes.c_uint64.from_address(self._context + facts.first).value
        for _ in range(count):
            kind, arguments = ctypes.string_at(place, 2)
            if kind == facts.call:
                index = (arguments & 15) + (arguments >> 4)
                calls.append(ctypes.c_uint64.from_address(place + facts.arguments + 8 * index).value)
            accesses += kind in facts.accesses
            place = ctypes.c_uint64.from_address(place + facts.following).value
        if place:
            raise _refuse("its operations are more than it counts")
        return calls, accesses

    def translate(self, code: bytes) -> tuple[int, int, list[int], int]:
        """Run `code`, which ends with HLT: position, operations, calls and accesses of its (first) block."""
        start, self._next = self._next, self._next + len(code)
        self.uc.mem_write(start, code)
        self.seen.clear()
        self.sizes.clear()
        uclib.uc_emu_start(self.uc._uch, ctypes.c_uint64(start), ctypes.c_uint64(0), 0, 0)
        if not self.seen:
            raise _refuse("a block is not reported")
        return self.seen[0]


def _prove(facts: TranslatorFacts) -> None:
    """Translate a few blocks and see that what the places say is true. Raises `UnknownCpuLayout`."""
    experiment = _Experiment(facts)
    fsin = helper_address("fsin")
    numbers = []
    for times in range(4):
        _, number, calls, accesses = experiment.translate(_FSIN * times + _NOP + _HLT)
        if calls.count(fsin) != times or accesses:
            raise _refuse("its operations are not found")
        numbers.append(number)
    steps = {after - before for before, after in itertools.pairwise(numbers)}
    if len(steps) != 1 or not 0 < steps.pop() < 16:
        raise _refuse(f"it counts {numbers} operations")
    positions = [experiment.translate(_NOP * 3 + _HLT)[0] for _ in range(3)]
    if not 0 < positions[1] - positions[0] == positions[2] - positions[1] < 0x1000:
        raise _refuse("its place in the buffer is not found")
    for code, wanted in _ACCESSES.items():
        if experiment.translate(code + _HLT)[3] != wanted:
            raise _refuse(f"it accesses memory otherwise in {code.hex()}")
    experiment.translate(_NOP * (LONGEST_BLOCK + 9) + _HLT)
    if experiment.sizes != [LONGEST_BLOCK, 10]:
        raise _refuse(f"its blocks have {experiment.sizes} instructions")


@cache
def translator_facts() -> TranslatorFacts:
    """Limit the translator and prove where it says what it does; once per process.

    Raises `UnknownCpuLayout` if anything comes out differently.
    """
    _shorten_blocks()
    facts = TranslatorFacts(_context_offset())
    _prove(facts)
    return facts
