"""The guest-side code: it fits, every slot leads somewhere, and its calls do what they promise."""

from __future__ import annotations

from typing import Any

import iced_x86

from pvpatch.abi.layout import CALL_PAGE_SIZE, HEADER_SIZE, SLOT_SIZE
from pvpatch.abi.spec import load_spec
from runtime.backends.xen.layout import PAGE_SIZE
from runtime.backends.xen.native.resident import (
    CODE_PAGES,
    HOLE,
    LOW_HOLE,
    RESIDENT_PAGES,
    call_page,
    caller_of,
    page_of,
    resident,
)
from runtime.outcome import Outcome
from tests.backends.images import CODE, DATA, Ran, run_text

STACK = f"mov rsp, {CODE - 0x1000}\n"
OFF = "mov eax, 0\ncall slot_shutdown\n"
KEPT = DATA + 0x3000


def run(text: str, end: str = OFF) -> Ran:
    return run_text(STACK + text + end, "xen", width=64, patched=True)


def keep(*registers: str) -> str:
    """Store registers where the test can read them."""
    return f"mov r15, {KEPT}\n" + "".join(f"mov [r15+{i * 8}], {name}\n" for i, name in enumerate(registers))


def kept(ran: Ran, index: int) -> int:
    return ran.machine.memory.load_u64(KEPT + index * 8)


# -- shape ---------------------------------------------------------------------------------------


def test_code_fits_its_pages_and_the_hole_ends_with_them() -> None:
    assert len(resident().code) == CODE_PAGES * PAGE_SIZE
    assert HOLE + RESIDENT_PAGES * PAGE_SIZE <= 0xFFFF_8800_0000_0000
    assert LOW_HOLE + RESIDENT_PAGES * PAGE_SIZE <= 1 << 32


def test_every_slot_of_both_pages_is_filled() -> None:
    for width in (32, 64):
        page = call_page(width)
        assert len(page) == CALL_PAGE_SIZE
        for call in load_spec().calls:
            assert page[HEADER_SIZE + call.number * SLOT_SIZE] != 0xCC, call.name


def test_stubs_lead_to_the_common_path() -> None:
    code = resident().code
    for vector in range(256):
        at = 5 * PAGE_SIZE + vector * 16
        push, jump = iced_x86.Decoder(64, code[at : at + 10], ip=HOLE + at)
        assert push.immediate(0) & 0xFF == vector
        assert jump.near_branch64 == resident().labels["common"]


def test_hypercalls_are_counted_for_the_call_that_made_them() -> None:
    labels = resident().labels
    assert caller_of(labels["halt"] + 8) == "halt"
    assert caller_of(labels["load_base"] + 8) == "cr3_write"
    assert caller_of(labels["halt"] + 8 - HOLE + LOW_HOLE) == "halt"
    assert caller_of(labels["common"]) is None
    assert caller_of(HOLE + page_of("private")) is None
    assert caller_of(0x100000) is None


# -- behaviour -----------------------------------------------------------------------------------


def test_shutdown_powers_off() -> None:
    assert run("").result.outcome is Outcome.POWERED_OFF


def test_reboot_restarts() -> None:
    assert run("", "mov eax, 1\ncall slot_reboot\n").result.outcome is Outcome.REBOOTED


def test_the_interrupt_flag_is_virtual_and_costs_no_exit() -> None:
    text = "call slot_irq_save\nmov rbx, rax\ncall slot_irq_enable\ncall slot_flags_read\n"
    ran = run(text + keep("rbx", "rax"))
    assert kept(ran, 0) & 0x200 == 0
    assert kept(ran, 1) & 0x200 == 0x200
    calls: Any = ran.result.stats["calls"]
    assert calls["irq_enable"] == {"in_guest": 1, "exit": 0}


def test_iopl_is_virtual() -> None:
    ran = run("mov eax, 0x3002\ncall slot_flags_write\ncall slot_flags_read\n" + keep("rax"))
    assert kept(ran, 0) & 0x3000 == 0x3000


def test_registers_survive_calls() -> None:
    names = ("rax", "rcx", "rdx", "rbx", "rsi", "rdi", "r8", "r9", "r10", "r11")
    load = "".join(f"mov {name}, {0x1111 * (i + 1)}\n" for i, name in enumerate(names))
    calls = ("irq_enable", "irq_disable", "clts", "tlb_flush_local", "swapgs", "event_eoi", "cr3_read")
    for call in calls:
        changed = {"event_eoi": ("rax",), "cr3_read": ("rax",)}.get(call, ())
        ran = run(load + f"call slot_{call}\n" + keep(*names))
        for index, name in enumerate(names):
            if name not in changed:
                assert kept(ran, index) == 0x1111 * (index + 1), (call, name)


