"""Facts about this build of Unicorn that only a running guest shows, found once per process.

A scratch engine runs a few instructions in known states; what they leave in memory gives the
places of fields that no interface names. Anything unexpected refuses the build.
"""

from __future__ import annotations

import ctypes
import struct
from dataclasses import dataclass
from functools import cache
from typing import Any

import iced_x86
import unicorn
from unicorn import unicorn_const as uc_const
from unicorn.unicorn_py3.unicorn import uclib

from runtime.cpu import flags as fl
from runtime.cpu.layout import CpuState, UnknownCpuLayout, locate_state
from runtime.cpu.translator import BUFFER_SIZE

__all__ = ["EngineFacts", "engine_facts"]

_TABLES, _CODE, _TOP = 0x1000, 0x2000, 0xC0000000
_STEP = 64
_MISS = 0xC0BAD123
_LARGE_MASK = 0xFFFF_FFFF_FFC0_0000
_SEARCH_BELOW = 0x8000
"""Less than what the emulator's object holds before the registers: no other object is searched."""
_ENGINE_SIZE = 0xC00
_EMITTER_HEAD = 24
_INTR = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_uint32, ctypes.c_void_p)
_CODE_HOOK = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_uint64, ctypes.c_uint32, ctypes.c_void_p)
_FILL = ctypes.CFUNCTYPE(
    ctypes.c_bool, ctypes.c_void_p, ctypes.c_uint64, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p
)


@dataclass(frozen=True)
class EngineFacts:
    """Offsets in bytes."""

    missed_address: int
    """In the engine: the exact address of an access that the TLB hook refused."""
    large_marks: tuple[int, int, int]
    """From the CPU structure (negative): per MMU mode, (address, mask) of the region that large pages
    cover, in which the emulator answers INVLPG by a full flush."""
    unchecked: int
    """In the engine: a byte that, when set, leaves the question whether to stop out of translated code. It is
    asked by a call after every access to memory, which costs a quarter of all execution."""
    check: int
    """Host address of the emulator's routine that asks it: `void check(engine, 0)`, for hooks that stop."""


def _refuse(what: str) -> UnknownCpuLayout:
    return UnknownCpuLayout(
        f"this Unicorn behaves differently from the known one: {what}", "install unicorn==2.1.4"
    )


class _Scratch:
    """An engine with 32-bit paging on: linear 0xC0000000 is a 4 MiB page on physical 0."""

    def __init__(self) -> None:
        self.uc = unicorn.Uc(uc_const.UC_ARCH_X86, uc_const.UC_MODE_64)
        self.uc.ctl_set_tcg_buffer_size(BUFFER_SIZE)
        self.state: CpuState = locate_state(self.uc)
        self.keep: list[Any] = []
        self.start = _TOP + _CODE
        self.uc.mem_map(0, 0x400000)
        self.uc.ctl_exits_enabled(True)
        self.uc.ctl_set_exits([])
        self.uc.mem_write(_TABLES + (_TOP >> 22) * 4, struct.pack("<I", 0xE7))

    def run(self, code: bytes, cpl: int) -> int:
        """Run `code` until its HLT, an exception or a miss; gives Unicorn's error number."""
        self.start += _STEP  # never over translated code
        self.uc.mem_write(self.start - _TOP, code)
        state = self.state
        state.efer, state.old_exception = 0, -1
        state.cr[0], state.cr[3], state.cr[4] = 0x80000011, _TABLES, 0x10
        for index in range(6):
            segment = state.segments[index]
            segment.base, segment.limit = 0, 0xFFFFFFFF
            segment.flags = 0x00C0FB00 if index == fl.CS else 0x00C0F300
        state.hflags = fl.HF_PE | fl.HF_CS32 | fl.HF_SS32 | cpl
        return int(uclib.uc_emu_start(self.uc._uch, self.start, 0, 0, 0))

    def release(self) -> None:
        """Give the engine back now: its gigabyte of room for code would push the next engine's out of the
        reach of near calls."""
        self.keep.clear()
        del self.uc

    def hook(self, kind: int, function: Any) -> None:
        """Register a C callback."""
        self.keep.append(function)
        handle = ctypes.c_size_t()
        pointer = ctypes.cast(function, ctypes.c_void_p)
        one, none = ctypes.c_uint64(1), ctypes.c_uint64(0)
        uclib.uc_hook_add(self.uc._uch, ctypes.byref(handle), kind, pointer, None, one, none)


def _large_mark(scratch: _Scratch, cpl: int) -> int:
    """Offset from the CPU structure of the note that a large page in use leaves."""
    scratch.run(b"\xa1" + struct.pack("<I", _TOP + 0x3000) + b"\xf4", cpl)
    end = ctypes.addressof(scratch.state)
    memory = ctypes.string_at(end - _SEARCH_BELOW, _SEARCH_BELOW)
    note = struct.pack("<QQ", _TOP, _LARGE_MASK)
    position = memory.find(note)
    if position < 0 or memory.find(note, position + 1) >= 0:
        raise _refuse("large pages are noted elsewhere")
    uclib.uc_ctl(scratch.uc._uch, ctypes.c_int(uc_const.UC_CTL_TLB_FLUSH | 1 << 30))
    return position - _SEARCH_BELOW


