"""lguest as its own guests see it: every hypercall, what it does and what it refuses."""

from __future__ import annotations

import pytest

from runtime.backends.lguest.interface import interface
from runtime.outcome import Outcome
from tests.backends.images import CODE, DATA, Ran, run_text, words

SHARED = DATA
"""Where the tests put lguest_data."""
WILD = (0x7FFF_FFF0, 0xFFFF_FFFC, 0xFFC0_0000, 0x0100_B000)
"""Guest-physical addresses of nothing, of the host's pages, and of the host's private memory above RAM."""


def shared_page(**fields: int) -> bytes:
    """lguest_data with an empty ring."""
    known = interface()
    page = bytearray(known.data_size)
    start, size = known.fields["hcall_status"]
    page[start : start + size] = bytes([known.ring_free]) * size
    for name, value in fields.items():
        page[known.offset(name) : known.offset(name) + 4] = words(value)
    return bytes(page)


def call(name: str, *arguments: int | str) -> str:
    """Assembly text of one hypercall."""
    pairs = zip(interface_arguments(), arguments, strict=False)
    lines = [f"mov {register}, {value}" for register, value in pairs]
    return "\n".join([*lines, f"mov eax, {interface().number(name)}", "int 0x1f", ""])


def interface_arguments() -> tuple[str, ...]:
    return ("ebx", "ecx", "edx", "esi")


INIT = f"mov esp, {CODE - 0x1000}\n" + call("lguest_init", SHARED)
END = call("shutdown", 0x1000, 1) + "here: jmp here\n"


def run(text: str, *, end: bool = True, data: bytes | None = None) -> Ran:
    whole = INIT + text + (END if end else "")
    return run_text(whole, "lguest", data=shared_page() if data is None else data)


def killed(ran: Ran, reason: str) -> None:
    """The guest was killed for `reason`, with the crash exit code."""
    assert ran.result.outcome is Outcome.CRASHED, ran.result.detail
    assert ran.result.exit_code == 4
    assert reason in ran.result.detail, ran.result.detail
    assert ran.result.crash is not None


# -- start ---------------------------------------------------------------------------------------


def test_starts_at_privilege_one_with_flat_segments() -> None:
    text = "mov eax, cs\nmov [DATA+0x1000], eax\nmov eax, ss\nmov [DATA+0x1004], eax\n"
    ran = run(text + "pushfd\npop dword ptr [DATA+0x1008]\n")
    assert ran.result.outcome is Outcome.POWERED_OFF
    assert ran.dword(DATA + 0x1000) == 0x61
    assert ran.dword(DATA + 0x1004) == 0x69
    assert ran.dword(DATA + 0x1008) & 0x3200 == 0x200


def test_boot_parameters_say_lguest() -> None:
    ran = run("")
    assert ran.dword(0x23C) == 1
    assert ran.machine.memory.load(0x206, 2) >= b"\x07\x02"


def test_init_fills_the_hosts_fields() -> None:
    ran = run("")
    known = interface()
    assert ran.dword(SHARED + known.offset("reserve_mem")) == 0x40_0000
    assert ran.dword(SHARED + known.offset("tsc_khz")) == 2_000_000
    assert ran.dword(SHARED + known.offset("time_sec")) >= 1_700_000_000


def test_nothing_works_before_init() -> None:
    ran = run_text(call("notify", DATA) + END, "lguest", data=shared_page())
    killed(ran, "before LGUEST_INIT")


def test_init_works_once() -> None:
    killed(run(call("lguest_init", SHARED)), "already have lguest_data")


@pytest.mark.parametrize("address", [*WILD, DATA + 1, 0x100_AC00])
def test_init_with_a_bad_page(address: int) -> None:
    ran = run_text(call("lguest_init", address) + END, "lguest", data=shared_page())
    if address == 0x100_AC00:
        killed(ran, "bad guest page")
    else:
        assert ran.result.outcome is Outcome.CRASHED
        assert ran.result.exit_code == 4


