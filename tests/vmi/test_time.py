"""Nanoseconds to cycles and back: in the slot code and in the model, without drift over any time."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import unicorn
from hypothesis import given, settings
from hypothesis import strategies as st
from unicorn import x86_const as x86

import runtime.machine as machine_module
from pvpatch.abi.asm import assemble
from runtime.backends.slotfile import read_slot_file
from runtime.backends.vmi import resident as guest_side
from runtime.backends.vmi.interface import interface
from runtime.backends.vmi.timers import cycles_at, first_ns_with
from runtime.outcome import Outcome
from tests.backends.images import DATA, run_text

NS = 1_000_000_000
DAY = 86400
YEAR = 366 * DAY
FREQUENCIES = st.integers(1_000_000, (1 << 32) - 1)
"""From a slow counter to the fastest one that the code takes."""
TIMES = st.integers(0, 100 * YEAR * NS)

BASE, VARIABLES, STACK = 0x10000, 0x20000, 0x30000
FOLDER = Path(guest_side.__file__).parent


class SlotCode:
    """The conversion routines of host32.s on a CPU of their own, with the two ROM calls replaced."""

    def __init__(self) -> None:
        routines = read_slot_file(FOLDER / "words32.s", FOLDER / "host32.s").routines
        text = f"now:\n{routines['now']}\narm_clock:\n{routines['arm_clock']}\n"
        text += "count:\n mov eax, [GIVEN]\n mov edx, [GIVEN+4]\n ret\n"
        text += "set:\n mov [TAKEN], edx\n mov [TAKEN+4], ecx\n"
        text += " mov eax, -1\n mov ecx, eax\n mov edx, eax\n ret\n"
        names = sorted(set(re.findall(r"\b(?:P|VMI)_\w+", text)) | {"GIVEN", "TAKEN"})
        self.places = {name: VARIABLES + 16 * index for index, name in enumerate(names)}
        built = assemble(text, 32, BASE, {**self.places, "ALARM_FLAGS": 0x10000})
        self.labels = built.labels
        self.uc = unicorn.Uc(unicorn.UC_ARCH_X86, unicorn.UC_MODE_32)
        self.uc.mem_map(0, 0x40000)
        self.uc.mem_write(BASE, built.code)
        self.put("VMI_GetCycleCounter", built.labels["count"])
        self.put("VMI_SetAlarm", built.labels["set"])

    def put(self, name: str, value: int) -> None:
        self.uc.mem_write(self.places[name], value.to_bytes(8, "little"))

    def call(self, name: str) -> int:
        """Run a routine; EDX:EAX afterwards."""
        self.uc.mem_write(STACK, b"\0\0\0\0")
        self.uc.reg_write(x86.UC_X86_REG_ESP, STACK)
        self.uc.emu_start(self.labels[name], 0, count=400)
        assert self.uc.reg_read(x86.UC_X86_REG_ESP) == STACK + 4
        return int(self.uc.reg_read(x86.UC_X86_REG_EDX)) << 32 | int(self.uc.reg_read(x86.UC_X86_REG_EAX))

    def clock(self, cycles: int, frequency: int) -> int:
        """clock_ns when the counter shows `cycles`."""
        self.put("GIVEN", cycles)
        self.put("P_frequency", frequency)
        return self.call("now")

    def expiry(self, deadline: int, frequency: int) -> int:
        """The cycles that alarm_set asks SetAlarm for."""
        self.put("P_deadline", deadline)
        self.put("P_frequency", frequency)
        self.call("arm_clock")
        return int.from_bytes(self.uc.mem_read(self.places["TAKEN"], 8), "little")


@cache
def code() -> SlotCode:
    return SlotCode()


@given(TIMES, FREQUENCIES)
@settings(max_examples=300, deadline=None)
def test_the_slots_convert_exactly(nanoseconds: int, frequency: int) -> None:
    cycles = cycles_at(nanoseconds, frequency)
    if cycles < 1 << 64:
        assert code().clock(cycles, frequency) == cycles * NS // frequency
    expiry = -(-nanoseconds * frequency // NS)
    assert code().expiry(nanoseconds, frequency) == min(expiry, (1 << 64) - 1)


@given(TIMES, FREQUENCIES)
@settings(max_examples=300, deadline=None)
def test_an_alarm_is_never_early_and_less_than_a_cycle_late(deadline: int, frequency: int) -> None:
    expiry = code().expiry(deadline, frequency)
    if expiry < (1 << 64) - 1:
        assert code().clock(expiry, frequency) >= deadline
        if expiry:
            assert (expiry - 1) * NS < deadline * frequency


@given(st.integers(0, (1 << 64) - 1), st.integers(0, 1 << 40), FREQUENCIES)
@settings(max_examples=300, deadline=None)
def test_the_clock_never_goes_back_and_is_never_a_cycle_behind(
    cycles: int, more: int, frequency: int
) -> None:
    later = min(cycles + more, (1 << 64) - 1)
    first, second = code().clock(cycles, frequency), code().clock(later, frequency)
    if second < 1 << 64 and later * NS // frequency < 1 << 64:
        assert first <= second
        assert 0 <= cycles * NS - first * frequency < frequency


@pytest.mark.parametrize("deadline", [1 << 63, (1 << 64) - 1])
def test_a_deadline_beyond_all_cycles_never_comes(deadline: int) -> None:
    assert code().expiry(deadline, (1 << 32) - 1) == (1 << 64) - 1


def test_days_of_reading_the_clock_add_up_to_nothing() -> None:
    """Ten days, a tick of 1/250 s at a time: every tick from the clock before, as a kernel keeps time."""
    frequency = interface().cycles_per_second
    slots, tick, worst = code(), NS // 250, 0
    for step in _sparse(10 * DAY * 250):
        deadline = step * tick
        shown = slots.clock(slots.expiry(deadline, frequency), frequency)
        worst = max(worst, shown - deadline)
        assert shown >= deadline
    assert worst <= 1


def _sparse(count: int) -> Iterator[int]:
    """Numbers up to `count`, dense at both ends."""
    yield from range(500)
    yield from range(500, count - 500, count // 1000)
    yield from range(count - 500, count)


@given(st.integers(0, 10**20), FREQUENCIES)
def test_the_models_alarm_is_due_when_its_count_is_reached(cycles: int, frequency: int) -> None:
    due = first_ns_with(cycles, frequency)
    assert cycles_at(due, frequency) >= cycles
    assert due == 0 or cycles_at(due - 1, frequency) < cycles


SIMULATED = f"""
  mov esp, 0x180000
  mov dword ptr [{DATA}], 0
