"""Switch statements: from an indirect jump back to its table and the table's entries.

Forms that compilers emit (base and index in any register):

    jmp [index*scale + table]                                 absolute entries
    mov r, [index*scale + table] ; jmp r                      absolute entries
    lea b, [rip+table] ; movsxd r, [b+index*4] ; add r, b ; jmp r      entries relative to the table
    mov r, [got+index*4+table@GOTOFF] ; add r, got ; jmp r    entries relative to the GOT (i386 PIC)

The number of entries comes from the comparison that guards the jump; without one, entries
are taken as long as they lead to plausible code near by. Where no section says what is code,
pointers to text may follow a table: there, all that an entry reaches must look like code.
"""

from __future__ import annotations

from dataclasses import dataclass

from iced_x86 import Instruction, Mnemonic, OpKind, Register, RegisterInfo

from rewriter.scan.explore import Explorer

__all__ = ["JumpTable", "resolve_jump"]

LOOK_BACK = 16
"""Instructions before the jump that are examined."""
HOIST_BACK = 400
"""Instructions before the jump in which the table's address may have been loaded."""
MAX_ENTRIES = 1024
MAX_DISTANCE = 1 << 20
"""Bytes between a jump and its targets that an unguarded table may span."""


@dataclass(frozen=True, slots=True)
class JumpTable:
    """A resolved table: where it lies, its size in bytes and where it leads."""

    address: int
    size: int
    targets: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _Shape:
    table: int
    entry: int
    base: int
    """Added to every entry; 0 for absolute entries."""
    signed: bool


def _before(explorer: Explorer, address: int, width: int, limit: int = LOOK_BACK) -> list[Instruction]:
    """Up to `limit` instructions that lie before `address` without a gap, nearest first."""
    region = explorer.space.find(address)
    result: list[Instruction] = []
    if region is None:
        return result
    lengths = explorer.lengths[region.index]
    offset = address - region.vaddr
    while len(result) < limit:
        back = next((n for n in range(1, 16) if offset >= n and lengths[offset - n] == n), 0)
        if not back:
            break
        offset -= back
        result.append(explorer.decoder.instruction_at(region.vaddr + offset, width, region).copy())
    return result


def _full(register: int) -> int:
    return int(RegisterInfo(register).full_register) if register != Register.NONE else 0


def _shape(explorer: Explorer, jump: Instruction, before: list[Instruction], width: int) -> _Shape | None:
    entry = width // 8
    if jump.op0_kind == OpKind.MEMORY:
        if jump.memory_index == Register.NONE or jump.memory_index_scale != entry:
            return None
        return _absolute(jump, before, entry, width)
    if jump.op0_kind != OpKind.REGISTER:
        return None
    wanted, added = _full(jump.op0_register), 0
    for instruction in before:
        if instruction.op_count < 2 or instruction.op0_kind != OpKind.REGISTER:
            continue
        if _full(instruction.op0_register) != wanted:
            continue
        if instruction.mnemonic == Mnemonic.ADD and instruction.op1_kind == OpKind.MEMORY:
            return _relative(explorer, instruction, width)
        if instruction.mnemonic == Mnemonic.ADD and instruction.op1_kind == OpKind.REGISTER:
            added = _full(instruction.op1_register)
            continue
        if instruction.mnemonic in (Mnemonic.MOV, Mnemonic.MOVSXD) and instruction.op1_kind == OpKind.MEMORY:
            if instruction.memory_index == Register.NONE:
                return None
            if not added:
                return _absolute(instruction, before, entry, width)
            return _relative(explorer, instruction, width)
        return None
    return None


def _absolute(access: Instruction, before: list[Instruction], entry: int, width: int) -> _Shape | None:
    if access.memory_index_scale != entry:
        return None
    displacement = access.memory_displacement
    if access.memory_base == Register.NONE:
        return _Shape(displacement, entry, 0, False)
    loaded = _loaded_address(before, _full(access.memory_base))
    if loaded is None:
        return None
    return _Shape((loaded + displacement) & ((1 << width) - 1), entry, 0, False)


def _relative(explorer: Explorer, access: Instruction, width: int) -> _Shape | None:
    if access.memory_index_scale != 4 or access.memory_index == Register.NONE:
        return None
    if width == 64:
        for register in (_full(access.memory_base), _full(access.memory_index)):
            loaded = _hoisted_address(explorer, access.ip, register, width)
            if loaded is not None and not access.memory_displacement:
                return _Shape(loaded, 4, loaded, True)
        return None
    if not explorer.got_bases:
        return None
    got = explorer.got_bases.most_common(1)[0][0]
    return _Shape((got + access.memory_displacement) & 0xFFFF_FFFF, 4, got, True)


