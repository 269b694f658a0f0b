"""The unwinder against execution: at each instruction of a thunk, the registers that it began with."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import unicorn
from iced_x86 import Decoder, FlowControl, Mnemonic, OpKind, RegisterExt
from unicorn import x86_const as x86

from pvpatch.abi.layout import Origin
from pvpatch.bootimage import boot_image
from rewriter.emit.produce import Produced, patch_image
from rewriter.image import parse_image
from runtime.callpages import PatchedImage, find_patched_image
from runtime.unwind.origins import Origins
from runtime.unwind.unwinder import Context, Unwinder
from tests.unwind.kernels import REGISTERS, kernel
from tests.unwind.test_faults import SNIPPETS
from tests.unwind.test_steps import SNIPPETS as STEPPED

STACK, STACK_SIZE = 0x70000000, 0x10000
MOVES = frozenset({
    Mnemonic.PUSH, Mnemonic.POP, Mnemonic.MOV, Mnemonic.MOVZX, Mnemonic.LEA, Mnemonic.XCHG, Mnemonic.NOP,
})  # fmt: skip
FLOWS = (FlowControl.CALL, FlowControl.RETURN, FlowControl.UNCONDITIONAL_BRANCH)
KINDS = [(32, False), (64, False), (32, True)]


@cache
def patched(bits: int, moves: bool) -> Produced:
    texts = (*SNIPPETS[bits].values(), *(() if moves else STEPPED[bits].values()))
    data = kernel(bits, texts, moves=True) if moves else kernel(bits, texts)
    return patch_image(parse_image(data, Path("kernel")))


class Bench:
    """The block of one patched image in an emulator, alone."""

    def __init__(self, bits: int, made: Produced) -> None:
        self.bits, self.word = bits, bits // 8
        found = find_patched_image(boot_image(parse_image(made.file, Path("kernel"))).segments)
        assert found is not None
        self.patched: PatchedImage = found
        self.start, resident = found.locator.resident_phys, made.job.resident
        self.block = resident.data()
        self.uc = unicorn.Uc(unicorn.UC_ARCH_X86, unicorn.UC_MODE_64 if bits == 64 else unicorn.UC_MODE_32)
        self.uc.mem_map(self.start & ~0xFFF, (len(self.block) + 0x2FFF) & ~0xFFF)
        self.uc.mem_write(self.start, self.block)
        self.uc.mem_map(STACK, STACK_SIZE)
        self.names = [getattr(x86, f"UC_X86_REG_{name.upper()}") for name in REGISTERS[bits]]
        self.pc = x86.UC_X86_REG_RIP if bits == 64 else x86.UC_X86_REG_EIP
        self.unwinder = Unwinder(Origins(found, self._load), self._read)

    def _load(self, address: int, size: int) -> bytes:
        return self.block[address - self.start : address - self.start + size]

    def _read(self, address: int, size: int) -> bytes:
        try:
            return bytes(self.uc.mem_read(address, size))
        except unicorn.UcError:
            return b""

    def context(self) -> Context:
        registers = [int(self.uc.reg_read(name)) for name in self.names]
        flags = int(self.uc.reg_read(x86.UC_X86_REG_EFLAGS))
        return Context(self.uc.reg_read(self.pc), tuple([*registers, *[0] * 8][:16]), flags, self.bits)

    def instruction_moves(self, rip: int) -> bool:
        """Only values move, or control, and nothing of the guest's but its stack is touched."""
        code = self._load(rip, 15)
        instruction = Decoder(self.bits, code, ip=rip).decode()
        operands = range(instruction.op_count)
        named = [
            instruction.op_register(index)
            for index in operands
            if instruction.op_kind(index) == OpKind.REGISTER
        ]
        general = all(RegisterExt.is_gpr(register) for register in named)
        return bool(code) and general and (instruction.mnemonic in MOVES or instruction.flow_control in FLOWS)

    def pieces(self, made: Produced) -> Iterator[tuple[Origin, frozenset[int]]]:
        """The pieces of this width, each with the registers that receive its results, or that nobody reads
        any more: a load of SS that cannot restore from the stack uses those (docs/patch.md)."""
        job = made.job
        for window in job.plan.windows:
            if window.bits != self.bits:
                continue
            bound = {piece.instruction.ip: piece for piece in job.moved[window.start].pieces}
            first = job.resident.thunk_offsets[window.start]
            thunk = range(first, first + len(job.resident.thunks[window.start].data))
            for piece in self.patched.origins:
                if piece.offset in thunk and not piece.back and not piece.leaves:
                    delta = job.resident.thunks[window.start].address - first
                    moved = bound.get(piece.origin + delta)
                    binding = moved.binding if moved is not None else None
                    outputs = binding.outputs if binding is not None else ()
                    dead = moved.dead if moved is not None else ()
                    yield piece, frozenset(number for number, _ in outputs) | frozenset(dead)

    def run(self, piece: Origin) -> Iterator[Context]:
        """Begin the piece with known registers; the contexts in it, until it does what it is for."""
        values = {index: 0x10101010 * (index + 1) + index for index in range(len(self.names))}
        values[4] = STACK + STACK_SIZE // 2 - (self.word if piece.anchor is not None else 0)
        for index, name in enumerate(self.names):
            self.uc.reg_write(name, values[index] & (1 << self.bits) - 1)
        self.uc.reg_write(x86.UC_X86_REG_EFLAGS, 0x8D7)
        self.uc.mem_write(STACK, b"\xa5" * STACK_SIZE)
        if piece.anchor is not None:
            back = 0x123456 + piece.anchor
            self.uc.mem_write(values[4], back.to_bytes(self.word, "little"))
        rip = self.start + piece.offset
        self.uc.reg_write(self.pc, rip)
        others = {self.start + item.offset for item in self.patched.origins if item is not piece}
        for _ in range(60):
            yield self.context()
            if not self.instruction_moves(rip):
                return
            try:
                self.uc.emu_start(rip, 0, count=1)
            except unicorn.UcError:
                return
            rip = int(self.uc.reg_read(self.pc))
            if rip in others:
                return


@pytest.mark.parametrize(("bits", "moves"), KINDS)
def test_at_each_instruction_the_guests_registers_are_found(bits: int, moves: bool) -> None:
    bench = Bench(bits, patched(bits, moves))
    checked = 0
    for piece, results in bench.pieces(patched(bits, moves)):
        first: Context | None = None
        for context in bench.run(piece):
            found = bench.unwinder.unwind(context)
            assert found is not None, f"{piece}, {context.rip:#x}"
            first = first or found.context
            assert found.piece == piece
            kept = {number: first.registers[number] for number in range(16) if number not in results}
            assert {number: found.context.registers[number] for number in kept} == kept, f"{context.rip:#x}"
            assert found.context.rip == first.rip
            checked += 1
    assert checked > 200
