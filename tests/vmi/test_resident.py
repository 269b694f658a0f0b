"""The guest-side code on VMI: every call keeps what it must and does what its instruction does."""

from __future__ import annotations

import pytest

from pvpatch.abi.layout import CALL_PAGE_SIZE, HEADER_SIZE, SLOT_SIZE
from pvpatch.abi.spec import load_spec
from runtime.backends.vmi.interface import interface
from runtime.backends.vmi.resident import CODE_PAGES, HOLE, call_page, caller_of, resident
from runtime.devices.rtc import DEFAULT_EPOCH
from runtime.outcome import Outcome
from tests.backends.images import CODE, DATA, Ran, run_text

STACK = f"mov esp, {CODE - 0x1000}\n"
SAVED = DATA + 0x3F00
NAMES = ("eax", "ecx", "edx", "ebx", "esp", "ebp", "esi", "edi")
KEEP = "".join(f"mov [{SAVED + number * 4}], {name}\n" for number, name in enumerate(NAMES))
OFF = KEEP + "mov eax, 0\ncall slot_shutdown\n"
FLAGS = 0x8D5
"""The arithmetic flags."""


def run(text: str, *, max_time_s: float = 0.2) -> Ran:
    return run_text(STACK + text + OFF, "vmi", patched=True, max_time_s=max_time_s)


def kept(ran: Ran, name: str) -> int:
    """A register as it was before the end was asked for."""
    return ran.dword(SAVED + 4 * NAMES.index(name))


def test_the_code_fits_and_every_slot_is_filled() -> None:
    assert len(resident().code) == CODE_PAGES * 4096
    assert interface().virtual_top <= HOLE
    page = call_page()
    assert len(page) == CALL_PAGE_SIZE
    for call in load_spec().calls:
        assert page[HEADER_SIZE + call.number * SLOT_SIZE] != 0xCC, call.name


def test_exits_are_counted_for_the_call_that_made_them() -> None:
    labels = resident().labels
    assert caller_of(labels["cr3_write"] + 8) == "cr3_write"
    assert caller_of(labels["switch_tables"] + 8) == "cr0_write"
    assert caller_of(labels["common"]) is None
    assert caller_of(0x100000) is None


HARMLESS = (
    "irq_disable", "irq_enable", "irq_restore", "irq_save", "flags_read", "cr0_read", "cr2_read", "cr3_read",
    "cr4_read", "cr2_write", "clts", "smsw", "dr_read", "gdt_load", "gdt_store", "idt_load", "idt_store",
    "ldt_store", "tr_store", "segment_store", "tlb_invalidate", "tlb_flush_local", "tlb_flush_all",
    "cache_writeback", "clock_ns", "wallclock_ns", "stolen_ns", "alarm_set", "alarm_cancel", "event_mask",
    "event_unmask", "event_eoi", "msr_read", "in8", "out8", "yield",
)  # fmt: skip


@pytest.mark.parametrize("name", HARMLESS)
@pytest.mark.parametrize("flags", [0x2, 0x2 | FLAGS])
def test_registers_and_flags_survive(name: str, flags: int) -> None:
    """Everything but the documented results; with paging off and interrupts off."""
    text = f"""
    mov ebx, 0x11111111
    mov ebp, 0x22222222
    mov esi, 0x33333333
    mov edi, 0x44444444
    mov ecx, 0x55
    mov edx, 0x80
    push {flags}
    popfd
    mov eax, 0
    call slot_{name}
    mov [DATA+16], edx
    mov [DATA+20], ecx
    pushfd
    pop dword ptr [DATA]
    """
    ran = run(text)
    assert ran.result.outcome is Outcome.POWERED_OFF, ran.result.detail
    assert ran.dword(DATA) & FLAGS == flags & FLAGS
    expected = {"ebx": 0x11111111, "ebp": 0x22222222, "esi": 0x33333333, "edi": 0x44444444}
    assert {register: kept(ran, register) for register in expected} == expected
    assert kept(ran, "esp") == CODE - 0x1000
    results = {item.name: item for item in next(c for c in load_spec().calls if c.name == name).results}
    written = {register for item in results.values() for register in item.registers(32)}
    if "edx" not in written:
        assert ran.dword(DATA + 16) == 0x80
    if "ecx" not in written:
        assert ran.dword(DATA + 20) == 0x55


