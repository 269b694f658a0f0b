"""Writes to L1 tables that are mapped read-only, done after a check (xen/arch/x86/pv/ro-page-fault.c).

Xen decodes with its general emulator; here the instructions that store to a page-table
entry in kernels are known: moves, string stores, bit and logic operations, exchanges and compare-exchanges.
Any other instruction gets its page fault.
"""

from __future__ import annotations

from collections.abc import Callable

from iced_x86 import Instruction, MemorySizeExt, Mnemonic, OpKind, Register

from runtime.backends.xen.domain import Domain
from runtime.backends.xen.frames import PageType, XenError
from runtime.cpu import flags as fl
from runtime.cpu.linear import LinearMemory
from runtime.cpu.vcpu import VCpu
from runtime.deprivileged.operands import Operands, decode_at

__all__ = ["PageTableWrites"]

ENTRY_SIZES = (1, 2, 4, 8)
ACCUMULATOR = {1: Register.AL, 2: Register.AX, 4: Register.EAX, 8: Register.RAX}
_STRING_STORES = {
    Mnemonic.STOSB, Mnemonic.STOSW, Mnemonic.STOSD, Mnemonic.STOSQ,
    Mnemonic.MOVSB, Mnemonic.MOVSW, Mnemonic.MOVSD, Mnemonic.MOVSQ,
}  # fmt: skip
_DESTINATIONS = {OpKind.MEMORY, OpKind.MEMORY_ESDI, OpKind.MEMORY_ESEDI, OpKind.MEMORY_ESRDI}
Result = tuple[int | None, Callable[[], None]]
"""The value to store (None: nothing is stored) and what else the instruction changes."""


def _nothing() -> None:
    return