def _check_exception_fields(scratch: _Scratch) -> None:
    """A page fault must show in error code, old exception and next RIP, at our offsets."""
    seen: list[tuple[int, int, int, int, int]] = []
    state = scratch.state

    def interrupt(_uc: int, vector: int, _data: int) -> None:
        seen.append(
            (vector, state.error_code, state.old_exception, state.exception_next_rip, state.exception_is_int)
        )
        state.old_exception = -1
        uclib.uc_emu_stop(scratch.uc._uch)

    scratch.hook(uc_const.UC_HOOK_INTR, _INTR(interrupt))
    scratch.run(b"\xa3" + struct.pack("<I", _MISS) + b"\xf4", 3)
    fault = (14, 6, 14, scratch.start, 0)
    scratch.run(b"\xcd\x30\xf4", 3)
    if seen != [fault, (0x30, 0, -1, scratch.start + 2, 1)]:
        raise _refuse(f"exceptions are recorded as {seen}")


def _missed_address(scratch: _Scratch) -> int:
    """Offset in the engine of the address that the TLB hook refused."""

    def fill(_uc: int, page: int, _access: int, entry: int, _data: int) -> bool:
        ctypes.c_uint64.from_address(entry).value = page & 0x3FFFFF
        ctypes.c_uint32.from_address(entry + 8).value = uc_const.UC_PROT_ALL
        return bool(page != _MISS & ~0xFFF)

    scratch.uc.ctl_set_tlb_mode(uc_const.UC_TLB_VIRTUAL)
    scratch.hook(uc_const.UC_HOOK_TLB_FILL, _FILL(fill))
    places = set(range(0, _ENGINE_SIZE, 8))
    for address in (_MISS, _MISS + 0x42, _MISS - 0x77):  # a stray copy of one does not follow the others
        error = scratch.run(b"\xa1" + struct.pack("<I", address) + b"\xf4", 0)
        if error != uc_const.UC_ERR_EXCEPTION or scratch.state.rip != scratch.start:
            raise _refuse("a refused translation is reported differently")
        engine = ctypes.string_at(scratch.uc._uch.value, _ENGINE_SIZE)
        wanted = struct.pack("<Q", address)
        places = {offset for offset in places if engine[offset : offset + 8] == wanted}
    if len(places) != 1:
        raise _refuse("the address of a refused translation is not found")
    return places.pop()


def _check_extended_state(scratch: _Scratch) -> None:
    """XSETBV must show in `xcr0`."""
    enable = b"\x0f\x20\xe0\x0d\x00\x00\x04\x00\x0f\x22\xe0"  # CR4.OSXSAVE
    for value in (3, 1):
        scratch.run(enable + b"\x31\xc9\x31\xd2\xb8" + struct.pack("<I", value) + b"\x0f\x01\xd1\xf4", 0)
        if scratch.state.xcr0 != value:
            raise _refuse(f"XCR0 is not found: {scratch.state.xcr0:#x}")


def _stop_check(scratch: _Scratch) -> tuple[int, int]:
    """The byte that suppresses the check for a stop, as the emitter of the check reads it; the check."""
    try:
        emitter = ctypes.cast(uclib.check_exit_request_x86_64, ctypes.c_void_p).value or 0
        check = ctypes.cast(uclib.helper_check_exit_request_x86_64, ctypes.c_void_p).value or 0
    except AttributeError:
        raise _refuse("it does not export its check for a stop") from None
    code = ctypes.string_at(emitter, _EMITTER_HEAD)
    tests = [one for one in iced_x86.Decoder(64, code) if one.mnemonic == iced_x86.Mnemonic.CMP]
    if not tests or tests[0].immediate8 != 0 or not 0 < tests[0].memory_displacement < _ENGINE_SIZE:
        raise _refuse("the check for a stop cannot be switched off")
    place = tests[0].memory_displacement
    switch = ctypes.c_uint8.from_address(scratch.uc._uch.value + place)
    reached: list[int] = []

    def second(_uc: int, address: int, _size: int, _data: int) -> None:
        reached.append(address)
        if len(reached) == 2:
            uclib.uc_emu_stop(scratch.uc._uch)

    scratch.hook(uc_const.UC_HOOK_CODE, _CODE_HOOK(second))
    counts = []
    for switch.value in (0, 1):
        reached.clear()
        scratch.run(b"\x90\x90\x90\xf4", 0)
        counts.append(len(reached))
    switch.value = 0
    if counts != [2, 4]:
        raise _refuse(f"the switch of its check for a stop lets {counts} instructions run")
    return place, check


@cache
def engine_facts() -> EngineFacts:
    """Run the experiments. Raises `UnknownCpuLayout` if any of them comes out differently."""
    scratch = _Scratch()
    user, kernel = _large_mark(scratch, 3), _large_mark(scratch, 0)
    stride = kernel - user
    _check_exception_fields(scratch)
    _check_extended_state(scratch)
    unchecked, check = _stop_check(scratch)
    missed_address = _missed_address(scratch)
    scratch.release()
    return EngineFacts(missed_address, (user - stride, user, kernel), unchecked, check)
