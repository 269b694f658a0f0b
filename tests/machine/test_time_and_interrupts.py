"""Virtual time, halts, interrupt windows and repeatability."""

from __future__ import annotations

import json

import pytest

from runtime.cpu.native import BLOCK_UNITS, UNITS_PER_NS
from tests.cpu.world import KCODE, STUB_SIZE, STUBS, World, gate

BOTH = pytest.mark.parametrize("width", [32, 64])

PIC = """
    mov al, 0x11; out 0x20, al; out 0xa0, al
    mov al, 0x40; out 0x21, al; mov al, 0x48; out 0xa1, al
    mov al, 4; out 0x21, al; mov al, 2; out 0xa1, al
    mov al, 1; out 0x21, al; out 0xa1, al
    mov al, 0xfe; out 0x21, al; mov al, 0xff; out 0xa1, al
"""
ONE_SHOT_1MS = "mov al, 0x30; out 0x43, al; mov al, 0xa9; out 0x40, al; mov al, 0x04; out 0x40, al\n"
"""1193 ticks of 1.193182 MHz."""


@BOTH
def test_an_interrupt_ends_a_halt_and_the_frame_points_behind_it(width: int) -> None:
    world = World(width, PIC + ONE_SHOT_1MS + "sti; hlt; nop; nop; ud2").run()
    assert world.vector == 0x40
    after = world.code_at(b"\xfb\xf4\x90\x90") + 2
    assert world.frame(1)[0] == after
    assert world.frame(3)[2] & 0x200
    assert 1_000_000 <= world.result.guest_ns <= 1_100_000


@BOTH
def test_an_interrupt_waits_for_sti_and_one_instruction(width: int) -> None:
    spin = "mov ecx, 400000; here: dec ecx; jnz here;"
    world = World(width, PIC + ONE_SHOT_1MS + "cli;" + spin + "sti; mov ebx, 7; mov ebx, 8; ud2").run()
    assert world.vector == 0x40
    assert world.frame(1)[0] == world.code_at(b"\xfb\xbb\x07\x00\x00\x00") + 6
    assert world.machine.cpu.state.gpr[3] == 7


@BOTH
def test_an_interrupt_preempts_a_loop_without_memory_access(width: int) -> None:
    world = World(width, PIC + ONE_SHOT_1MS + "sti; here: jmp here").run()
    assert world.vector == 0x40
    assert 1_000_000 <= world.result.guest_ns <= 1_001_000 + 60_000


@BOTH
def test_interrupts_through_a_gate_with_iret_keep_coming(width: int) -> None:
    iret = "iretq" if width == 64 else "iretd"
    handler = f"inc ebp; mov al, 0x20; out 0x20, al; {iret}"
    rate = "mov al, 0x34; out 0x43, al; mov al, 0xa9; out 0x40, al; mov al, 4; out 0x40, al\n"
    gates = {0x40: gate(width, KCODE, STUBS + 0x40 * STUB_SIZE)}
    world = World(
        width,
        PIC + rate + "xor ebp, ebp; sti; here: cmp ebp, 50; jb here; ud2",
        stubs={0x40: handler},
        gates=gates,
        max_time_s=1,
    ).run()
    assert world.vector == 6
    assert world.machine.cpu.state.gpr[5] == 50
    assert world.machine.stats.interrupts[0x40] == 50
    assert 49e6 < world.result.guest_ns < 52e6


@BOTH
def test_the_tsc_counts_two_ticks_per_nanosecond(width: int) -> None:
    code = """
        rdtsc
        mov esi, eax
        mov ecx, 100000
    here:
        dec ecx
        jnz here
        rdtsc
        sub eax, esi
        mov ebp, eax
        ud2
    """
    world = World(width, code).run()
    ticks = world.machine.cpu.state.gpr[5]
    block = (2 if width == 64 else 1) + 2 + BLOCK_UNITS  # dec, jnz, and what each block costs besides
    assert ticks == pytest.approx(100000 * block / UNITS_PER_NS * 2, rel=0.01)


@BOTH
def test_two_runs_agree_in_everything(width: int) -> None:
    rate = "mov al, 0x34; out 0x43, al; mov al, 0xa9; out 0x40, al; mov al, 4; out 0x40, al\n"
    iret = "iretq" if width == 64 else "iretd"
    handler = f"inc ebp; mov edx, 0x3f8; mov al, 46; out dx, al; mov al, 0x20; out 0x20, al; {iret}"
    documents = []
    for _ in range(2):
        trace: list[str] = []
        world = World(
            width,
            PIC + rate + "xor ebp, ebp; sti; here: rdtsc; xor edi, eax; cpuid; cmp ebp, 20; jb here; ud2",
            stubs={0x40: handler},
            trace=trace,
        ).run()
        stats = dict(world.result.stats)
        stats.pop("host_seconds")
        registers = list(world.machine.cpu.state.gpr)
        documents.append((world.result.transcript, json.dumps(stats), trace, registers))
    assert documents[0] == documents[1]
    assert documents[0][0] == b"." * 20


def test_syscall_and_sysret_round_trip() -> None:
    setup = """
        mov ecx, 0xc0000080; rdmsr; or eax, 1; wrmsr
        mov ecx, 0xc0000081; xor eax, eax; mov edx, 0x00080008; wrmsr
        mov ecx, 0xc0000082; lea rax, [rip+entry]; mov rdx, rax; shr rdx, 32; wrmsr
        mov ecx, 0xc0000084; mov eax, 0x200; xor edx, edx; wrmsr
        jmp over
    entry:
        mov rbx, rcx
        mov r12, r11
        mov ax, cs
        movzx r13d, ax
        mov ax, ss
        movzx r14d, ax
        ud2
    over:
    """
    world = World(64, setup, user="nop; syscall; nop").run()
    state = world.machine.cpu.state
    assert world.vector == 6
    assert state.gpr[3] == 0x180003
    assert (state.gpr[13], state.gpr[14]) == (0x08, 0x10)
    assert state.gpr[12] == 2


def test_syscall_without_sce_is_an_invalid_opcode() -> None:
    world = World(64, "", user="nop; syscall").run()
    assert (world.vector, world.frame(1)[0]) == (6, 0x180001)


def test_sysenter_without_msrs_is_a_protection_fault() -> None:
    world = World(32, "", user="nop; sysenter").run()
    assert world.vector == 13
    assert world.frame(2) == [0, 0x180001]