def _hoisted_address(explorer: Explorer, address: int, register: int, width: int) -> int | None:
    """The nearest `lea register, [rip+x]` before `address`: compilers hoist it out of loops."""
    for instruction in _before(explorer, address, width, HOIST_BACK):
        if (
            instruction.mnemonic == Mnemonic.LEA
            and instruction.is_ip_rel_memory_operand
            and _full(instruction.op0_register) == register
        ):
            return int(instruction.ip_rel_memory_address)
    return None


def _loaded_address(before: list[Instruction], register: int) -> int | None:
    for instruction in before:
        if instruction.op_count < 2 or instruction.op0_kind != OpKind.REGISTER:
            continue
        if _full(instruction.op0_register) != register:
            continue
        if instruction.mnemonic == Mnemonic.LEA and instruction.is_ip_rel_memory_operand:
            return int(instruction.ip_rel_memory_address)
        if instruction.mnemonic == Mnemonic.MOV and instruction.op1_kind in (
            OpKind.IMMEDIATE32,
            OpKind.IMMEDIATE32TO64,
            OpKind.IMMEDIATE64,
        ):
            return int(instruction.immediate(1))
        if instruction.mnemonic not in (Mnemonic.CMP, Mnemonic.TEST):
            return None
    return None


def _guard(before: list[Instruction]) -> int:
    """The tightest bound on the index that the code before shows (`cmp`, `and`, `shr`); 0 without one."""
    bounds = []
    for instruction in before:
        if (
            instruction.op_count != 2
            or not OpKind.IMMEDIATE8 <= instruction.op1_kind <= OpKind.IMMEDIATE32TO64
        ):
            continue
        limit = int(instruction.immediate(1)) & 0xFFFF_FFFF
        if instruction.mnemonic in (Mnemonic.CMP, Mnemonic.AND) and limit < MAX_ENTRIES:
            bounds.append(limit + 1)
            if instruction.mnemonic == Mnemonic.CMP:
                break
    for instruction in before:
        if instruction.mnemonic == Mnemonic.SHR and instruction.op0_kind == OpKind.REGISTER:
            bits = 8 * RegisterInfo(instruction.op0_register).size
            if instruction.op1_kind == OpKind.IMMEDIATE8 and bits - instruction.immediate8 <= 10:
                bounds.append(1 << (bits - instruction.immediate8))
    return min(bounds, default=0)


def resolve_jump(explorer: Explorer, address: int, width: int) -> JumpTable | None:
    """The table behind the indirect jump at `address`, or None when its form is not understood."""
    region = explorer.space.find(address)
    if region is None:
        return None
    jump = explorer.decoder.instruction_at(address, width, region).copy()
    before = _before(explorer, address, width)
    shape = _shape(explorer, jump, before, width)
    if shape is None:
        return None
    guard = _guard(before)
    targets = _entries(explorer, shape, address, width, guard) if guard else []
    if len(targets) < max(guard, 1):  # no bound, or the index cannot reach all that it allows
        targets = _entries(explorer, shape, address, width, 0)
    if not targets:
        return None
    return JumpTable(shape.table, len(targets) * shape.entry, tuple(targets))


def _entries(explorer: Explorer, shape: _Shape, jump: int, width: int, guard: int) -> list[int]:
    targets: list[int] = []
    mask = (1 << width) - 1
    for index in range(guard or MAX_ENTRIES):
        if index and not guard and shape.table + index * shape.entry in explorer.references:
            break  # something else begins here
        data = explorer.space.read_static(shape.table + index * shape.entry, shape.entry)
        if data is None:
            break
        value = (int.from_bytes(data, "little", signed=shape.signed) + shape.base) & mask
        target = explorer.space.resolve(value)
        if target is None or not _acceptable(explorer, target, jump, width, guard > 0):
            break
        targets.append(target)
    return targets


def _acceptable(explorer: Explorer, target: int, jump: int, width: int, guarded: bool) -> bool:
    if explorer.is_start(target):
        return True
    if explorer.is_inside(target) or abs(target - jump) > MAX_DISTANCE:
        return False
    region = explorer.space.find(target)
    if region is None:
        return False
    block = explorer.decoder.block(target, width, explorer.lengths[region.index], region)
    if not block.valid or block.runs_off:
        return False
    if guarded:
        return True
    likely = block.plausible and explorer.on_boundary(region, target, width)
    return likely and (region.section or explorer.leads_to_code(target, width))
