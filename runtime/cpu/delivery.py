"""Delivery of exceptions, interrupts and INT n through the guest's IDT, at both widths.

Unicorn only reports that something happened; everything the hardware would do next is here:
gate lookup and checks, stack switch (TSS, IST), the frame, the flags, and what follows when
delivery itself faults: a contributory pair becomes a double fault, a fault in that shuts the CPU
down (Intel SDM vol. 3, sections 6.12 to 6.15).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from runtime.cpu import flags as fl
from runtime.cpu.linear import LinearMemory
from runtime.cpu.segments import (
    Descriptor,
    load_cache,
    read_descriptor,
    set_code_segment,
    set_stack_segment,
    update_modes,
)
from runtime.cpu.taskswitch import switch_task
from runtime.cpu.vcpu import VCpu
from runtime.memory import PageFault

__all__ = ["CpuFault", "Deliverer", "Event", "TripleFault", "software_interrupt"]

_GATE_TASK, _GATE_INT16, _GATE_TRAP16, _GATE_INT32, _GATE_TRAP32 = 0x5, 0x6, 0x7, 0xE, 0xF


class TripleFault(Exception):
    """The CPU shut down: delivering the double fault failed as well."""

    def __init__(self, event: Event) -> None:
        super().__init__(f"triple fault while delivering {event.name}")
        self.event = event


class CpuFault(Exception):
    """A fault raised while the CPU works on something else."""

    def __init__(self, vector: int, error_code: int) -> None:
        super().__init__(f"{fl.EXCEPTION_NAMES.get(vector, vector)}({error_code:#x})")
        self.vector = vector
        self.error_code = error_code


@dataclass(frozen=True)
class Event:
    """Something to deliver. `error_code` is pushed only for the vectors that have one."""

    vector: int
    error_code: int = 0
    software: bool = False
    """INT n, INT3 or INTO: the gate's DPL is checked, no error code, EXT bit clear."""
    length: int = 0
    """Bytes of the software interrupt's instruction: a fault while delivering it points at it."""
    external: bool = False
    """A hardware interrupt: no error code whatever the vector."""

    @property
    def name(self) -> str:
        """`#PF(0x2)`, `INT 0x80` or `IRQ vector 0x20`."""
        if self.software:
            return f"INT {self.vector:#x}"
        if self.external:
            return f"interrupt vector {self.vector:#x}"
        name = fl.EXCEPTION_NAMES.get(self.vector, f"exception {self.vector}")
        return f"{name}({self.error_code:#x})" if self.vector in fl.HAS_ERROR_CODE else name

    @property
    def pushes_error_code(self) -> bool:
        """True if the frame ends with an error code."""
        return not self.software and not self.external and self.vector in fl.HAS_ERROR_CODE


@dataclass(frozen=True)
class _Gate:
    selector: int
    offset: int
    kind: int
    dpl: int
    present: bool
    ist: int


_ONE_BYTE = {fl.BP: b"\xcc", fl.OV: b"\xce"}


def software_interrupt(vector: int, before: Callable[[], bytes]) -> Event:
    """INT n, INT3 or INTO; `before` reads the byte in front of the saved RIP, which tells them apart."""
    one_byte = vector in _ONE_BYTE and before() == _ONE_BYTE[vector]
    return Event(vector, software=True, length=1 if one_byte else 2)