step:
  mov eax, [{DATA}]
  inc eax
  mov [{DATA}], eax
  mov ecx, {3600}
  mul ecx
  mov ecx, 1000000000
  mul ecx
  mov [{DATA + 8}], eax
  mov [{DATA + 12}], edx
  call slot_alarm_set
  call slot_safe_halt
  call slot_irq_disable
  call slot_clock_ns
  sub eax, [{DATA + 8}]
  sbb edx, [{DATA + 12}]
  jb early
  cmp edx, 0
  jne late
  cmp dword ptr [{DATA}], 1
  je step
  cmp eax, 20000
  ja late
  cmp dword ptr [{DATA}], {24 * 7}
  jne step
  mov al, 0
  jmp report
early:
  mov al, 1
  jmp report
late:
  mov al, 2
report:
  mov edx, 0xf4
  call slot_out8
stop:
  jmp stop
handler:
  push eax
  inc dword ptr [{DATA + 16}]
  pop eax
  jmp slot_iret
"""
SETUP = f"""
  mov esp, 0x180000
  mov al, 0x30
  mov edx, 0x43
  call slot_out8
  mov eax, 0xffff
  mov edx, {DATA + 0x1000}
  call slot_idt_load
  mov eax, 31
  mov edx, {DATA + 0x800}
  call slot_gdt_load
  mov dword ptr [{DATA + 0x808}], 0x0000ffff
  mov dword ptr [{DATA + 0x80C}], 0x00cf9b00
  mov dword ptr [{DATA + 0x810}], 0x0000ffff
  mov dword ptr [{DATA + 0x814}], 0x00cf9b00
  mov dword ptr [{DATA + 0x818}], 0x0000ffff
  mov dword ptr [{DATA + 0x81C}], 0x00cf9300
  mov eax, handler
  movzx ecx, ax
  or ecx, 0x80000
  mov [{DATA + 0x1000 + 0x50 * 8}], ecx
  and eax, 0xffff0000
  or eax, 0x8e00
  mov [{DATA + 0x1000 + 0x50 * 8 + 4}], eax
  mov eax, 0
  mov edx, 0x50
  call slot_event_bind
"""


def test_a_week_of_hourly_alarms_through_the_rom(monkeypatch: pytest.MonkeyPatch) -> None:
    """A patched guest sleeps from one absolute deadline to the next and looks at the clock each time."""
    monkeypatch.setattr(machine_module, "HEARTBEAT_NS", 30 * DAY * NS)  # nobody presses Ctrl-C
    ran = run_text(SETUP + SIMULATED, "vmi", patched=True, max_time_s=8 * DAY)
    assert ran.result.outcome is Outcome.EXITED, ran.result.detail
    assert ran.result.detail == "exit code 0"
    assert ran.dword(DATA + 16) == 24 * 7
    assert ran.result.guest_ns >= 7 * DAY * NS
