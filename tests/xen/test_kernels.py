"""Traps, events, returns and emulation as a kernel on the CPU sees them."""

from __future__ import annotations

import pytest

from runtime.backends.xen.construction import hypercall_page
from runtime.outcome import Outcome
from tests.xen.domains import VIRT_BASE, make_domain
from tests.xen.kernels import DATA, call32, call64, run_kernel

CS64, SS64, CS32, SS32 = 0xE033, 0xE02B, 0xE019, 0xE021
IF = 0x200
MASKED64, MASKED32 = 1 << 32, 1 << 16

SAVE_FRAME_64 = "\n".join(f"mov rax, [rsp+{8 * i}]\nmov rbx, data\nmov [rbx+{8 * i}], rax" for i in range(8))
SAVE_FRAME_32 = "\n".join(f"mov eax, [esp+{4 * i}]\nmov [data+{4 * i}], eax" for i in range(6))


def trap_table_64(**vectors: tuple[int, int, str]) -> str:
    """struct trap_info entries: name=(vector, flags, label); addresses are made at run time."""
    lines = []
    for index, (vector, flags, label) in enumerate(vectors.values()):
        lines += [
            f"lea rax, [rip+{label}]",
            "mov rbx, data",
            f"mov [rbx+{0x800 + 16 * index + 8}], rax",
            f"mov dword ptr [rbx+{0x800 + 16 * index}], {vector | flags << 8 | CS64 << 16}",
        ]
    return "\n".join([*lines, call64("set_trap_table", "data+0x800")])


def test_a_trap_frame_and_the_return_from_it_pv64() -> None:
    run = run_kernel(
        64,
        f"""
        {trap_table_64(bp=(3, 3, "handler"))}
        mov rcx, 0x1111
        mov r11, 0x2222
        int3
        after:
        mov rbx, data
        mov [rbx+0x100], rax
        mov [rbx+0x108], rcx
        mov [rbx+0x110], r11
        jmp off
        handler:
        {SAVE_FRAME_64}
        pop rcx
        pop r11
        push 0
        push 0x33
        push 0x44
        push 0x55
        mov eax, 23
        syscall
        """,
    )
    assert run.result.outcome is Outcome.POWERED_OFF
    rcx, r11, rip, cs, rflags, rsp, ss, _ = run.words(8)
    assert (rcx, r11) == (0x1111, 0x2222)
    assert rip == run.labels["after"]
    assert cs == (CS64 & ~3) | MASKED64, "RPL 0 for the kernel, and events were masked"
    assert not rflags & IF
    assert ss == SS64
    assert rsp == run.model.parts.plan.stack_top
    assert run.words(3, 0x100) == [0x55, 0x33, 0x44]


def test_a_trap_frame_and_the_return_from_it_pv32() -> None:
    run = run_kernel(
        32,
        f"""
        mov dword ptr [data+0x800], {3 | 3 << 8 | CS32 << 16}
        lea eax, [handler]
        mov [data+0x804], eax
        {call32("set_trap_table", "data+0x800")}
        int3
        after:
        mov [data+0x100], eax
        jmp off
        handler:
        {SAVE_FRAME_32}
        push 0x55
        mov eax, 23
        int 0x82
        """,
    )
    assert run.result.outcome is Outcome.POWERED_OFF
    eip, cs, eflags = run.words(3)
    assert eip == run.labels["after"]
    assert cs == CS32 | MASKED32
    assert not eflags & IF
    assert run.words(1, 0x100) == [0x55]


def test_block_sleeps_until_the_timer_and_the_upcall_masks_events() -> None:
    run = run_kernel(
        64,
        f"""
        lea rdi, [rip+upcall]
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
        after:
        jmp off
        upcall:
        {SAVE_FRAME_64}
        jmp off
        """,
    )
    assert run.result.outcome is Outcome.POWERED_OFF
    assert 5_000_000 <= run.result.guest_ns < 5_100_000
    rip, cs, rflags = run.words(3, 16)
    assert rip == run.labels["after"]
    assert cs == CS64 & ~3, "events were not masked: block unmasks them"
    assert rflags & IF
    assert run.model.domain.upcall_mask


def test_user_mode_has_its_own_tables_and_its_syscall_comes_to_the_kernel() -> None:
    run = run_kernel(
        64,
        f"""
        mov rax, [rsi+0x58]
        lea rdi, [rip+off]
        lea rsi, [rip+off]
        lea rdx, [rip+from_user]
        mov eax, 4
        syscall
        mov rbx, data
        mov dword ptr [rbx+0x800], 15
        mov rax, ROOT
        mov [rbx+0x808], rax
        {call64("mmuext_op", "data+0x800", 1, 0, 0x7FF0)}
        {call64("stack_switch", SS64, "data+0x700")}
        push {SS64}
        push 0x1234560
        push 0x202
        push {CS64}
        lea rax, [rip+user]
        push rax
        push 0
        push 0
        push 0
        push 0
        mov eax, 23
        syscall
        user:
        mov eax, 0x77
        syscall
        user_after:
        ud2
        from_user:
        mov rbx, data
        mov [rbx+0x100], rax
        {SAVE_FRAME_64}
        jmp off
        """,
        ROOT=8 * 256 - 1 - _root_pfn(64),
    )
    assert run.result.outcome is Outcome.POWERED_OFF, run.result.detail
    rcx, _, rip, cs, rflags, rsp, ss, _ = run.words(8)
    assert rcx == rip == run.labels["user_after"]
    assert (cs, ss, rsp) == (CS64, SS64, 0x1234560)
    assert rflags & IF
    assert run.words(1, 0x100) == [0x77]
    assert run.model.domain.kernel_mode


