"""The guest-side code: it decodes, it fits, and its calls do what the architecture's instruction does."""

from __future__ import annotations

import iced_x86
import pytest

from pvpatch.abi.layout import CALL_PAGE_SIZE, HEADER_SIZE, SLOT_SIZE
from pvpatch.abi.spec import load_spec
from runtime.backends.lguest.resident import CODE_PAGES, HOLE, call_page, caller_of, resident
from runtime.outcome import Outcome
from tests.backends.images import CODE, DATA, Ran, run_text

EAX, ECX, EDX, EBX, ESI, EDI = 0, 1, 2, 3, 6, 7
STACK = f"mov esp, {CODE - 0x1000}\n"
SAVED = DATA + 0x3F00
OFF = "".join(f"mov [{SAVED + number * 4}], {name}\n" for number, name in enumerate(
    ("eax", "ecx", "edx", "ebx", "esp", "ebp", "esi", "edi")
)) + "mov eax, 0\ncall slot_shutdown\n"  # fmt: skip
"""Keeps the registers at SAVED, then ends the run."""


class Kept(Ran):
    """A run whose registers are those before the end was asked for."""

    def register(self, index: int) -> int:
        return self.dword(SAVED + index * 4)


def run(text: str) -> Kept:
    ran = run_text(STACK + text + OFF, "lguest", patched=True)
    return Kept(ran.machine, ran.result)


# -- shape ---------------------------------------------------------------------------------------


def test_stubs_lead_to_the_common_path() -> None:
    code = resident().code
    for vector in range(256):
        at = 4 * 4096 + vector * 16
        decoder = iced_x86.Decoder(32, code[at : at + 16], ip=HOLE + at)
        pushes = []
        insn = decoder.decode()
        while insn.mnemonic == iced_x86.Mnemonic.PUSH:
            pushes.append(insn.immediate(0) & 0xFFFFFFFF)
            insn = decoder.decode()
        assert insn.near_branch32 == resident().labels["common"]
        assert pushes[-1] & 0xFF == vector
        assert len(pushes) == (1 if pushes[-1] & 0x100 else 2)


def test_code_fits_its_pages() -> None:
    assert len(resident().code) == CODE_PAGES * 4096


def test_every_slot_is_filled_and_no_call_is_left_out() -> None:
    page = call_page()
    assert len(page) == CALL_PAGE_SIZE
    for call in load_spec().calls:
        slot = page[HEADER_SIZE + call.number * SLOT_SIZE :][:SLOT_SIZE]
        assert slot[0] != 0xCC, call.name


def test_hypercalls_are_counted_for_the_call_that_made_them() -> None:
    labels = resident().labels
    assert caller_of(labels["cr3_write"] + 8) == "cr3_write"
    assert caller_of(labels["switch_tables"] + 8) == "cr0_write"
    assert caller_of(labels["common"]) is None
    assert caller_of(0x100000) is None


# -- flags ---------------------------------------------------------------------------------------


def test_interrupt_flag_is_virtual() -> None:
    text = """
    call slot_flags_read
    mov ebx, eax
    call slot_irq_enable
    call slot_flags_read
    mov esi, eax
    call slot_irq_save
    mov edi, eax
    call slot_flags_read
    mov ecx, eax
    """
    ran = run(text)
    assert ran.register(EBX) & 0x200 == 0
    assert ran.register(ESI) & 0x200
    assert ran.register(EDI) & 0x200
    assert ran.register(ECX) & 0x200 == 0
    assert ran.result.stats["calls"]["irq_enable"] == {"in_guest": 1, "exit": 0}


