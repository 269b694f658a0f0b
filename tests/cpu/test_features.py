"""Protections by CR4: the emulated CPU has them, or CPUID does not offer them and they stay off."""

from __future__ import annotations

import pytest

from runtime.outcome import Outcome
from tests.cpu.world import USER_CODE, World

BOTH = pytest.mark.parametrize("width", [32, 64])
BACKENDS = pytest.mark.parametrize("backend", ["bare", "kvm"])
UMIP, LA57, VMXE, SMXE, FSGSBASE, PCIDE, SMEP, SMAP, PKE = 11, 12, 13, 14, 16, 17, 20, 21, 22
SET = "mov {r}, cr4; or eax, {bit}; mov cr4, {r};"


def set_cr4(width: int, bit: int) -> str:
    return SET.format(r="rax" if width == 64 else "eax", bit=1 << bit)


@BOTH
def test_what_cpuid_offers(width: int) -> None:
    world = World(width, "mov eax, 7; xor ecx, ecx; cpuid; mov esi, ebx; mov edi, ecx; ud2").run()
    offered, more = world.machine.cpu.state.gpr[6], world.machine.cpu.state.gpr[7]
    assert offered & (1 << 0 | 1 << 7) == 1 << 0 | 1 << 7  # FSGSBASE, SMEP
    assert not offered >> 20 & 1  # SMAP
    assert not more & (1 << 2 | 1 << 3 | 1 << 16)  # UMIP, PKU, LA57


@BOTH
@BACKENDS
@pytest.mark.parametrize("bit", [UMIP, LA57, VMXE, SMXE, PCIDE, SMAP, PKE, 23, 31])
def test_what_is_not_offered_cannot_be_switched_on(width: int, backend: str, bit: int) -> None:
    world = World(width, set_cr4(width, bit) + "mov esi, 1; ud2", backend=backend).run()
    assert (world.vector, world.frame(1)[0]) == (13, 0)
    assert not world.machine.cpu.state.cr[4] >> bit & 1


@BOTH
@pytest.mark.parametrize("name", ["0x0f,0x01,0xca", "0x0f,0x01,0xcb", "0x0f,0x01,0xee", "0x0f,0x01,0xef"])
def test_instructions_of_what_is_not_offered_are_invalid(width: int, name: str) -> None:
    """CLAC, STAC, RDPKRU, WRPKRU."""
    assert World(width, f"xor ecx, ecx; .byte {name}; hlt").run().vector == 6


@BOTH
def test_without_umip_user_code_sees_the_tables(width: int) -> None:
    user = "sub esp, 16; .byte 0x0f,0x01,0x04,0x24; .byte 0x0f,0x00,0xc8; mov esi, 1; ud2"  # sgdt, str
    world = World(width, "", user=user).run()
    assert (world.vector, world.machine.cpu.state.gpr[6]) == (6, 1)


def test_smep_keeps_the_kernel_from_running_user_pages() -> None:
    """Everything lies in user pages here: the next fetch faults, and so does the handler's."""
    world = World(32, f"{set_cr4(32, SMEP)} jmp on; on: ud2", paging=True).run()
    assert world.result.outcome is Outcome.CRASHED
    assert "#PF(0x11)" in world.result.detail
    assert World(32, f"{set_cr4(32, FSGSBASE)} jmp on; on: ud2", paging=True).run().vector == 6


@BOTH
def test_fsgsbase_belongs_to_64_bit_code_and_to_cr4(width: int) -> None:
    write = ".byte 0xf3,0x48,0x0f,0xae,0xd0" if width == 64 else ".byte 0xf3,0x0f,0xae,0xd0"
    off = World(width, f"mov eax, 5; {write}; mov esi, 1; ud2").run()
    assert off.machine.cpu.state.gpr[6] != 1
    if width == 64:
        on = World(64, f"{set_cr4(64, FSGSBASE)} mov eax, 0x1234; {write}; ud2").run()
        assert on.machine.cpu.state.segments[4].base == 0x1234


@BOTH
@BACKENDS
def test_icebp_is_a_trap(width: int, backend: str) -> None:
    world = World(width, "mov esi, 1; .byte 0xf1; nop; ud2", backend=backend).run()
    assert world.vector == 1
    assert world.frame(1)[0] == world.code_at(b"\xf1\x90") + 1


@BOTH
def test_icebp_of_user_code_needs_no_gate_of_its_privilege(width: int) -> None:
    world = World(width, "", user="nop; .byte 0xf1; nop").run()
    assert (world.vector, world.frame(1)[0]) == (1, USER_CODE + 2)