def _root_pfn(width: int) -> int:
    return make_domain(width)[1].plan.root_pfn


@pytest.mark.parametrize(("cs", "rip"), [(0x1003, "off"), (CS64 & ~3, "0x123456789abcdef0")])
def test_an_iret_that_the_cpu_refuses_goes_to_the_failsafe_callback(cs: int, rip: str) -> None:
    target = "lea rax, [rip+off]" if rip == "off" else f"mov rax, {rip}"
    run = run_kernel(
        64,
        f"""
        lea rdi, [rip+wrong]
        lea rsi, [rip+failsafe]
        lea rdx, [rip+wrong]
        mov eax, 4
        syscall
        push {SS64}
        push rsp
        push 2
        push {cs & ~3}
        {target}
        push rax
        push 0
        push 0
        push 0
        push 0
        mov eax, 23
        syscall
        wrong:
        ud2
        failsafe:
        mov rax, [rsp+56]
        mov rbx, data
        mov [rbx+8], rax
        mov qword ptr [rbx], 1
        jmp off
        """,
    )
    assert run.result.outcome is Outcome.POWERED_OFF, run.result.detail
    assert run.words(2) == [1, cs & ~3 | MASKED64]


def test_what_iopl_allows_is_skipped_and_the_rest_faults() -> None:
    run = run_kernel(
        64,
        f"""
        {trap_table_64(gp=(13, 0, "handler"))}
        mov rbx, data
        mov dword ptr [rbx+0x900], 1
        {call64("physdev_op", 6, "data+0x900")}
        cli
        sti
        in al, 0x70
        mov cr2, rax
        mov rcx, cr2
        mov rbx, data
        mov [rbx+0x100], rcx
        mov [rbx+0x108], rax
        hlt
        handler:
        {SAVE_FRAME_64}
        lea rax, [rip+handler]
        mov [rbx+0x110], rax
        jmp off
        """,
    )
    assert run.result.outcome is Outcome.POWERED_OFF, run.result.detail
    assert run.words(1, 0x100)[0] & 0xFF == 0xFF, "a port that is not the domain's reads as all ones"
    error, rip = run.words(2, 16)
    assert error == 0
    assert rip == run.labels["handler"] - 1, "the HLT"
    counts = run.result.stats["backend_counters"]
    assert isinstance(counts, dict)
    assert counts["emulated cli"] == counts["emulated sti"] == counts["emulated in"] == 1


def test_a_write_to_a_page_table_is_done_after_a_check() -> None:
    _, parts = make_domain(64)
    base = VIRT_BASE[64]
    table = parts.plan.page_tables[1, base]
    run = run_kernel(
        64,
        f"""
        {trap_table_64(pf=(14, 0, "handler"))}
        {call64("vm_assist", 0, 2)}
        mov rbx, TABLE
        mov rax, [rbx+8*20]
        mov rcx, rax
        and rcx, -3
        mov [rbx+8*20], rcx
        lock or qword ptr [rbx+8*20], 2
        mov rdx, rax
        lock cmpxchg [rbx+8*20], rcx
        mov rdi, data
        mov rsi, [rbx+8*20]
        mov [rdi+0x100], rsi
        mov [rdi+0x108], rcx
        mov rax, TABLE_ENTRY
        mov [rbx+8*20], rax
        ud2
        handler:
        {SAVE_FRAME_64}
        jmp off
        """,
        TABLE=base + table * 4096,
        TABLE_ENTRY=parts.plan.p2m[table] << 12 | 7,
    )
    assert run.result.outcome is Outcome.POWERED_OFF, run.result.detail
    final, read_only = run.words(2, 0x100)
    assert final & ~0x60 == read_only & ~0x60
    assert run.model.page_writes.count == 3
    _, _, error, rip = run.words(4)
    assert error & 3 == 3, "a writable mapping of a page table is refused: the guest gets its fault"
    assert run.labels["handler"] - rip <= 16