@pytest.mark.parametrize("number", [3, 11, 12, 20, 99, 0x7FFFFFFF, 0xFFFFFFFF])
def test_unknown_numbers_kill(number: int) -> None:
    killed(run(f"mov eax, {number}\nint 0x1f\n"), f"bad hypercall {number}")


def test_user_mode_may_not_call() -> None:
    """INT 0x1F from ring 3 is a general protection fault; with no handler it kills."""
    text = f"""
    push 0x7b
    push {CODE - 0x2000}
    push 0x202
    push 0x73
    lea eax, [user]
    push eax
    iretd
    user: mov eax, 0
    int 0x1f
    """
    gdt = call("load_gdt_entry", 14, 0xFFFF, 0x00CFFA00) + call("load_gdt_entry", 15, 0xFFFF, 0x00CFF200)
    killed(run(gdt + text), "unhandled trap 13")


# -- wild arguments ------------------------------------------------------------------------------

POINTER_CALLS = {
    "shutdown": "bad guest-physical address",
    "new_pgtable": "bad page table",
    "load_tls": "bad guest-physical address",
    "notify": "bad NOTIFY",
}


@pytest.mark.parametrize("address", [0x7FFF_FFF0, 0xFFFF_F000, 0x0140_0000])
@pytest.mark.parametrize("name", POINTER_CALLS)
def test_wild_pointers_kill(name: str, address: int) -> None:
    killed(run(call(name, address, 1)), POINTER_CALLS[name])


@pytest.mark.parametrize("name", [call.name for call in interface().hypercalls.values()])
@pytest.mark.parametrize("value", [0xFFFF_FFFF, 0x8000_0000, 0xFFC0_0000])
def test_every_call_with_wild_arguments_is_survived_or_kills(name: str, value: int) -> None:
    """No wild argument harms the host: the run ends in a defined way and memory above RAM is as before."""
    ran = run(call(name, value, value, value, value))
    assert ran.result.outcome in (Outcome.CRASHED, Outcome.POWERED_OFF, Outcome.HALTED, Outcome.REBOOTED)
    if ran.result.outcome is Outcome.CRASHED:
        assert ran.result.exit_code == 4
        assert "lguest killed the guest" in ran.result.detail


def test_the_gdt_has_no_more_entries() -> None:
    killed(run(call("load_gdt_entry", 32, 0, 0)), "too many gdt entries")


def test_the_hosts_entries_are_left_alone() -> None:
    ran = run(call("load_gdt_entry", 10, 0xFFFF, 0x00CF9200) + "mov eax, 0x53\nmov es, eax\n")
    killed(ran, "unhandled trap 13")  # LGUEST_CS still is the host's


def test_privilege_zero_becomes_one() -> None:
    text = call("load_gdt_entry", 5, 0xFFFF, 0x00CF9200)
    ran = run(text + "mov eax, 0x28\nmov es, eax\nlar eax, eax\nmov [DATA+0x1000], eax\n")
    assert ran.dword(DATA + 0x1000) & 0x6000 == 0x2000


def test_call_gates_are_not_put_into_the_real_table() -> None:
    ran = run(call("load_gdt_entry", 5, 0x0060_0000, 0x0000_EC00) + "lcall 0x2b, 0\n")
    killed(ran, "unhandled trap 13")


@pytest.mark.parametrize(("arguments", "reason"), [
    ((256, 0, 0x8E00), "setting idt entry 256"),
    ((6, 0, 0x8500), "bad IDT type 5"),
    ((6, 0, 0xEC00), "bad IDT type 12"),
])  # fmt: skip
def test_bad_gates(arguments: tuple[int, int, int], reason: str) -> None:
    killed(run(call("load_idt_entry", *arguments)), reason)


@pytest.mark.parametrize(("arguments", "reason"), [
    ((0x68, 0x1000, 1), "bad stack segment"),
    ((0x6B, 0x1000, 1), "bad stack segment"),
    ((0x69, 0x1000, 3), "bad stack pages"),
])  # fmt: skip
def test_bad_stacks(arguments: tuple[int, int, int], reason: str) -> None:
    killed(run(call("set_stack", *arguments)), reason)


