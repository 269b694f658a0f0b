"""A list of instructions on its way to bytes.

Instructions are built with iced (never from text), branches inside the list go through
labels, and every instruction is encoded in its near form, so sizes do not depend on where
the list is placed: one pass to measure, one to encode. What was encoded is decoded again
and compared with the intent by ``rewriter.verify``; nothing here is believed unchecked.

None of the instructions that the generator methods make changes a flag: a replaced
instruction has no clobber list, so only MOV, MOVZX, LEA, PUSH, POP and branches are used.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from iced_x86 import Code, Encoder, Instruction, MemoryOperand, OpKind, Register

from pvpatch.abi.errors import SelfCheckError

__all__ = ["Assembly", "Encoded", "Item", "Label", "Place", "Stand"]

GPR64 = ("RAX", "RCX", "RDX", "RBX", "RSP", "RBP", "RSI", "RDI", *(f"R{n}" for n in range(8, 16)))
GPR32 = ("EAX", "ECX", "EDX", "EBX", "ESP", "EBP", "ESI", "EDI", *(f"R{n}D" for n in range(8, 16)))
GPR16 = ("AX", "CX", "DX", "BX", "SP", "BP", "SI", "DI", *(f"R{n}W" for n in range(8, 16)))

_BY_SIZE: dict[int, tuple[int, ...]] = {
    8: tuple(getattr(Register, name) for name in GPR64),
    4: tuple(getattr(Register, name) for name in GPR32),
    2: tuple(getattr(Register, name) for name in GPR16),
}

SP = 4  # number of the stack pointer in the architecture's register numbering


@dataclass(eq=False)
class Label:
    """A place in one assembly, named by identity."""

    name: str = ""


@dataclass(frozen=True)
class Place:
    """A memory operand: registers are numbered 0-15 as the architecture does, ``None`` if absent.

    ``segment`` is an iced segment register when an override prefix is wanted, else 0.
    ``rip`` marks a RIP-relative operand, whose ``displacement`` is the absolute target.
    """

    base: int | None = None
    index: int | None = None
    scale: int = 1
    displacement: int = 0
    segment: int = Register.NONE
    rip: bool = False
    address_size: int = 0  # 0: the width of the code

    def reads(self) -> frozenset[int]:
        """Numbers of the registers that the address depends on."""
        return frozenset(number for number in (self.base, self.index) if number is not None)

    def moved(self, depth: int) -> Place:
        """The same place seen after ``depth`` bytes were pushed."""
        if self.base != SP or depth == 0:
            return self
        return Place(
            SP, self.index, self.scale, self.displacement + depth, self.segment, self.rip, self.address_size
        )

    def plus(self, offset: int) -> Place:
        """The place ``offset`` bytes further."""
        return Place(
            self.base,
            self.index,
            self.scale,
            self.displacement + offset,
            self.segment,
            self.rip,
            self.address_size,
        )


@dataclass
class Item:
    """One instruction, with what it stands for.

    ``origin`` is the address of the guest's instruction that this one re-creates, if any;
    ``target`` the label it branches to, if it branches inside the assembly. ``relative``
    (label, address): its displacement is the distance from the label to the address. ``site`` is
    the address of the guest's instruction that it serves, None for the way back. ``raw`` are its
    bytes where those of the guest are kept, redundant prefixes included.
    """

    instruction: Instruction
    target: Label | None = None
    origin: int | None = None
    relative: tuple[Label, int] | None = None
    site: int | None = None
    raw: bytes = b""


@dataclass(frozen=True)
class Stand:
    """From ``offset`` in the code on, what runs stands for the guest's instruction at ``address``;
    ``leaves``: it goes on in a slot that does not come back; ``called``: the return address of the site's
    own call, where it made one, is still on the stack."""

    offset: int
    address: int
    leaves: bool = False
    called: bool = True


@dataclass(frozen=True)
class Encoded:
    """Bytes of an assembly at one address, with the instructions as they were meant.

    ``homes`` says where the code for each of the guest's instructions begins now, ``stands`` what each
    piece of the code stands for, in order, ``labels`` the offset of each label.
    """

    address: int
    data: bytes
    starts: tuple[int, ...]
    items: tuple[Item, ...]
    homes: Mapping[int, int]
    stands: tuple[Stand, ...] = ()
    labels: Mapping[Label, int] = field(default_factory=dict)


@dataclass
class Assembly:
    """Instructions for one width (32 or 64) and the generator methods that make them."""

    bits: int
    items: list[Item] = field(default_factory=list)
    serving: int | None = None
    """The guest's instruction that what is appended next serves (`Item.site`)."""
    _labels: dict[Label, int] = field(default_factory=dict)
    _homes: dict[int, int] = field(default_factory=dict)
    _stands: list[tuple[int, int, bool, bool]] = field(default_factory=list)

    @property
    def word(self) -> int:
        """Bytes of a stack slot."""
        return self.bits // 8

    def register(self, number: int, size: int = 0) -> int:
        """The iced register of an architectural number at ``size`` bytes (default: the word)."""
        return _BY_SIZE[size or self.word][number]

    # ---- structure -------------------------------------------------------------------

    def add(self, instruction: Instruction, target: Label | None = None, origin: int | None = None) -> None:
        """Append one instruction."""
        self.items.append(Item(instruction, target, origin, site=self.serving))

    def keep(self, instruction: Instruction, code: bytes) -> None:
        """Append a guest's instruction with its own bytes ``code``; encoded anew where they depend on its
        place, or are not given."""
        raw = b"" if instruction.is_ip_rel_memory_operand else code
        self.items.append(Item(instruction.copy(), None, instruction.ip, site=self.serving, raw=raw))

    def place(self, label: Label) -> None:
        """Define ``label`` here."""
        self._labels[label] = len(self.items)

    def mark(self, address: int) -> None:
        """The code for the guest's instruction at ``address`` begins here."""
        self._homes.setdefault(address, len(self.items))

    def stand_for(self, address: int, *, leaves: bool = False, called: bool = True) -> None:
        """What follows stands for the guest's instruction at ``address``; see ``Stand``."""
        self._stands.append((len(self.items), address, leaves, called))

    def pointer(self, place: Place) -> MemoryOperand:
        """The iced operand of a place."""
        size = place.address_size or self.word
        if place.rip:
            target = ((place.displacement & (2**64 - 1)) ^ (1 << 63)) - (1 << 63)
            return MemoryOperand(Register.RIP, displ=target, displ_size=8, seg=place.segment)
        base = Register.NONE if place.base is None else self.register(place.base, size)
        index = Register.NONE if place.index is None else self.register(place.index, size)
        if base == Register.NONE:
            displacement_size = size
        else:
            displacement_size = 1 if place.displacement or place.base in (5, 13) else 0
        displacement = place.displacement
        if size == 4:
            displacement = ((displacement & 0xFFFFFFFF) ^ 0x80000000) - 0x80000000
        elif not -(1 << 31) <= displacement < 1 << 31:
            raise OverflowError(f"a displacement of {displacement:#x} does not fit")
        return MemoryOperand(
            base,
            index,
            place.scale if place.index is not None else 1,
            displacement,
            displacement_size,
            False,
            place.segment,
        )

    # ---- data movement (no flags) ----------------------------------------------------

    def push(self, number: int) -> None:
        """PUSH of a full register."""
        self.add(
            Instruction.create_reg(Code.PUSH_R64 if self.bits == 64 else Code.PUSH_R32, self.register(number))
        )

    def pop(self, number: int) -> None:
        """POP of a full register."""
        self.add(
            Instruction.create_reg(Code.POP_R64 if self.bits == 64 else Code.POP_R32, self.register(number))
        )

    def push_at(self, place: Place) -> None:
        """PUSH of a word in memory."""
        self.add(
            Instruction.create_mem(Code.PUSH_RM64 if self.bits == 64 else Code.PUSH_RM32, self.pointer(place))
        )

    def pop_at(self, place: Place) -> None:
        """POP into memory; a stack-relative place counts from the stack pointer after the pop."""
        self.add(
            Instruction.create_mem(Code.POP_RM64 if self.bits == 64 else Code.POP_RM32, self.pointer(place))
        )

    def push_value(self, value: int) -> None:
        """PUSH of a sign-extended 32-bit immediate."""
        signed = ((value & 0xFFFFFFFF) ^ 0x80000000) - 0x80000000
        self.add(Instruction.create_i32(Code.PUSHQ_IMM32 if self.bits == 64 else Code.PUSHD_IMM32, signed))

    def move(self, to: int, source: int, size: int = 0) -> None:
        """MOV between registers; 4 bytes zero-extend in 64-bit code, 2 bytes leave the rest."""
        size = size or self.word
        code = {8: Code.MOV_R64_RM64, 4: Code.MOV_R32_RM32, 2: Code.MOV_R16_RM16}[size]
        self.add(Instruction.create_reg_reg(code, self.register(to, size), self.register(source, size)))

    def extend(self, to: int, source: int) -> None:
        """MOVZX of the low 16 bits of ``source``."""
        self.add(
            Instruction.create_reg_reg(Code.MOVZX_R32_RM16, self.register(to, 4), self.register(source, 2))
        )

    def set(self, to: int, value: int) -> None:
        """MOV of an unsigned 32-bit value (zero-extended in 64-bit code)."""
        self.add(Instruction.create_reg_u32(Code.MOV_R32_IMM32, self.register(to, 4), value & 0xFFFFFFFF))

    def load(self, to: int, place: Place, size: int = 0) -> None:
        """Load, zero-extending what is shorter than the register."""
        size = size or self.word
        code = {8: Code.MOV_R64_RM64, 4: Code.MOV_R32_RM32, 2: Code.MOVZX_R32_RM16}[size]
        self.add(
            Instruction.create_reg_mem(code, self.register(to, 8 if size == 8 else 4), self.pointer(place))
        )

    def store(self, place: Place, source: int, size: int = 0) -> None:
        """Store the low ``size`` bytes of a register."""
        size = size or self.word
        code = {8: Code.MOV_RM64_R64, 4: Code.MOV_RM32_R32, 2: Code.MOV_RM16_R16}[size]
        self.add(Instruction.create_mem_reg(code, self.pointer(place), self.register(source, size)))

    def store_value(self, place: Place, value: int) -> None:
        """Store a sign-extended 32-bit immediate as a word."""
        signed = ((value & 0xFFFFFFFF) ^ 0x80000000) - 0x80000000
        self.add(
            Instruction.create_mem_i32(
                Code.MOV_RM64_IMM32 if self.bits == 64 else Code.MOV_RM32_IMM32, self.pointer(place), signed
            )
        )

    def clear_byte(self, place: Place) -> None:
        """Store a zero byte."""
        self.add(Instruction.create_mem_i32(Code.MOV_RM8_IMM8, self.pointer(place), 0))

    def address(self, to: int, place: Place) -> None:
        """LEA."""
        code = Code.LEA_R64_M if self.bits == 64 else Code.LEA_R32_M
        self.add(Instruction.create_reg_mem(code, self.register(to), self.pointer(place)))

    def move_stack(self, delta: int) -> None:
        """Add ``delta`` to the stack pointer without touching a flag."""
        if delta:
            self.address(SP, Place(SP, displacement=delta))

    # ---- control ---------------------------------------------------------------------

    def call(self, target: int) -> None:
        """Direct CALL to an address."""
        code = Code.CALL_REL32_64 if self.bits == 64 else Code.CALL_REL32_32
        self.add(Instruction.create_branch(code, target))

    def add_relative(self, label: Label, address: int) -> None:
        """LEA that adds the distance from ``label`` to ``address`` to register 0."""
        operand = MemoryOperand(self.register(0), Register.NONE, 1, 0x7FFFFFFF, self.word)
        code = Code.LEA_R64_M if self.bits == 64 else Code.LEA_R32_M
        instruction = Instruction.create_reg_mem(code, self.register(0), operand)
        self.items.append(Item(instruction, relative=(label, address), site=self.serving))

    def call_label(self, label: Label) -> None:
        """Direct CALL to a label."""
        code = Code.CALL_REL32_64 if self.bits == 64 else Code.CALL_REL32_32
        self.add(Instruction.create_branch(code, 0), target=label)

    def jump(self, target: int, origin: int | None = None) -> None:
        """Direct JMP to an address."""
        code = Code.JMP_REL32_64 if self.bits == 64 else Code.JMP_REL32_32
        self.add(Instruction.create_branch(code, target), origin=origin)

    def jump_label(self, label: Label) -> None:
        """Direct JMP to a label."""
        code = Code.JMP_REL32_64 if self.bits == 64 else Code.JMP_REL32_32
        self.add(Instruction.create_branch(code, 0), target=label)

    def jump_unless_zero(self, label: Label) -> None:
        """JNE to a label."""
        code = Code.JNE_REL32_64 if self.bits == 64 else Code.JNE_REL32_32
        self.add(Instruction.create_branch(code, 0), target=label)

    def ret(self) -> None:
        """Near RET."""
        self.add(Instruction.create(Code.RETNQ if self.bits == 64 else Code.RETND))

    # ---- bytes -----------------------------------------------------------------------

    def encode(self, address: int) -> Encoded:
        """Encode at ``address`` (the address the code believes to run at).

        Raises ValueError when an instruction cannot be encoded there (a relative operand
        out of reach, for instance).
        """
        starts = self._measure(address)
        data = bytearray()
        encoder = Encoder(self.bits)
        finished: list[Item] = []
        for index, item in enumerate(self.items):
            instruction = item.instruction.copy()
            if item.target is not None:
                instruction = _aim(instruction, address + starts[self._labels[item.target]])
            if item.relative is not None:
                label, goal = item.relative
                distance = goal - (address + starts[self._labels[label]])
                instruction.memory_displacement = distance & (2**self.bits - 1)
            code = item.raw or _encode(encoder, instruction, address + starts[index])
            if len(code) != starts[index + 1] - starts[index]:
                raise SelfCheckError(f"{instruction}: size changed between the passes")
            data += code
            finished.append(Item(instruction, None, item.origin, site=item.site))
        homes = {origin: address + starts[index] for origin, index in self._homes.items()}
        stands = tuple(
            Stand(starts[index], place, leaves, called) for index, place, leaves, called in self._stands
        )
        labels = self._offsets(starts)
        return Encoded(address, bytes(data), tuple(starts[:-1]), tuple(finished), homes, stands, labels)

    def labels(self, address: int) -> dict[Label, int]:
        """Offset of each label in what ``encode`` would give at ``address``, and about as far elsewhere."""
        return self._offsets(self._measure(address))

    def _offsets(self, starts: list[int]) -> dict[Label, int]:
        return {label: starts[index] for label, index in self._labels.items()}

    def _measure(self, address: int) -> list[int]:
        encoder = Encoder(self.bits)
        starts = [0]
        for item in self.items:
            instruction = item.instruction
            if item.target is not None:
                instruction = _aim(instruction.copy(), address + starts[-1])
            code = item.raw or _encode(encoder, instruction, address + starts[-1])
            starts.append(starts[-1] + len(code))
        return starts


def _encode(encoder: Encoder, instruction: Instruction, address: int) -> bytes:
    encoder.encode(instruction, address)
    return bytes(encoder.take_buffer())


def _aim(instruction: Instruction, target: int) -> Instruction:
    """The branch with another target."""
    if instruction.op0_kind == OpKind.NEAR_BRANCH32:
        instruction.near_branch32 = target & 0xFFFFFFFF
    else:
        instruction.near_branch64 = target & 0xFFFFFFFFFFFFFFFF
    return instruction