def test_what_a_64_bit_guest_may_take_for_granted() -> None:
    """XSAVE without a CR4 of its own, the assists of pv32, and 8 frames of grants, as GNU Mach does."""
    run = run_kernel(
        64,
        f"""
        mov rdi, data
        mov dword ptr [rdi], 0x7ff0
        mov dword ptr [rdi+4], 8
        mov rax, data
        add rax, 0x80
        mov [rdi+16], rax
        {call64("grant_table_op", 2, "data", 1)}
        mov rdi, data
        mov [rdi+0x100], rax
        {call64("vm_assist", 0, 0)}
        mov rdi, data
        mov [rdi+0x108], rax
        mov eax, 1
        mov edx, 0
        mov rcx, data
        xsave [rcx+0x200]
        mov rdi, data
        mov qword ptr [rdi+0x110], 1
        jmp off
        """,
    )
    assert run.result.outcome is Outcome.POWERED_OFF, run.result.detail
    assert run.words(3, 0x100) == [0, 0, 1]
    assert run.words(1, 8)[0] & 0xFFFF == 0, "GNTST_okay"


@pytest.mark.parametrize(
    ("state", "index", "faults"), [(3, 0, 0), (1, 0, 0), (2, 0, 1), (7, 0, 1), (3, 1, 1)]
)
def test_xsetbv_takes_what_cpuid_shows(state: int, index: int, faults: int) -> None:
    run = run_kernel(
        64,
        f"""
        jmp go
        handler:
        mov rdi, data
        mov qword ptr [rdi], 1
        jmp off
        go:
        mov rdi, data
        mov byte ptr [rdi+0x100], 13
        mov word ptr [rdi+0x102], 0xe033
        mov rax, handler
        mov [rdi+0x108], rax
        {call64("set_trap_table", "table")}
        mov ecx, {index}
        mov edx, 0
        mov eax, {state}
        xsetbv
        mov ecx, 0
        xgetbv
        mov rdi, data
        mov [rdi+8], rax
        jmp off
        """,
        table=VIRT_BASE[64] + DATA + 0x100,
    )
    assert run.result.outcome is Outcome.POWERED_OFF, run.result.detail
    assert run.words(2) == [faults, 0 if faults else state]


@pytest.mark.parametrize("prefix", ["", "lock "])
def test_a_compare_exchange_on_a_page_table_sets_its_flags(prefix: str) -> None:
    """As Linux changes an entry: again and again until nobody else did (ptep_set_wrprotect since 6.7)."""
    _, parts = make_domain(64)
    base = VIRT_BASE[64]
    table = parts.plan.page_tables[1, base]
    run = run_kernel(
        64,
        f"""
        {trap_table_64(pf=(14, 0, "out"))}
        {call64("vm_assist", 0, 2)}
        mov rbx, TABLE
        mov rax, [rbx+8*20]
        mov r9, 0
        again:
        inc r9
        cmp r9, 5
        je out
        mov rdx, rax
        or rdx, 0x200
        {prefix}cmpxchg [rbx+8*20], rdx
        jne again
        bts qword ptr [rbx+8*20], 9
        setc r9b
        btr qword ptr [rbx+8*20], 10
        adc r9, 0x10
        out:
        mov rdi, data
        mov [rdi+0x100], r9
        jmp off
        """,
        TABLE=base + table * 4096,
    )
    assert run.result.outcome is Outcome.POWERED_OFF, run.result.detail
    assert run.model.page_writes.count == 3
    assert run.words(1, 0x100) == [0x11]


def test_a_kernel_without_a_trap_table_is_crashed_with_xens_words() -> None:
    run = run_kernel(64, "nop\nud2")
    assert run.result.exit_code == 4
    assert run.result.crash is not None
    assert "domain_crash: d1v0 Unhandled #UD fault/trap [#6, ec=0000]" in run.result.crash.reason
    assert run.result.crash.registers["rip"] == VIRT_BASE[64] + 1


def test_iret_to_ring_0_crashes_a_pv32_domain() -> None:
    run = run_kernel(32, "push 0x202\npush 8\npush 0\npush 0\nmov eax, 23\nint 0x82")
    assert run.result.exit_code == 4
    assert "ring 0" in run.result.detail


def test_a_pv32_kernel_cannot_reach_xens_tables_in_compatibility_mode() -> None:
    run = run_kernel(32, "mov eax, [0xF5800000]\nmov [data], eax\nmov dword ptr [0xF5800000], 1")
    assert run.result.exit_code == 4
    assert run.words(1) == [8 * 256 - 1], "M2P of frame 0 can be read"
    assert "#PF" in run.result.detail


@pytest.mark.parametrize("width", [32, 64])
def test_the_hypercall_page_decodes_to_the_documented_stubs(width: int) -> None:
    page = hypercall_page(width)
    assert len(page) == 4096
    if width == 32:
        assert page[17 * 32 :][:8] == b"\xb8\x11\0\0\0\xcd\x82\xc3"
        assert page[23 * 32 :][:8] == b"\x50\xb8\x17\0\0\0\xcd\x82"
    else:
        assert page[17 * 32 :][:14] == b"\x51\x41\x53\xb8\x11\0\0\0\x0f\x05\x41\x5b\x59\xc3"
        assert page[23 * 32 :][:11] == b"\x51\x41\x53\x50\xb8\x17\0\0\0\x0f\x05"
