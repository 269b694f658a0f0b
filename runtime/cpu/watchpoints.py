"""Data breakpoints of the debug registers: the emulated CPU keeps them and never fires them.

While one is enabled, every access of its kind is looked at, first in machine code by its place in the
page, and the emulator is made to stop behind any instruction; so the trap comes where hardware has it,
behind the access. Without one nothing is hooked and nothing costs. Source: Intel SDM vol. 3, 18.2 (debug
registers).
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

from unicorn import unicorn_const as uc_const

from runtime.cpu.linear import LinearMemory
from runtime.cpu.vcpu import VCpu
from runtime.memory import PageFault

__all__ = ["DataWatchpoints"]

_WRITE, _READ_WRITE = 1, 3
_LENGTHS = (1, 2, 8, 4)
_WIDEST = 8
_IN_PAGE, _HALF_PAGE = 0xFFF, 0x800
_ACCESS = ctypes.CFUNCTYPE(
    None, ctypes.c_void_p, ctypes.c_int, ctypes.c_uint64, ctypes.c_int, ctypes.c_int64, ctypes.c_void_p
)


@dataclass(frozen=True)
class _Watched:
    """One enabled data breakpoint: the register's number, the linear address, the length, reads too."""

    number: int
    address: int
    length: int
    reads: bool


class _Filter(ctypes.Structure):
    """What the machine code compares an access with, offsets in a page; then the callback."""

    _fields_ = (("first", ctypes.c_uint64), ("span", ctypes.c_uint64), ("callback", ctypes.c_void_p))


def _enabled(registers: list[int]) -> frozenset[_Watched]:
    """The data breakpoints that DR0 to DR3 and DR7 describe."""
    control = registers[7]
    found = set()
    for number in range(4):
        kind, length = control >> 16 + 4 * number & 3, control >> 18 + 4 * number & 3
        if control >> 2 * number & 3 and kind in (_WRITE, _READ_WRITE):
            size = _LENGTHS[length]
            found.add(_Watched(number, registers[number] & -size, size, kind == _READ_WRITE))
    return frozenset(found)


class DataWatchpoints:
    """Those of one CPU. `wanted` may be told at any time; `settle` must be called outside the emulator."""

    def __init__(self, cpu: VCpu, memory: LinearMemory) -> None:
        self._cpu = cpu
        self._memory = memory
        self._wanted: frozenset[_Watched] = frozenset()
        self._active: frozenset[_Watched] = frozenset()
        self._hooks: list[int] = []
        self._keep: list[Any] = []
        self.hits = 0
        """Bits of DR6 for what the last instruction accessed."""

    def written(self, number: int, value: int) -> None:
        """DR`number` is about to be written: what is enabled from the next block on?"""
        registers = list(self._cpu.state.dr)
        registers[number] = value
        self._wanted = _enabled(registers)
        if self._wanted != self._active:
            self._cpu.request_stop()

    def settle(self) -> None:
        """Put the hooks in order; the emulator does not run."""
        if self._wanted == self._active:
            return
        for hook in self._hooks:
            self._cpu.remove_hook(hook)
        self._hooks.clear()
        self._keep.clear()
        self._active = self._wanted
        for watched in self._active:
            self._hook(watched)
        if self._active:
            native, control = self._cpu.native, ctypes.addressof(self._cpu.control)
            self._hooks.append(self._cpu.add_hook(uc_const.UC_HOOK_CODE, native.stop_if_asked, control))
        self._cpu.drop_all_translations()

    def _hook(self, watched: _Watched) -> None:
        def accessed(_uc: int, _kind: int, address: int, size: int, _value: int, _data: int) -> None:
            self._accessed(watched, address, size)

        function = _ACCESS(self._cpu.guarded(accessed, None))
        before = _WIDEST - 1
        first = watched.address - before & _IN_PAGE
        callback = ctypes.cast(function, ctypes.c_void_p).value
        entry = _Filter(first, before + watched.length - 1, callback)
        self._keep += [function, entry]
        kinds = uc_const.UC_HOOK_MEM_WRITE | (uc_const.UC_HOOK_MEM_READ if watched.reads else 0)
        code = self._cpu.native.at_offset
        self._hooks.append(self._cpu.add_hook(kinds, code, ctypes.addressof(entry)))

    def _accessed(self, watched: _Watched, address: int, size: int) -> None:
        """An access at physical `address`; the emulator does not tell the linear one, which may be before."""
        distance = (address - watched.address + _HALF_PAGE & _IN_PAGE) - _HALF_PAGE
        if not -size < distance < watched.length:
            return
        try:
            place = self._memory.translate(watched.address + distance, mark=False).physical
        except PageFault:
            return
        if place == address:
            self.hits |= 1 << watched.number
            self._cpu.request_stop()