class PageTableWrites:
    """Emulates stores to the L1 tables of one domain."""

    def __init__(self, domain: Domain, cpu: VCpu) -> None:
        self.domain = domain
        self.cpu = cpu
        self.linear = LinearMemory(cpu)
        self.count = 0

    def emulate(self, address: int) -> bool:
        """The guest kernel faulted writing `address`: True if it was a store to an L1 table and is done."""
        domain = self.domain
        found = domain.tables.walk(domain.space.root(), address)
        if found is None or found.writable:
            return False
        mfn = found.address >> 12
        frames = domain.frames
        if not frames.owned(mfn) or not frames.type_count[mfn] or frames.kind[mfn] != PageType.L1:
            return False
        instruction = decode_at(self.cpu, self.linear)
        if instruction is None or not instruction.op_count or instruction.op0_kind not in _DESTINATIONS:
            return False
        size = int(MemorySizeExt.size(instruction.memory_size))
        if size not in ENTRY_SIZES or found.address % size:
            return False
        operands = Operands(self.cpu, instruction)
        old = int.from_bytes(domain.memory.load(found.address, size), "little")
        result = self._carry_out(instruction, operands, old, size)
        if result is None:
            return False
        value, finish = result
        if value is not None and not self._store(found.address, value, size):
            return False
        if not self._repeats(instruction):
            operands.skip()
        finish()
        domain.cpu.flush()
        self.count += 1
        return True

    def _store(self, address: int, value: int, size: int) -> bool:
        """Write `size` bytes of an entry as an update of the whole entry."""
        entry = address & ~7
        if size < 8:
            whole = int.from_bytes(self.domain.memory.load(entry, 8), "little")
            shift = 8 * (address - entry)
            mask = (1 << 8 * size) - 1
            value = whole & ~(mask << shift) | (value & mask) << shift
        try:
            self.domain.tables.write_entry(entry, value)
        except XenError:
            # A PAE entry written in halves passes through a wrong value: Xen makes it not present.
            if self.domain.width != 32 or size != 4 or address != entry:
                return False
            self.domain.tables.write_entry(entry, value & ~1)
        return True

    def _repeats(self, instruction: Instruction) -> bool:
        """Count one iteration of a repeated string store; True while more are to come."""
        if instruction.mnemonic not in _STRING_STORES or not instruction.has_rep_prefix:
            return False
        mask = (1 << self.cpu.code_width) - 1
        left = (int(self.cpu.state.gpr[fl.RCX]) - 1) & mask
        self.cpu.state.gpr[fl.RCX] = left
        return left != 0

    def _carry_out(self, instruction: Instruction, operands: Operands, old: int, size: int) -> Result | None:
        mnemonic, mask = instruction.mnemonic, (1 << 8 * size) - 1
        if mnemonic in _STRING_STORES:
            return self._string(instruction, operands, size)
        if mnemonic in (Mnemonic.MOV, Mnemonic.MOVNTI):
            return operands.value(1) & mask, _nothing
        if mnemonic in _LOGIC:
            value = _LOGIC[mnemonic](old, operands.value(1) & mask)
            return value, lambda: self._logic_flags(value, size)
        if mnemonic == Mnemonic.XCHG:
            register = instruction.op1_register
            return operands.register(register), lambda: operands.set_register(register, old)
        if mnemonic == Mnemonic.CMPXCHG:
            return self._compare_exchange(operands, old, size)
        if mnemonic == Mnemonic.CMPXCHG8B:
            return self._compare_exchange_8(operands, old)
        if mnemonic in _BITS:
            bit = 1 << (operands.value(1) % (8 * size))
            return _BITS[mnemonic](old, bit) & mask, lambda: self._flag(fl.CF, bool(old & bit))
        return None

    def _string(self, instruction: Instruction, operands: Operands, size: int) -> Result | None:
        """STOS and MOVS: one iteration."""
        state = self.cpu.state
        step = -size if self.cpu.rflags & fl.DF else size
        mask = (1 << self.cpu.code_width) - 1
        moves = instruction.mnemonic in (Mnemonic.MOVSB, Mnemonic.MOVSW, Mnemonic.MOVSD, Mnemonic.MOVSQ)
        if moves:
            base = int(state.segments[fl.DS].base) if self.cpu.code_width == 32 else 0
            try:
                value = self.domain.space.word(base + int(state.gpr[fl.RSI]), size)
            except XenError:
                return None
        else:
            value = operands.register(ACCUMULATOR[size])

        def advance() -> None:
            state.gpr[fl.RDI] = (int(state.gpr[fl.RDI]) + step) & mask
            if moves:
                state.gpr[fl.RSI] = (int(state.gpr[fl.RSI]) + step) & mask

        return value, advance

    def _compare_exchange(self, operands: Operands, old: int, size: int) -> Result:
        accumulator = ACCUMULATOR[size]
        if operands.register(accumulator) == old:
            return operands.value(1) & (1 << 8 * size) - 1, lambda: self._flag(fl.ZF, True)

        def failed() -> None:
            operands.set_register(accumulator, old)
            self._flag(fl.ZF, False)

        return None, failed

    def _compare_exchange_8(self, operands: Operands, old: int) -> Result:
        expected = operands.register(Register.EDX) << 32 | operands.register(Register.EAX)
        if expected == old:
            value = operands.register(Register.ECX) << 32 | operands.register(Register.EBX)
            return value, lambda: self._flag(fl.ZF, True)

        def failed() -> None:
            operands.set_register(Register.EAX, old & 0xFFFFFFFF)
            operands.set_register(Register.EDX, old >> 32)
            self._flag(fl.ZF, False)

        return None, failed

    def _flag(self, flag: int, value: bool) -> None:
        self.cpu.rflags = self.cpu.rflags & ~flag | (flag if value else 0)

    def _logic_flags(self, value: int, size: int) -> None:
        """AND, OR, XOR: CF and OF clear; ZF, SF, PF by the result (SDM volume 1, appendix A)."""
        found = (fl.ZF if not value else 0) | (fl.SF if value >> 8 * size - 1 else 0)
        found |= 0 if (value & 0xFF).bit_count() & 1 else fl.PF
        self.cpu.rflags = self.cpu.rflags & ~fl.ARITHMETIC | found


_LOGIC: dict[int, Callable[[int, int], int]] = {
    Mnemonic.AND: lambda old, other: old & other,
    Mnemonic.OR: lambda old, other: old | other,
    Mnemonic.XOR: lambda old, other: old ^ other,
}
_BITS: dict[int, Callable[[int, int], int]] = {
    Mnemonic.BTS: lambda old, bit: old | bit,
    Mnemonic.BTR: lambda old, bit: old & ~bit,
    Mnemonic.BTC: lambda old, bit: old ^ bit,
}
