"""Breakpoints of a domain's debug registers (Intel SDM volume 3, 17.2): of instructions, writes, accesses.

The emulated CPU knows none of data. While a register is enabled every instruction of the run is looked at,
which is slow and costs nothing otherwise. A data breakpoint is found by the machine address that it
translates to when it is set.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from unicorn import unicorn_const as uc_const

from runtime.cpu import flags as fl

if TYPE_CHECKING:
    from collections.abc import Sequence

    from runtime.machine import Machine

__all__ = ["Breakpoint", "Breakpoints", "enabled"]

_STEP = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_uint64, ctypes.c_uint32, ctypes.c_void_p)
_ACCESS = ctypes.CFUNCTYPE(
    None, ctypes.c_void_p, ctypes.c_int, ctypes.c_uint64, ctypes.c_int, ctypes.c_int64, ctypes.c_void_p
)
_EXECUTE, _WRITE, _PORT, _ACCESSED = range(4)
_LENGTHS = (1, 2, 8, 4)
_MASK64 = (1 << 64) - 1


@dataclass(frozen=True)
class Breakpoint:
    """One enabled register: its number, linear address, kind (R/W bits of DR7) and length in bytes."""

    number: int
    address: int
    kind: int
    length: int


def enabled(registers: Sequence[int]) -> tuple[Breakpoint, ...]:
    """What DR7 enables among DR0 to DR3."""
    control = registers[7]
    found = []
    for number in range(4):
        if control >> 2 * number & 3:
            bits = control >> 16 + 4 * number & 15
            length = _LENGTHS[bits >> 2]
            found.append(Breakpoint(number, registers[number] & -length & _MASK64, bits & 3, length))
    return tuple(found)


class Breakpoints:
    """The hooks behind the debug registers of one domain.

    `machine_address` says where a linear address leads now, None where nowhere; `fire` is told the
    bits of DR6, and whether they are those of an instruction, and gives the guest its #DB.
    """

    def __init__(
        self,
        machine: Machine,
        machine_address: Callable[[int], int | None],
        fire: Callable[[int, bool], None],
    ) -> None:
        self._machine = machine
        self._machine_address = machine_address
        self._fire = fire
        self._wanted: tuple[Breakpoint, ...] = ()
        self._code: dict[int, int] = {}
        self._hooks: list[int] = []
        self._hit = 0

    def changed(self, registers: Sequence[int]) -> None:
        """DR0-3 or DR7 were written. Hooks cannot change inside the emulator, which ends before the next
        instruction."""
        wanted = enabled(registers)
        if wanted != self._wanted:
            self._wanted = wanted
            clock = self._machine.clock
            clock.schedule_in_background(clock.now_ns, self._install)

    def _install(self) -> None:
        cpu = self._machine.cpu
        for hook in self._hooks:
            cpu.remove_hook(hook)
        self._hooks.clear()
        self._hit = 0
        self._code = {item.address: 1 << item.number for item in self._wanted if item.kind == _EXECUTE}
        for item in self._wanted:
            place = self._machine_address(item.address) if item.kind in (_WRITE, _ACCESSED) else None
            if place is not None:
                self._watch(item, place)
        if self._wanted:
            step = _STEP(cpu.guarded(lambda _uc, address, _size, _data: self._step(address), None))
            data = ctypes.cast(step, ctypes.c_void_p).value or 0
            self._hooks.append(cpu.add_hook(uc_const.UC_HOOK_CODE, cpu.native.arrived, data))
            self._keep(step)
        cpu.drop_all_translations()

    def _watch(self, item: Breakpoint, place: int) -> None:
        cpu, bit = self._machine.cpu, 1 << item.number

        def touched(*_arguments: int) -> None:
            self._hit |= bit

        kinds = uc_const.UC_HOOK_MEM_WRITE
        if item.kind == _ACCESSED:
            kinds |= uc_const.UC_HOOK_MEM_READ
        callback = _ACCESS(cpu.guarded(touched, None))
        self._hooks.append(cpu.add_hook(kinds, callback, 0, place, place + item.length - 1))

    def _keep(self, callback: object) -> None:
        """The emulator has only its address."""
        self._kept = callback

    def _step(self, address: int) -> None:
        """Before each instruction: a trap of the one before, or the fault of this one."""
        cpu, state = self._machine.cpu, self._machine.cpu.state
        hit, self._hit = self._hit, 0
        is_trap = bool(hit)
        if not is_trap:
            hit = self._code.get(address, 0)
            if not hit:
                return
            if cpu.rflags & fl.RF:  # it has had its #DB
                cpu.rflags &= ~fl.RF
                return
        base = 0 if cpu.code_width == 64 else int(state.segments[fl.CS].base)
        state.rip = address - base & _MASK64
        self._fire(hit, not is_trap)
        cpu.jump(int(state.rip))