@pytest.mark.parametrize(
    "name", ["irq_disable", "irq_enable", "irq_restore", "cr2_write", "gdt_load", "tlb_flush_all"]
)
def test_arithmetic_flags_and_registers_survive(name: str) -> None:
    text = f"""
    mov eax, 0
    mov ebx, 0x11
    mov ecx, 0x22
    mov edx, 0x33
    mov esi, 0x44
    mov edi, 0x55
    mov ebp, 0x66
    stc
    call slot_{name}
    setc al
    mov [DATA], al
    """
    ran = run(text)
    assert ran.dword(DATA) & 0xFF == 1
    assert [ran.register(i) for i in (ECX, EDX, EBX, ESI, EDI)][1:] == [0x33, 0x11, 0x44, 0x55]


def test_privilege_flag_and_nested_task_are_remembered() -> None:
    ran = run("mov eax, 0x7002\ncall slot_flags_write\ncall slot_flags_read\nmov ebx, eax\n")
    assert ran.register(EBX) & 0x7200 == 0x7000


def test_saved_flags_show_no_real_interrupt_flag() -> None:
    ran = run("mov eax, 2\ncall slot_flags_write\ncall slot_flags_read\nmov ebx, eax\n")
    assert ran.register(EBX) & 0x200 == 0


# -- registers -----------------------------------------------------------------------------------


def test_control_registers_read_back_what_was_written() -> None:
    text = """
    mov eax, 0x12345678
    call slot_cr2_write
    call slot_cr2_read
    mov ebx, eax
    call slot_cr0_read
    mov esi, eax
    mov eax, DATA+0x1000
    call slot_cr3_write
    call slot_cr3_read
    mov edi, eax
    """
    ran = run(text)
    assert ran.register(EBX) == 0x12345678
    assert ran.register(ESI) & 0x80000001 == 1, "paging looks off"
    assert ran.register(EDI) == DATA + 0x1000
    assert ran.result.stats["calls"]["cr3_write"] == {"in_guest": 1, "exit": 0}, "paging is off: no exit"


def test_what_lguest_cannot_give_is_not_in_cpuid() -> None:
    ran = run("mov eax, 1\nmov ecx, 0\ncall slot_cpuid\nmov esi, edx\nmov edi, ecx\n")
    assert ran.register(ESI) & (1 << 11 | 1 << 9) == 0, "SEP, APIC"
    assert ran.register(EDI) & (1 << 26 | 1 << 27) == 0, "XSAVE"


def test_tables_read_back() -> None:
    text = "mov eax, 0x37\nmov edx, DATA+8\ncall slot_gdt_load\nmov eax, 0\n"
    ran = run(text + "call slot_gdt_store\nmov ebx, eax\nmov esi, edx\n")
    assert ran.register(EBX) == 0x37
    assert ran.register(ESI) == DATA + 8


# -- time, services ------------------------------------------------------------------------------


def test_clock_is_monotonic_and_needs_no_exit() -> None:
    ran = run("call slot_clock_ns\nmov esi, eax\ncall slot_clock_ns\nmov edi, eax\n")
    assert 0 < ran.register(ESI) < ran.register(EDI) < ran.result.guest_ns
    assert ran.result.stats["calls"]["clock_ns"] == {"in_guest": 2, "exit": 0}


def test_wall_clock() -> None:
    ran = run("call slot_wallclock_ns\nmov esi, eax\nmov edi, edx\n")
    assert 1_700_000_000 < (ran.register(EDI) << 32 | ran.register(ESI)) / 1e9 < 1_800_000_000


def test_console_write_of_any_length() -> None:
    text = """
    mov edi, DATA
    mov ecx, 700
    mov al, 65
    rep stosb
    mov eax, DATA
    mov edx, 700
    call slot_console_write
    mov ebx, eax
    """
    ran = run(text)
    assert ran.result.transcript == b"A" * 700
    assert ran.register(EBX) == 700


