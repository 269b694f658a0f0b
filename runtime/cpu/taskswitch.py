"""Hardware task switch through a task gate (32-bit TSS), as double-fault handlers use it.

Intel SDM vol. 3 chapter 7: the outgoing task's registers go to its TSS, the incoming task's come
from the new one, NT and the back link are set as for a nested task. Faults while the new task is
being loaded are raised in the new task's context on hardware; here they end in #TS as the checks
before the commit point do.
"""

from __future__ import annotations

import struct

from runtime.cpu import flags as fl
from runtime.cpu.linear import LinearMemory
from runtime.cpu.segments import Descriptor, load_cache, read_descriptor, update_modes
from runtime.cpu.vcpu import VCpu

__all__ = ["switch_task"]

_TSS_SIZE = 104
_TSS_AVAILABLE, _TSS_BUSY = 0x9, 0xB
_SEGMENT_ORDER = (fl.ES, fl.CS, fl.SS, fl.DS, fl.FS, fl.GS)


def switch_task(cpu: VCpu, memory: LinearMemory, selector: int, error_code: int | None, *, ext: bool) -> None:
    """Enter the task whose TSS `selector` names and push `error_code` on its stack if there is one."""
    from runtime.cpu.delivery import CpuFault

    error = selector & 0xFFFC | int(ext)
    target = None if selector & 4 else read_descriptor(cpu, memory, selector)
    if target is None or target.kind != _TSS_AVAILABLE or target.high & fl.DESC_SYSTEM:
        raise CpuFault(fl.GP, error)
    if not target.present:
        raise CpuFault(fl.NP, error)
    if target.limit < _TSS_SIZE - 1:
        raise CpuFault(fl.TS_FAULT, error)
    state = cpu.state
    incoming = memory.read(target.base, _TSS_SIZE)
    _save_outgoing(cpu, memory)
    old_selector = state.tr.selector
    memory.write(target.base, struct.pack("<I", old_selector))
    gdt_entry = state.gdt.base + (selector & ~7)
    memory.write(gdt_entry + 4, struct.pack("<I", target.high | 0x200))
    state.tr.selector, state.tr.base, state.tr.limit = selector, target.base, target.limit
    state.tr.flags = (target.high | 0x200) & 0x00F0FF00
    _load_incoming(cpu, memory, incoming)
    state.cr[0] |= fl.CR0_TS
    state.hflags |= fl.HF_TS
    if error_code is not None:
        esp = (state.gpr[fl.RSP] - 4) & 0xFFFFFFFF
        memory.write(state.segments[fl.SS].base + esp & 0xFFFFFFFF, struct.pack("<I", error_code))
        state.gpr[fl.RSP] = esp


def _save_outgoing(cpu: VCpu, memory: LinearMemory) -> None:
    """EIP, EFLAGS, general and segment registers into the current TSS (offsets 0x20 to 0x5c)."""
    state = cpu.state
    words = [state.rip, cpu.rflags, *(state.gpr[index] for index in range(8))]
    words += [state.segments[index].selector for index in _SEGMENT_ORDER]
    memory.write(state.tr.base + 0x20, struct.pack("<16I", *(word & 0xFFFFFFFF for word in words)))


def _load_incoming(cpu: VCpu, memory: LinearMemory, tss: bytes) -> None:
    """Everything the new TSS holds: CR3 first, then registers, LDT and segments."""
    from runtime.cpu.delivery import CpuFault

    state = cpu.state
    cr3, eip, eflags, *rest = struct.unpack_from("<19I", tss, 0x1C)
    if state.cr[0] & fl.CR0_PG:
        cpu.write_control(3, cr3)
    for index in range(8):
        state.gpr[index] = rest[index]
    ldt = rest[14] & 0xFFFF
    descriptor = read_descriptor(cpu, memory, ldt) if ldt & ~3 else None
    state.ldt.selector = ldt
    state.ldt.base, state.ldt.limit = (descriptor.base, descriptor.limit) if descriptor else (0, 0)
    level = rest[9] & 3
    for position, index in enumerate(_SEGMENT_ORDER):
        selector = rest[8 + position] & 0xFFFF
        segment: Descriptor | None = read_descriptor(cpu, memory, selector) if selector & ~3 else None
        if segment is None:
            if index in (fl.CS, fl.SS):
                raise CpuFault(fl.TS_FAULT, selector & 0xFFFC | 1)
            load_cache(cpu, index, selector, 0, 0, 0)
        else:
            load_cache(cpu, index, selector, segment.base, segment.limit, segment.high)
    state.rip = eip
    cpu.rflags = eflags | fl.NT
    update_modes(cpu, level)
