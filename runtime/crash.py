"""The report of a guest that crashed: registers, code, stack, nearest symbol."""

from __future__ import annotations

import bisect

from runtime.boot.model import BootImage
from runtime.cpu import flags as fl
from runtime.cpu.delivery import Event
from runtime.cpu.linear import LinearMemory
from runtime.cpu.start import GPR_NAMES
from runtime.cpu.vcpu import VCpu
from runtime.outcome import CrashReport

__all__ = ["crash_report", "nearest_symbol"]

_CODE_BYTES = 32
_STACK_WORDS = 8
_SYMBOL_REACH = 1 << 20


def nearest_symbol(image: BootImage, address: int) -> str:
    """`name+0x10`, or an empty string when no symbol is near."""
    starts = [entry[0] for entry in image.symbols]
    position = bisect.bisect_right(starts, address) - 1
    if position < 0:
        return ""
    start, _, name = image.symbols[position]
    distance = address - start
    if distance > _SYMBOL_REACH:
        return ""
    return f"{name}+{distance:#x}" if distance else name


def crash_report(
    cpu: VCpu, memory: LinearMemory, image: BootImage, reason: str, event: Event | None
) -> CrashReport:
    """Collect the state; reads guest memory without marking anything accessed."""
    state = cpu.state
    registers = {name: state.gpr[index] for index, name in enumerate(GPR_NAMES)}
    registers |= {"rip": state.rip, "rflags": cpu.rflags, "cpl": cpu.cpl, "efer": state.efer}
    registers |= {f"cr{number}": state.cr[number] for number in (0, 2, 3, 4)}
    for index, name in enumerate(("es", "cs", "ss", "ds", "fs", "gs")):
        registers[name] = state.segments[index].selector
    width = cpu.code_width
    linear = state.rip if width == 64 else (state.segments[fl.CS].base + state.rip) & 0xFFFFFFFF
    step = 8 if width == 64 else 4
    stack_base = 0 if width == 64 else state.segments[fl.SS].base
    raw = memory.try_read(stack_base + state.gpr[fl.RSP], _STACK_WORDS * step)
    stack = tuple(
        int.from_bytes(raw[index : index + step], "little") for index in range(0, len(raw) - step + 1, step)
    )
    return CrashReport(
        reason=reason,
        vector=event.vector if event else None,
        error_code=event.error_code if event else None,
        registers=registers,
        code_address=linear,
        code=memory.try_read(linear, _CODE_BYTES),
        width=width,
        symbol=nearest_symbol(image, linear),
        stack=stack,
    )
