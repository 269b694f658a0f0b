"""Data breakpoints of the debug registers: a trap behind the access, DR6 says which."""

from __future__ import annotations

import pytest

from tests.cpu.world import PAGED, World

BOTH = pytest.mark.parametrize("width", [32, 64])
DATA = 0x190000
WRITE_4, ACCESS_4, WRITE_1 = 0x000D_0001, 0x000F_0001, 0x0001_0001
"""DR7 for DR0: enabled here, kind of access and length."""


def watch(width: int, dr7: int, address: int = DATA) -> str:
    word = "rax" if width == 64 else "eax"
    return f"mov eax, {address}; mov dr0, {word}; mov eax, {dr7}; mov dr7, {word};"


def after(world: World, code: bytes) -> int:
    """Address behind the instruction with these bytes."""
    return world.code_at(code) + len(code)


@BOTH
@pytest.mark.parametrize("backend", ["bare", "kvm"])
def test_a_write_traps_behind_itself(width: int, backend: str) -> None:
    code = f"mov ebx, {DATA}; {watch(width, WRITE_4)} mov esi, [rbx]; mov [rbx], esi; mov edi, 1; ud2"
    world = World(width, code if width == 64 else code.replace("rbx", "ebx"), backend=backend).run()
    assert world.vector == 1
    assert world.frame(1)[0] == after(world, b"\x89\x33")
    assert world.machine.cpu.state.dr[6] == 0xFFFF0FF1
    assert world.machine.cpu.state.gpr[7] != 1


@BOTH
@pytest.mark.parametrize(
    ("dr7", "access", "traps"),
    [
        (ACCESS_4, "mov esi, [{b} + 2]", True),
        (WRITE_4, "mov esi, [{b}]", False),
        (WRITE_4, "mov byte ptr [{b} + 3], 1", True),
        (WRITE_4, "mov byte ptr [{b} + 4], 1", False),
        (WRITE_4, "mov word ptr [{b} - 1], 1", True),
        (WRITE_1, "mov byte ptr [{b} + 1], 1", False),
        (WRITE_1, "add dword ptr [{b} - 3], 1", True),
        (0x000D_0000, "mov dword ptr [{b}], 1", False),
    ],
)
def test_kind_and_place(width: int, dr7: int, access: str, traps: bool) -> None:
    pointer = "rbx" if width == 64 else "ebx"
    code = f"mov ebx, {DATA}; {watch(width, dr7)} {access.format(b=pointer)}; nop; ud2"
    assert World(width, code).run().vector == (1 if traps else 6)


@BOTH
def test_switched_off_it_is_forgotten(width: int) -> None:
    word = "rax" if width == 64 else "eax"
    off = f"xor eax, eax; mov dr7, {word};"
    code = f"{watch(width, WRITE_4)} {off} mov ebx, {DATA}; mov dword ptr [{word.replace('a', 'b')}], 1; ud2"
    assert World(width, code).run().vector == 6


def test_the_linear_address_is_what_counts() -> None:
    frame = PAGED + 0x3000
    store = f"mov dword ptr [{PAGED + 0x10}], 7; nop; ud2"
    there = World(32, watch(32, WRITE_4, PAGED + 0x10) + store, paging=True, pages={0: frame | 7}).run()
    assert there.vector == 1
    elsewhere = World(32, watch(32, WRITE_4, PAGED + 0x1010) + store, paging=True, pages={0: frame | 7}).run()
    assert elsewhere.vector == 6