def test_the_clock_runs_in_nanoseconds() -> None:
    text = "call slot_clock_ns\nmov rbx, rax\nmov ecx, 1000\nagain: dec ecx\njne again\ncall slot_clock_ns\n"
    ran = run(text + keep("rbx", "rax"))
    assert 0 < kept(ran, 0) < kept(ran, 1) <= ran.result.guest_ns


def test_the_wall_clock_is_unix_time() -> None:
    ran = run("call slot_wallclock_ns\n" + keep("rax"))
    assert 1_500_000_000 * 10**9 < kept(ran, 0) < 3_000_000_000 * 10**9


def test_the_console_is_the_ring_and_long_texts_go_through() -> None:
    text = b"0123456789abcdef" * 300
    source = f"mov eax, {DATA}\nmov edx, {len(text)}\ncall slot_console_write\n" + keep("rax") + OFF
    ran = run_text(STACK + source, "xen", width=64, patched=True, data=text)
    assert ran.result.transcript.replace(b"\r\n", b"\n") == text
    assert kept(ran, 0) == len(text)


def test_debug_registers_are_kept() -> None:
    text = "mov eax, 1\nmov edx, 0x1234\ncall slot_dr_write\nmov eax, 1\ncall slot_dr_read\n"
    ran = run(text + keep("rax"))
    assert kept(ran, 0) == 0x1234


def test_selectors_read_back_as_the_guest_believes_them() -> None:
    text = "mov edx, 1\ncall slot_segment_store\nmov rbx, rax\nmov edx, 2\ncall slot_segment_store\n"
    ran = run(text + keep("rbx", "rax"))
    assert kept(ran, 0) & 3 == 0 and kept(ran, 0) < 0xE000
    assert kept(ran, 1) & 3 == 0 and kept(ran, 1) < 0xE000


def test_hidden_features_are_hidden() -> None:
    text = "mov eax, 7\nmov ecx, 0\ncall slot_cpuid\nmov r14, rbx\nmov eax, 1\ncall slot_cpuid\n"
    ran = run(text + keep("r14", "rcx"))
    assert kept(ran, 0) & (1 << 0 | 1 << 7 | 1 << 20) == 0
    assert kept(ran, 1) & (1 << 3 | 1 << 26) == 0


def test_a_native_guest_is_not_told_of_xen() -> None:
    """What the leaves announce, such as a page of hypercalls, is for kernels that speak to Xen themselves."""
    text = "mov eax, 0x40000000\nmov ecx, 0\ncall slot_cpuid\n"
    ran = run(text + keep("rax", "rbx", "rcx", "rdx"))
    assert [kept(ran, index) for index in range(4)] == [0, 0, 0, 0]


def test_what_works_here_is_announced() -> None:
    """GNU Mach takes a missing SEP for a CPU without SYSCALL; PSE and PGE are for the shadow to offer."""
    ran = run("mov eax, 1\ncall slot_cpuid\n" + keep("rdx", "rcx"))
    assert kept(ran, 0) & (1 << 3 | 1 << 11 | 1 << 13) == 1 << 3 | 1 << 11 | 1 << 13


def test_halting_with_interrupts_off_ends_the_run() -> None:
    assert run("", "call slot_halt\n").result.outcome is Outcome.HALTED


def test_a_fault_without_a_table_is_a_triple_fault() -> None:
    ran = run("", "mov eax, 0x5550\nmov edx, 3\ncall slot_segment_load\n")
    assert ran.result.outcome is Outcome.CRASHED
    assert b"triple fault" in ran.result.transcript


DESCRIPTORS = (0, 0x00AF_9B00_0000_FFFF, 0x00CF_9300_0000_FFFF, 0x40CF_9B00_0000_FFFF)
GDT_WITH_A_BASE = b"".join(word.to_bytes(8, "little") for word in DESCRIPTORS)


def test_a_32_bit_segment_with_a_base_ends_the_domain_with_a_sentence() -> None:
    text = f"mov eax, 31\nmov edx, {DATA}\ncall slot_gdt_load\npush 0x18\npush {CODE}\njmp slot_far_jump\n"
    ran = run_text(STACK + text, "xen", width=64, patched=True, data=GDT_WITH_A_BASE)
    assert ran.result.outcome is Outcome.CRASHED
    assert b"a 32-bit segment with a base" in ran.result.transcript