def test_the_interrupt_flag_is_virtual_and_needs_no_exit() -> None:
    text = """
    call slot_irq_enable
    call slot_flags_read
    mov ebx, eax
    call slot_irq_save
    mov esi, eax
    call slot_flags_read
    mov edi, eax
    mov eax, ebx
    call slot_irq_restore
    call slot_flags_read
    mov ebp, eax
    """
    ran = run(text)
    assert [kept(ran, name) & 0x200 for name in ("ebx", "esi", "edi", "ebp")] == [0x200, 0x200, 0, 0x200]
    calls = ran.result.stats["calls"]
    assert isinstance(calls, dict)
    assert all(calls[name]["exit"] == 0 for name in ("irq_enable", "irq_save", "irq_restore", "flags_read"))


def test_privilege_flag_and_nested_task_are_remembered() -> None:
    ran = run("mov eax, 0x7002\ncall slot_flags_write\ncall slot_flags_read\nmov ebx, eax\n")
    assert kept(ran, "ebx") & 0x7200 == 0x7000


def test_the_clock_goes_on_and_some_time_is_stolen() -> None:
    clock = "call slot_clock_ns\nmov esi, eax\ncall slot_clock_ns\nmov edi, eax\n"
    ran = run(f"{clock}call slot_stolen_ns\nmov ebx, eax\n")
    assert 0 < kept(ran, "esi") < kept(ran, "edi") < ran.result.guest_ns
    assert 0 < kept(ran, "ebx") < kept(ran, "edi")


def test_the_wall_clock_is_in_nanoseconds() -> None:
    ran = run("call slot_wallclock_ns\nmov esi, eax\nmov edi, edx\n")
    shown = kept(ran, "edi") << 32 | kept(ran, "esi")
    start = int(DEFAULT_EPOCH.timestamp()) * 10**9
    assert start < shown < start + ran.result.guest_ns


def test_console_write_of_any_length() -> None:
    text = "cld\nmov edi, DATA\nmov ecx, 700\nmov al, 65\nrep stosb\nmov eax, DATA\nmov edx, 700\n"
    ran = run(text + "call slot_console_write\nmov ebx, eax\n")
    assert ran.result.transcript == b"A" * 700
    assert kept(ran, "ebx") == 700


GATE = f"""
    mov dword ptr [{DATA + 0x808}], 0x0000ffff
    mov dword ptr [{DATA + 0x80C}], 0x00cf9b00
    mov dword ptr [{DATA + 0x810}], 0x0000ffff
    mov dword ptr [{DATA + 0x814}], 0x00cf9b00
    mov dword ptr [{DATA + 0x818}], 0x0000ffff
    mov dword ptr [{DATA + 0x81C}], 0x00cf9300
    mov eax, 31
    mov edx, {DATA + 0x800}
    call slot_gdt_load
    push 8
    push loaded
    jmp slot_far_jump
loaded:
    mov eax, handler
    movzx ecx, ax
    or ecx, 0x80000
    mov [{DATA + 0x1000 + 0x50 * 8}], ecx
    and eax, 0xffff0000
    or eax, 0x8e00
    mov [{DATA + 0x1000 + 0x50 * 8 + 4}], eax
    mov eax, 0x7ff
    mov edx, {DATA + 0x1000}
    call slot_idt_load
    mov eax, 0
    mov edx, 0x50
    call slot_event_bind
"""
HANDLER = f"""
    jmp over
handler:
    push eax
    mov eax, [esp+4]
    mov [{DATA + 4}], eax
    mov eax, [esp+8]
    mov [{DATA + 8}], eax
    mov eax, [esp+12]
    mov [{DATA + 12}], eax
    inc dword ptr [{DATA}]
    pop eax
    jmp slot_iret
over:
"""
SOON = "call slot_clock_ns\nadd eax, 100000\nadc edx, 0\ncall slot_alarm_set\n"
PASS = "mov ecx, 400\nspin:\ncall slot_clock_ns\ndec ecx\njne spin\n"