class Deliverer:
    """Puts events into the guest of one CPU."""

    def __init__(self, cpu: VCpu, memory: LinearMemory) -> None:
        self._cpu = cpu
        self._memory = memory

    def deliver(self, event: Event) -> None:
        """Deliver `event` with RIP where the frame shall point.

        Faults during delivery turn into the architectural exceptions; raises `TripleFault` when
        even the double fault cannot be delivered.
        """
        current = event
        while True:
            saved = self._snapshot()
            try:
                self._deliver_once(current)
                return
            except PageFault as fault:
                self._restore(saved)
                self._cpu.state.cr[2] = fault.linear
                nested = Event(fl.PAGE_FAULT, fault.error_code)
            except CpuFault as fault:
                self._restore(saved)
                nested = Event(fault.vector, fault.error_code)
            if current.length:
                self._cpu.state.rip -= current.length
            if current.vector == fl.DOUBLE_FAULT and not current.software and not current.external:
                raise TripleFault(event)
            current = _combine(current, nested)

    # -- saved state, so that a failed delivery leaves the interrupted context as it was ---------

    def _snapshot(self) -> tuple[bytes, int, int, int, int]:
        state = self._cpu.state
        return bytes(state.segments), state.gpr[fl.RSP], state.rip, state.hflags, self._cpu.rflags

    def _restore(self, saved: tuple[bytes, int, int, int, int]) -> None:
        state = self._cpu.state
        segments, state.gpr[fl.RSP], state.rip, state.hflags, self._cpu.rflags = saved
        state.segments = type(state.segments).from_buffer_copy(segments)

    # -- the gate ------------------------------------------------------------------------------

    def _read_gate(self, event: Event, wide: bool) -> _Gate:
        """The IDT entry, with the checks of SDM 6.12 that concern the table itself."""
        idt = self._cpu.state.idt
        size = 16 if wide else 8
        error = event.vector * 8 + 2 + (0 if event.software else 1)
        if event.vector * size + size - 1 > idt.limit:
            raise CpuFault(fl.GP, error)
        raw = self._memory.read(idt.base + event.vector * size, size)
        low, high = int.from_bytes(raw[:4], "little"), int.from_bytes(raw[4:8], "little")
        offset = low & 0xFFFF | high & 0xFFFF0000
        if wide:
            offset |= int.from_bytes(raw[8:12], "little") << 32
        gate = _Gate(
            selector=low >> 16,
            offset=offset,
            kind=high >> 8 & 0x1F,
            dpl=high >> 13 & 3,
            present=bool(high & fl.DESC_PRESENT),
            ist=high & 7 if wide else 0,
        )
        valid = (
            (_GATE_INT32, _GATE_TRAP32)
            if wide
            else (_GATE_TASK, _GATE_INT16, _GATE_TRAP16, _GATE_INT32, _GATE_TRAP32)
        )
        if gate.kind not in valid or (event.software and gate.dpl < self._cpu.cpl):
            raise CpuFault(fl.GP, error)
        if not gate.present:
            raise CpuFault(fl.NP, error)
        return gate

    def _code_descriptor(self, event: Event, gate: _Gate, wide: bool) -> tuple[Descriptor, int]:
        """The handler's code segment and the privilege level it runs at."""
        ext = 0 if event.software else 1
        if gate.selector & ~3 == 0:
            raise CpuFault(fl.GP, ext)
        error = gate.selector & 0xFFFC | ext
        code = read_descriptor(self._cpu, self._memory, gate.selector)
        if code is None or not code.is_code or code.dpl > self._cpu.cpl:
            raise CpuFault(fl.GP, error)
        if wide and (not code.high & fl.DESC_LONG or code.high & fl.DESC_BIG):
            raise CpuFault(fl.GP, error)
        if not code.present:
            raise CpuFault(fl.NP, error)
        conforming = code.high & fl.DESC_CONFORMING
        return code, self._cpu.cpl if conforming else code.dpl

    # -- the two widths ------------------------------------------------------------------------

    def _deliver_once(self, event: Event) -> None:
        wide = self._cpu.long_mode
        gate = self._read_gate(event, wide)
        if gate.kind == _GATE_TASK:
            error = event.error_code if event.pushes_error_code else None
            switch_task(self._cpu, self._memory, gate.selector, error, ext=not event.software)
            return
        code, level = self._code_descriptor(event, gate, wide)
        if wide:
            self._enter64(event, gate, code, level)
        else:
            self._enter32(event, gate, code, level)
        rflags = self._cpu.rflags & ~(fl.TF | fl.NT | fl.RF | fl.VM)
        if gate.kind in (_GATE_INT32, _GATE_INT16):
            rflags &= ~fl.IF
        self._cpu.rflags = rflags
        self._cpu.state.hflags &= ~fl.HF_INHIBIT_IRQ

    def _saved_rflags(self, event: Event) -> int:
        """RFLAGS as pushed: RF is set for faults, so that a breakpoint there does not repeat, and clear for
        what comes behind an instruction, which cleared it (the emulator does so at a block's end)."""
        rflags = self._cpu.rflags
        is_fault = not event.software and not event.external and event.vector not in (fl.DB, fl.BP, fl.OV)
        return rflags | fl.RF if is_fault else rflags & ~fl.RF

    def _enter64(self, event: Event, gate: _Gate, code: Descriptor, level: int) -> None:
        state = self._cpu.state
        segments = state.segments
        old_ss, old_rsp = segments[fl.SS].selector, state.gpr[fl.RSP]
        changes = level != self._cpu.cpl
        if gate.ist:
            rsp = self._stack64(36 + (gate.ist - 1) * 8)
        elif changes:
            rsp = self._stack64(4 + level * 8)
        else:
            rsp = old_rsp
        rsp &= ~15
        words = [old_ss, old_rsp, self._saved_rflags(event), segments[fl.CS].selector, state.rip]
        if event.pushes_error_code:
            words.append(event.error_code & 0xFFFFFFFF)
        frame = b"".join(word.to_bytes(8, "little") for word in reversed(words))
        if not _canonical(rsp) or not _canonical(rsp - len(frame)):
            raise CpuFault(fl.SS_FAULT, 0 if event.software else 1)
        self._memory.write(rsp - len(frame), frame)
        if not _canonical(gate.offset):
            raise CpuFault(fl.GP, 0 if event.software else 1)
        if changes:
            load_cache(self._cpu, fl.SS, level, 0, 0, 0)
        set_code_segment(self._cpu, gate.selector & ~3 | level, code)
        state.gpr[fl.RSP] = rsp - len(frame)
        state.rip = gate.offset
        update_modes(self._cpu, level)

    def _stack64(self, offset: int) -> int:
        """A stack pointer out of the 64-bit TSS."""
        tr = self._cpu.state.tr
        if offset + 7 > tr.limit:
            raise CpuFault(fl.TS_FAULT, tr.selector & 0xFFFC)
        return self._memory.read_u64(tr.base + offset)

    def _enter32(self, event: Event, gate: _Gate, code: Descriptor, level: int) -> None:
        state = self._cpu.state
        segments = state.segments
        from_v86 = bool(self._cpu.rflags & fl.VM)
        changes = level < self._cpu.cpl
        if from_v86 and level != 0:
            raise CpuFault(fl.GP, gate.selector & 0xFFFC)
        size = 4 if gate.kind in (_GATE_INT32, _GATE_TRAP32) else 2
        words: list[int] = []
        stack: Descriptor | None = None
        if changes:
            new_ss, new_esp, stack = self._stack32(event, level)
            base, esp, wide_stack = stack.base, new_esp, bool(stack.high & fl.DESC_BIG)
            if from_v86:
                words += [segments[index].selector for index in (fl.GS, fl.FS, fl.DS, fl.ES)]
            words += [segments[fl.SS].selector, state.gpr[fl.RSP]]
        else:
            new_ss = segments[fl.SS].selector
            base, esp = segments[fl.SS].base, state.gpr[fl.RSP]
            wide_stack = bool(segments[fl.SS].flags & fl.DESC_BIG)
        words += [self._saved_rflags(event), segments[fl.CS].selector, state.rip]
        if event.pushes_error_code:
            words.append(event.error_code)
        mask = (1 << size * 8) - 1
        frame = b"".join((word & mask).to_bytes(size, "little") for word in reversed(words))
        esp_mask = 0xFFFFFFFF if wide_stack else 0xFFFF
        new = (esp - len(frame)) & esp_mask
        self._memory.write((base + new) & 0xFFFFFFFF, frame)
        if stack is not None:
            if from_v86:
                for index in (fl.DS, fl.ES, fl.FS, fl.GS):
                    load_cache(self._cpu, index, 0, 0, 0, 0)
            set_stack_segment(self._cpu, new_ss, stack)
        set_code_segment(self._cpu, gate.selector & ~3 | level, code)
        state.gpr[fl.RSP] = state.gpr[fl.RSP] & 0xFFFFFFFF & ~esp_mask | new
        state.rip = gate.offset & mask
        state.eflags &= ~fl.VM
        update_modes(self._cpu, level)

    def _stack32(self, event: Event, level: int) -> tuple[int, int, Descriptor]:
        """SS and ESP for `level` out of the TSS, checked as in SDM 6.12.1."""
        tr = self._cpu.state.tr
        is_32 = tr.flags >> 8 & 8
        place, size = (level * 8 + 4, 4) if is_32 else (level * 4 + 2, 2)
        if place + size + 1 > tr.limit:
            raise CpuFault(fl.TS_FAULT, tr.selector & 0xFFFC)
        raw = self._memory.read(tr.base + place, size + 2)
        esp, ss = int.from_bytes(raw[:size], "little"), int.from_bytes(raw[size:], "little")
        ext = 0 if event.software else 1
        error = ss & 0xFFFC | ext
        if ss & ~3 == 0:
            raise CpuFault(fl.TS_FAULT, ext)
        stack = read_descriptor(self._cpu, self._memory, ss)
        if stack is None or ss & 3 != level or stack.dpl != level or not stack.is_writable_data:
            raise CpuFault(fl.TS_FAULT, error)
        if not stack.present:
            raise CpuFault(fl.SS_FAULT, error)
        return ss, esp, stack


def _canonical(address: int) -> bool:
    """True if bits 47..63 are equal."""
    return address >> 47 in (0, 0x1FFFF)


def _combine(first: Event, second: Event) -> Event:
    """What is delivered when delivering `first` raised `second` (SDM table 6-5)."""
    if first.software or first.external:
        return second
    benign = first.vector not in fl.CONTRIBUTORY and first.vector != fl.PAGE_FAULT
    if benign:
        return second
    if second.vector in fl.CONTRIBUTORY:
        return Event(fl.DOUBLE_FAULT)
    if first.vector == fl.PAGE_FAULT and second.vector == fl.PAGE_FAULT:
        return Event(fl.DOUBLE_FAULT)
    return second
