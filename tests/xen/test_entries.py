"""When a guest is entered, and with what: upcalls on returns from Xen, the start, IRET in lists, time."""

from __future__ import annotations

import pytest

from runtime.backends.xen.layout import struct
from runtime.outcome import Outcome
from tests.devices.board import ManualClock
from tests.xen.domains import make_domain
from tests.xen.kernels import call32, call64, run_kernel
from tests.xen.test_kernels import CS64, SS64

SECOND_NS = 1_000_000_000
IPI = 7
SHARED_INFO = 0x1000
"""Offset in the data pages where the tests map shared_info."""


def upcall_kernel(body: str) -> str:
    """A pv64 kernel with shared_info at data+0x1000, an event port that is pending, and an upcall handler
    that saves the interrupted RIP at data+0 and ends the run."""
    return f"""
        mov rax, [rsi+0x28]
        or rax, 3
        mov rsi, rax
        mov rdi, data+{SHARED_INFO}
        mov rdx, 2
        mov eax, 14
        syscall
        lea rdi, [rip+upcall]
        lea rsi, [rip+off]
        lea rdx, [rip+off]
        mov eax, 4
        syscall
        mov rbx, data
        mov dword ptr [rbx+0x800], 0
        {call64("event_channel_op", IPI, "data+0x800")}
        mov rbx, data
        mov eax, [rbx+0x804]
        mov [rbx+0x810], eax
        {call64("event_channel_op", 4, "data+0x810")}
        mov rbx, data
        {body}
        jmp off
        upcall:
        mov rax, [rsp+16]
        mov rbx, data
        mov [rbx], rax
        jmp off
        """


def test_an_upcall_comes_on_the_return_from_xen_and_not_at_the_store() -> None:
    """`movb $0, mask` and then a call: the call is made first, whatever code lies between."""
    run = run_kernel(
        64,
        upcall_kernel(
            f"""
            mov byte ptr [rbx+{SHARED_INFO + 1}], 0
            mov ecx, 1000
            between:
            dec ecx
            jnz between
            call make
            jmp off
            make:
            {call64("xen_version", 0, 0)}
            after:
            ret
            """
        ),
    )
    assert run.result.outcome is Outcome.POWERED_OFF, run.result.detail
    assert run.words(1) == [run.labels["after"]]


def test_a_call_with_events_masked_brings_no_upcall() -> None:
    run = run_kernel(64, upcall_kernel(call64("xen_version", 0, 0)))
    assert run.result.outcome is Outcome.POWERED_OFF, run.result.detail
    assert run.words(1) == [0]


def test_an_exception_that_xen_answers_is_an_entry_too() -> None:
    run = run_kernel(
        64,
        upcall_kernel(
            f"""
            mov byte ptr [rbx+{SHARED_INFO + 1}], 0
            mov rax, cr3
            after:
            mov ecx, 1000
            between:
            dec ecx
            jnz between
            """
        ),
    )
    assert run.words(1) == [run.labels["after"]]


@pytest.mark.parametrize("width", [32, 64])
def test_a_domain_starts_with_ts_clear(width: int) -> None:
    """The first FPU instruction of a guest without a trap table is no fault."""
    run = run_kernel(width, "fninit\nfld1\njmp off")
    assert run.result.outcome is Outcome.POWERED_OFF, run.result.detail


@pytest.mark.parametrize("width", [32, 64])
def test_iret_ends_a_multicall(width: int) -> None:
    """Its accumulator is the result; the entries behind it are not made."""
    size, base = width // 8, "ebx" if width == 32 else "rbx"
    entry = 8 * size
    slots = [(0, 17), (entry, 23), (2 * entry, 17)]
    word = "dword" if width == 32 else "qword"
    fill = "\n".join(f"mov {word} ptr [{base}+{0x400 + at}], {number}" for at, number in slots)
    poison = "\n".join(f"mov {word} ptr [{base}+{0x400 + at + size}], 0x5A5A" for at, _ in slots)
    if width == 64:
        leave = f"""
            push {SS64}
            push rsp
            push 2
            push {CS64 & ~3}
            lea rax, [rip+there]
            push rax
            push 0
            push 0
            push 0
            push 0x1234
            """
    else:
        leave = """
            push 2
            push 0xE019
            lea eax, [there]
            push eax
            push 0x1234
            """
    call = call64 if width == 64 else call32
    run = run_kernel(
        width,
        f"""
        mov {base}, data
        {fill}
        {poison}
        {leave}
        {call("multicall", "data+0x400", 3)}
        ud2
        there:
        mov {base}, data
        mov [{base}], {"eax" if width == 32 else "rax"}
        jmp off
        """,
    )
    assert run.result.outcome is Outcome.POWERED_OFF, run.result.detail
    results = [run.words(1, 0x400 + at + size)[0] for at, _ in slots]
    assert run.words(1) == [0x1234]
    assert results[0] == 4 << 16 | 17
    assert results[1:] == [0x1234, 0x5A5A]


def test_the_number_of_a_call_is_the_whole_register() -> None:
    run = run_kernel(
        64,
        """
        mov rax, 0x100000011
        mov edi, 0
        syscall
        mov rbx, data
        mov [rbx], rax
        jmp off
        """,
    )
    assert run.words(1) == [(1 << 64) - 38]


@pytest.mark.parametrize("width", [32, 64])
def test_published_time_is_never_older_than_a_second(width: int) -> None:
    """A guest that keeps 32 bits of ns since the stamp must not wrap around after 4.3 s."""
    domain, _ = make_domain(width)
    clock = domain.timers.clock
    assert isinstance(clock, ManualClock)
    layout = struct("vcpu_time_info", width)
    at = domain.vcpu_info + struct("vcpu_info", width).offsets["time"]

    def published() -> dict[str, int]:
        return layout.unpack(domain.memory.load(at, layout.size))

    first = published()
    clock.advance(10 * SECOND_NS)
    later = published()
    assert later["system_time"] >= 9 * SECOND_NS
    assert later["tsc_timestamp"] == later["system_time"] * 2
    assert later["version"] != first["version"] and not later["version"] & 1


def test_published_time_is_fresh_after_a_sleep() -> None:
    run = run_kernel(
        64,
        f"""
        lea rdi, [rip+off]
        lea rsi, [rip+off]
        lea rdx, [rip+off]
        mov eax, 4
        syscall
        mov rbx, data
        mov dword ptr [rbx+0x800], 0
        mov dword ptr [rbx+0x804], 0
        {call64("event_channel_op", 1, "data+0x800")}
        {call64("set_timer_op", 5000000)}
        {call64("sched_op", 1, 0)}
        jmp off
        """,
    )
    domain = run.model.domain
    layout = struct("vcpu_time_info", 64)
    at = domain.vcpu_info + struct("vcpu_info", 64).offsets["time"]
    assert layout.unpack(domain.memory.load(at, layout.size))["system_time"] >= 5_000_000


@pytest.mark.parametrize("name", ["control/shutdown", "control/sysrq", "data", "drivers", "attr", "error"])
def test_the_store_holds_what_the_toolstack_makes_for_a_domain(name: str) -> None:
    _, parts = make_domain(64)
    assert parts.store.nodes[f"{parts.store.home}/{name}"] == b""
