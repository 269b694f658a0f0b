"""Registers whose bits are offered only where they work: CR4.TSD, CPUID faulting, EFER by width."""

from __future__ import annotations

import pytest

from runtime.outcome import Outcome
from tests.xen.kernels import run_kernel
from tests.xen.test_kernels import trap_table_64

FAULTS = trap_table_64(gp=(13, 4, "fault"))
GO_ON = """
    fault:
    mov rbx, data
    inc dword ptr [rbx+0x80]
    jmp off
"""


@pytest.mark.parametrize(("width", "value"), [(32, 0x800), (64, 0xD01)])
def test_efer_shows_a_32_bit_guest_nothing_of_long_mode(width: int, value: int) -> None:
    base = "ebx" if width == 32 else "rbx"
    run = run_kernel(width, f"mov ecx, 0xc0000080\nrdmsr\nmov {base}, data\nmov [{base}], eax\njmp off")
    assert run.words(1)[0] & 0xFFFFFFFF == value


def test_cpuid_faulting_is_neither_offered_nor_accepted() -> None:
    run = run_kernel(
        64,
        f"""
        {FAULTS}
        mov ecx, 0xce
        rdmsr
        mov rbx, data
        mov [rbx], eax
        mov ecx, 0x140
        mov eax, 0
        mov edx, 0
        wrmsr
        mov eax, 1
        wrmsr
        mov dword ptr [rbx+8], 1
        jmp off
        {GO_ON}
        """,
    )
    assert run.result.outcome is Outcome.POWERED_OFF, run.result.detail
    assert run.words(2) == [0, 0], "the second write was a fault"
    assert run.words(1, 0x80) == [1]


def test_tsd_is_kept_and_the_kernel_reads_the_time_stamp_all_the_same() -> None:
    run = run_kernel(
        64,
        f"""
        {FAULTS}
        mov rax, cr4
        or rax, 4
        mov cr4, rax
        mov rax, cr4
        mov rbx, data
        mov [rbx], rax
        rdtsc
        mov [rbx+8], eax
        rdtscp
        mov [rbx+16], eax
        jmp off
        {GO_ON}
        """,
    )
    assert run.result.outcome is Outcome.POWERED_OFF, run.result.detail
    cr4, first, second = run.words(3)
    assert cr4 & 4 and 0 < first < second
    assert run.words(1, 0x80) == [0]
    assert run.model.emulator.counts["rdtsc"] == 1, "it trapped"


DR7_GE = 1 << 9
BREAKPOINT = """
    hit:
    mov rbx, data
    mov rax, [rsp+16]
    mov [rbx], rax
    mov rax, [rsp+32]
    mov [rbx+16], rax
    mov rax, dr6
    mov [rbx+8], rax
    inc dword ptr [rbx+0x80]
    jmp off
"""


@pytest.mark.parametrize(
    ("kind", "body", "label"),
    [
        (3 << 18 | 1 << 16, "mov dword ptr [rbx+0x40], 0", "behind"),
        (3 << 18 | 3 << 16, "mov eax, [rbx+0x40]", "behind"),
        (0, "nop", "there"),
    ],
    ids=["write", "access", "execute"],
)
def test_a_breakpoint_fires_at_the_instruction(kind: int, body: str, label: str) -> None:
    """Data breakpoints are traps behind the instruction, those of code are faults with RF in the frame."""
    what = "lea rax, [rip+there]" if label == "there" else "lea rax, [rbx+0x40]"
    run = run_kernel(
        64,
        f"""
        {trap_table_64(db=(1, 4, "hit"))}
        mov rbx, data
        {what}
        mov dr0, rax
        mov eax, [rbx+0x40]
        mov dword ptr [rbx+0x40], 1
        mov rax, {DR7_GE | 2 | kind}
        mov dr7, rax
        mov ecx, 7
        there:
        {body}
        behind:
        nop
        jmp off
        {BREAKPOINT}
        """,
    )
    assert run.result.outcome is Outcome.POWERED_OFF, run.result.detail
    rip, dr6, rflags = run.words(3)
    assert rip == run.labels[label]
    assert dr6 == 0xFFFF0FF1
    assert bool(rflags & 1 << 16) == (label == "there")
    assert run.words(1, 0x80) == [1]


def test_a_breakpoint_that_is_taken_away_does_not_fire() -> None:
    run = run_kernel(
        64,
        f"""
        {trap_table_64(db=(1, 4, "hit"))}
        mov rbx, data
        lea rax, [rbx+0x40]
        mov dr0, rax
        mov rax, {DR7_GE | 2 | 3 << 18 | 1 << 16}
        mov dr7, rax
        mov rax, {DR7_GE}
        mov dr7, rax
        mov dword ptr [rbx+0x40], 1
        jmp off
        {BREAKPOINT}
        """,
    )
    assert run.words(1, 0x80) == [0]


def test_a_breakpoint_of_code_does_not_repeat_when_the_handler_returns() -> None:
    run = run_kernel(
        64,
        f"""
        {trap_table_64(db=(1, 4, "hit"))}
        mov rbx, data
        lea rax, [rip+there]
        mov dr0, rax
        mov rax, {DR7_GE | 2}
        mov dr7, rax
        mov ecx, 3
        there:
        dec ecx
        jnz there
        jmp off
        hit:
        mov rbx, data
        inc dword ptr [rbx+0x80]
        pop rcx
        pop r11
        push 0
        push rcx
        push r11
        push 0
        mov eax, 23
        syscall
        """,
    )
    assert run.result.outcome is Outcome.POWERED_OFF, run.result.detail
    assert run.words(1, 0x80) == [3], "once in each turn of the loop"