def test_an_interrupt_while_off_comes_when_on_and_shows_the_guests_own_frame() -> None:
    ran = run(f"{GATE}{HANDLER}{SOON}{PASS}mov ebx, [{DATA}]\ncall slot_irq_enable\nmov esi, [{DATA}]\n")
    assert (kept(ran, "ebx"), kept(ran, "esi")) == (0, 1)
    assert 0x200000 <= ran.dword(DATA + 4) < 0x210000, "in the call page, on the slot's RET"
    assert ran.dword(DATA + 8) == 8, "the guest's own selector"
    assert ran.dword(DATA + 12) & 0x200


@pytest.mark.parametrize("backend", ["vmi", "lguest"])
@pytest.mark.parametrize("own_segment", [True, False])
def test_a_loop_of_calls_does_not_keep_interrupts_away(backend: str, own_segment: bool) -> None:
    """Nearly all of its time is spent in the resident code, where no interrupt comes."""
    gate = GATE if own_segment else GATE.replace("push 8\n    push loaded\n    jmp slot_far_jump\n", "")
    polling = PASS.replace("400", "2000")
    text = f"{gate}{HANDLER}call slot_irq_enable\n{SOON}{polling}mov ebx, [{DATA}]\n"
    ran = run_text(STACK + text + OFF, backend, patched=True)
    assert kept(ran, "ebx") == 1


def test_a_masked_event_waits() -> None:
    mask = "mov eax, 0\ncall slot_event_mask\n"
    unmask = "mov eax, 0\ncall slot_event_unmask\n"
    text = f"{GATE}{HANDLER}call slot_irq_enable\n{mask}{SOON}{PASS}mov ebx, [{DATA}]\n{unmask}"
    ran = run(f"{text}nop\njmp next\nnext:\ncall slot_clock_ns\nmov esi, [{DATA}]\n")
    assert (kept(ran, "ebx"), kept(ran, "esi")) == (0, 1)


def test_a_cancelled_alarm_does_not_come() -> None:
    cancel = "call slot_alarm_cancel\nmov ebx, eax\ncall slot_alarm_cancel\nmov esi, eax\n"
    ran = run(f"{GATE}{HANDLER}{SOON}{cancel}call slot_irq_enable\n{PASS}mov edi, [{DATA}]\n")
    assert [kept(ran, name) for name in ("ebx", "esi", "edi")] == [1, 0, 0]


def test_safe_halt_wakes_with_interrupts_on() -> None:
    look = f"call slot_flags_read\nmov ebx, eax\nmov esi, [{DATA}]\n"
    ran = run(f"{GATE}{HANDLER}{SOON}call slot_safe_halt\n{look}")
    assert kept(ran, "ebx") & 0x200
    assert kept(ran, "esi") == 1


def test_a_halt_with_interrupts_off_is_the_end() -> None:
    ran = run("call slot_halt\n")
    assert ran.result.outcome is Outcome.POWERED_OFF
    assert ran.result.detail == "Shutdown"


@pytest.mark.parametrize(
    ("reason", "outcome"),
    [(0, Outcome.POWERED_OFF), (1, Outcome.REBOOTED), (3, Outcome.CRASHED)],
)
def test_the_end_by_its_reason(reason: int, outcome: Outcome) -> None:
    assert run(f"mov eax, {reason}\ncall slot_shutdown\n").result.outcome is outcome


@pytest.mark.parametrize("base", [0x20, 0x70, 0x08])
def test_the_guests_vectors_for_the_8259_are_its_own(base: int) -> None:
    """Whatever base it programs; the real one is out of its sight."""
    out = "".join(
        f"mov al, {value}\nmov edx, {port}\ncall slot_out8\n"
        for port, value in ((0x20, 0x11), (0x21, base), (0x21, 4), (0x21, 1), (0x21, 0xFE), (0x43, 0x30))
    )
    gate = GATE.replace(str(DATA + 0x1000 + 0x50 * 8 + 4), str(DATA + 0x1000 + base * 8 + 4))
    gate = gate.replace(str(DATA + 0x1000 + 0x50 * 8), str(DATA + 0x1000 + base * 8))
    count = "".join(f"mov al, {value}\nmov edx, 0x40\ncall slot_out8\n" for value in (0x50, 0))
    ran = run(f"{gate}{HANDLER}{out}{count}call slot_irq_enable\n{PASS}mov ebx, [{DATA}]\n")
    assert ran.result.outcome is Outcome.POWERED_OFF, ran.result.detail
    assert kept(ran, "ebx") == 1