def test_top_level_index_is_checked() -> None:
    killed(run(call("set_pgd", 0, 1024)), "attempt to set pgd")


def test_pmd_is_for_pae_only() -> None:
    killed(run(call("set_pmd", DATA, 0)), "not PAE")


# -- console, end --------------------------------------------------------------------------------


def test_notify_prints_up_to_the_zero() -> None:
    data = shared_page().ljust(0x1000, b"\0") + b"hello\0junk"
    ran = run_text(INIT + call("notify", DATA + 0x1000) + END, "lguest", data=data)
    assert ran.result.transcript == b"hello"


def test_notify_at_the_end_of_memory_is_bounded() -> None:
    ran = run(call("notify", (16 << 20) - 8))
    assert ran.result.outcome is Outcome.POWERED_OFF
    assert len(ran.result.transcript) <= 4096


@pytest.mark.parametrize(
    ("reason", "outcome"), [(1, Outcome.POWERED_OFF), (2, Outcome.REBOOTED), (0, Outcome.CRASHED)]
)
def test_shutdown_reasons(reason: int, outcome: Outcome) -> None:
    data = shared_page().ljust(0x1000, b"\0") + b"the end\0"
    ran = run_text(INIT + call("shutdown", DATA + 0x1000, reason) + "l: jmp l", "lguest", data=data)
    assert ran.result.outcome is outcome
    assert "the end" in ran.result.detail


# -- the ring ------------------------------------------------------------------------------------


def ring(*entries: tuple[int, ...]) -> bytes:
    """lguest_data with `entries` (number, arguments ...) waiting."""
    known = interface()
    page = bytearray(shared_page())
    for index, entry in enumerate(entries):
        page[known.offset("hcall_status") + index] = 0
        at = known.offset("hcalls") + index * known.ring_entry_words * 4
        raw = words(*entry, *[0] * (known.ring_entry_words - len(entry)))
        page[at : at + len(raw)] = raw
    return bytes(page)


def test_the_ring_is_drained_in_order_before_the_call() -> None:
    number = interface().number("notify")
    data = ring((number, DATA + 0x1000), (number, DATA + 0x1010)).ljust(0x1000, b"\0")
    data += b"one ".ljust(16, b"\0") + b"two ".ljust(16, b"\0") + b"three".ljust(16, b"\0")
    ran = run_text(INIT + call("notify", DATA + 0x1020) + END, "lguest", data=data)
    assert ran.result.transcript == b"one two three"
    assert ran.machine.memory.load(SHARED + interface().offset("hcall_status"), 2) == b"\xff\xff"


def test_a_bad_call_in_the_ring_kills() -> None:
    killed(run(call("flush_async"), data=ring((77,))), "bad hypercall 77")


def test_init_in_the_ring_kills() -> None:
    killed(run(call("flush_async"), data=ring((1, SHARED))), "already have lguest_data")


# -- interrupts ----------------------------------------------------------------------------------

HANDLER = """
jmp over
handler: inc dword ptr [DATA+0x2000]
push eax
mov eax, [esp+12]
mov [DATA+0x2004], eax
mov dword ptr ss:[DATA], 0x200
pop eax
iretd
over:
lea ecx, [handler]
mov edx, ecx
and ecx, 0xffff
and edx, 0xffff0000
or edx, 0x8e00
mov ebx, 32
mov eax, 6
int 0x1f
"""


def test_clock_event_wakes_halt() -> None:
    ran = run(HANDLER + call("set_clockevent", 5000) + call("halt"))
    assert ran.result.outcome is Outcome.POWERED_OFF
    assert ran.dword(DATA + 0x2000) == 1
    assert 5000 <= ran.result.guest_ns < 50_000
    assert ran.dword(DATA + 0x2004) & 0x200, "irq_enabled shows in the saved flags"