GATE = """
lea eax, [handler]
mov edx, eax
and eax, 0xffff
and edx, 0xffff0000
or edx, 0x8e00
or eax, 0x100000
mov [DATA+0x200], eax
mov [DATA+0x204], edx
mov eax, 0x7ff
mov edx, DATA
call slot_idt_load
mov dword ptr [DATA+0x1010], 0xffff
mov dword ptr [DATA+0x1014], 0x00cf9a00
mov dword ptr [DATA+0x1018], 0xffff
mov dword ptr [DATA+0x101c], 0x00cf9200
mov eax, 0x1f
mov edx, DATA+0x1000
call slot_gdt_load
jmp over
handler: inc dword ptr [DATA+0x2000]
push dword ptr [esp+4]
pop dword ptr [DATA+0x2004]
jmp slot_iret
over:
"""


def test_alarm_fires_at_its_absolute_time() -> None:
    text = (
        GATE
        + """
    mov eax, 0
    mov edx, 0x40
    call slot_event_bind
    call slot_clock_ns
    add eax, 50000
    adc edx, 0
    mov edi, eax
    call slot_alarm_set
    call slot_safe_halt
    call slot_clock_ns
    mov esi, eax
    sub esi, edi
    """
    )
    ran = run(text)
    assert ran.result.outcome is Outcome.POWERED_OFF, ran.result.detail
    assert ran.dword(DATA + 0x2000) == 1
    assert ran.dword(DATA + 0x2004) & 3 == 0, "the handler finds a selector of ring 0"
    assert 0 < ran.register(ESI) < 100_000


def test_halt_with_interrupts_off_ends_the_run() -> None:
    periodic = "mov al, 0x34\nout 0x43, al\nmov al, 0x10\nout 0x40, al\nmov al, 0x10\nout 0x40, al\n"
    ran = run_text(STACK + periodic + "call slot_halt\n" + OFF, "lguest", patched=True)
    assert ran.result.outcome is Outcome.HALTED
    assert ran.result.guest_ns < 1_000_000


@pytest.mark.parametrize(("reason", "outcome"), [
    (0, Outcome.POWERED_OFF), (1, Outcome.REBOOTED), (3, Outcome.CRASHED),
])  # fmt: skip
def test_shutdown(reason: int, outcome: Outcome) -> None:
    ran = run_text(STACK + f"mov eax, {reason}\ncall slot_shutdown\nl: jmp l\n", "lguest", patched=True)
    assert ran.result.outcome is outcome


# -- guests that mean ill ------------------------------------------------------------------------


def test_a_fault_with_no_table_is_a_triple_fault() -> None:
    ran = run_text(STACK + "mov eax, 0\nmov edx, 0\ncall slot_idt_load\nud2\n", "lguest", patched=True)
    assert ran.result.outcome is Outcome.CRASHED
    assert "triple fault" in ran.result.detail


def test_wild_tables_end_the_guest_with_a_message() -> None:
    text = STACK + "mov eax, 0xffff\nmov edx, 0xffe00000\ncall slot_idt_load\nud2\n"
    ran = run_text(text, "lguest", patched=True)
    assert ran.result.outcome is Outcome.CRASHED
    assert ran.result.exit_code == 4


def test_writing_the_resident_code_is_a_page_fault() -> None:
    ran = run_text(STACK + "mov dword ptr [0xffc00000], 0\n", "lguest", patched=True)
    assert ran.result.outcome is Outcome.CRASHED


def test_writing_its_own_call_page_hurts_only_the_guest() -> None:
    fill = "mov edi, slot_abi_query\nmov ecx, 4096\nmov al, 0x0f\nrep stosb\n"
    ran = run_text(STACK + fill + "call slot_irq_enable\n", "lguest", patched=True)
    assert ran.result.outcome in (Outcome.CRASHED, Outcome.TIME_LIMIT)


def test_destroying_its_own_variables_hurts_only_the_guest() -> None:
    fill = "mov edi, 0xffc06000\nmov ecx, 0x4000\nmov al, 0xff\nrep stosb\n"
    ran = run_text(STACK + fill + "call slot_irq_enable\nud2\n", "lguest", patched=True)
    assert ran.result.outcome in (Outcome.CRASHED, Outcome.TIME_LIMIT)
    if ran.result.outcome is Outcome.CRASHED:
        assert ran.result.exit_code == 4