def test_clock_event_can_be_taken_back() -> None:
    ran = run(HANDLER + call("set_clockevent", 5000) + call("set_clockevent", 0) + call("halt"))
    assert ran.result.outcome is Outcome.HALTED
    assert ran.dword(DATA + 0x2000) == 0


def test_disabled_interrupts_become_pending() -> None:
    wait = "wait: cmp dword ptr [DATA+0x14], 0x200\njne wait\n"
    text = HANDLER + call("set_clockevent", 5000) + wait + "mov eax, [DATA+0x2000]\nmov [DATA+0x2008], eax\n"
    ran = run(text + "mov dword ptr [DATA], 0x200\n" + call("send_interrupts"))
    assert ran.dword(DATA + 0x2008) == 0
    assert ran.dword(DATA + 0x2000) == 1
    assert ran.dword(SHARED + interface().offset("irq_pending")) == 0


def spin(name: str) -> str:
    """Some 20 microseconds of work."""
    return f"mov ecx, 20000\n{name}: dec ecx\njne {name}\n"


def test_blocked_interrupts_wait() -> None:
    text = HANDLER + "mov dword ptr [DATA+4], 1\nmov dword ptr [DATA], 0x200\n" + call("set_clockevent", 1000)
    text += spin("first") + "mov eax, [DATA+0x2000]\nmov [DATA+0x2008], eax\nmov dword ptr [DATA+4], 0\n"
    ran = run(text + call("flush_async") + spin("second"))
    assert ran.dword(DATA + 0x2008) == 0
    assert ran.dword(DATA + 0x2000) == 1


def test_halt_with_nothing_to_wait_for_ends_the_run() -> None:
    ran = run(call("halt"))
    assert ran.result.outcome is Outcome.HALTED


def test_the_quiet_range_is_left_alone() -> None:
    """An interrupt that comes inside [noirq_start, noirq_end) is delivered behind it."""
    prologue = "lea eax, [start]\nmov [DATA+0x560], eax\nlea eax, [stop]\nmov [DATA+0x564], eax\n"
    body = "mov dword ptr [DATA], 0x200\nstart: " + spin("first")
    body += "mov eax, [DATA+0x2000]\nstop: mov [DATA+0x2008], eax\n" + spin("second")
    text = prologue + INIT + HANDLER + call("set_clockevent", 1000) + body + END
    ran = run_text(text, "lguest", data=shared_page())
    assert ran.dword(DATA + 0x2008) == 0
    assert ran.dword(DATA + 0x2000) == 1


# -- memory --------------------------------------------------------------------------------------


def test_the_hosts_tables_cannot_be_written() -> None:
    killed(run("mov dword ptr [0xfffff000], 0\n"), "unhandled trap 14")


def test_frames_beyond_memory_are_an_open_bus() -> None:
    """A 4 MiB page that maps far beyond RAM, where the host's private memory lies as well."""
    directory = words(*[(index << 22) | 0xE7 for index in range(8)])
    text = call("new_pgtable", DATA + 0x2000) + "mov dword ptr [0x1400000], 5\nmov eax, [0x1400000]\n"
    data = shared_page().ljust(0x2000, b"\0") + directory
    ran = run_text(INIT + text + "mov [DATA+0x1000], eax\n" + END, "lguest", data=data)
    assert ran.result.outcome is Outcome.POWERED_OFF, ran.result.detail
    assert ran.dword(DATA + 0x1000) == 0xFFFF_FFFF


def test_a_guest_with_no_stack_for_its_trap_is_killed() -> None:
    gate = HANDLER.replace("mov ebx, 32", "mov ebx, 6")
    killed(run(gate + "mov esp, 0xfffff100\nud2\n"), "no stack for trap")


def test_unhandled_traps_kill() -> None:
    killed(run("ud2\n"), "unhandled trap 6 (#UD)")


def test_a_privileged_instruction_is_the_guests_fault() -> None:
    ran = run("lgdt [DATA]\n")
    killed(ran, "unhandled trap 13 (#GP)")
    assert ran.result.stats["missed"] == 1
