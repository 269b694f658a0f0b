"""VMI_Init and GetReloc before there is privilege 1: refused states change nothing."""

from __future__ import annotations

import pytest

from runtime.backends.vmi.interface import interface
from runtime.backends.vmi.rom import rom_text
from runtime.outcome import Outcome
from tests.backends.images import CODE, DATA, Ran, descriptors, run_text
from tests.vmi.guest import RESULTS, run_after_init

INIT = interface().rom_physical + interface().header["vmi_init"][0]
RELOC = interface().rom_physical + interface().header["get_reloc"][0]
SIGNATURE = "\nfinish:\n mov al, 0\n out 0xf4, al\n jmp finish\n .long 0x696d5663\n"
GDT = descriptors([0, 0x00CF9B00_0000FFFF, 0x00CF9300_0000FFFF, 0x00CF9310_0000FFFF]).ljust(0x40, b"\0")
SEGMENTS = "mov eax, 16\n mov ds, eax\n mov es, eax\n mov ss, eax\n"
LOAD_GDT = f"lgdt [{DATA + 0x40}]\n ljmp 8, flat\nflat:\n {SEGMENTS}"
PAGING = f"""
  mov dword ptr [{DATA + 0x1000}], 0x87
  mov eax, {DATA + 0x1000}
  mov cr3, eax
  mov eax, 0x10
  mov cr4, eax
  mov eax, cr0
  or eax, 0x80000000
  mov cr0, eax
"""
CALL = f"mov eax, {INIT}\n call eax\n mov [{DATA + 0x80}], eax\n mov eax, cs\n mov [{DATA + 0x84}], eax\n"


def run(text: str, gdt_at: int = DATA) -> Ran:
    data = GDT + (31).to_bytes(2, "little") + gdt_at.to_bytes(4, "little")
    return run_text(f"mov esp, {CODE + 0x80000}\n{text}{SIGNATURE}", "vmi", data=data)


@pytest.mark.parametrize(
    ("name", "before"),
    [
        ("paging off", LOAD_GDT),
        ("a stack with a base", f"{LOAD_GDT}{PAGING} mov eax, 24\n mov ss, eax\n sub esp, 0x100000\n"),
    ],
)
def test_a_state_that_is_not_right_is_refused(name: str, before: str) -> None:
    ran = run(before + CALL)
    assert ran.result.outcome is Outcome.EXITED, ran.result.detail
    assert ran.dword(DATA + 0x80) != 0, name
    assert ran.dword(DATA + 0x84) == 8, "as before"


def test_the_kernel_goes_on_at_privilege_1() -> None:
    ran = run(LOAD_GDT + PAGING + CALL)
    assert (ran.dword(DATA + 0x80), ran.dword(DATA + 0x84)) == (0, 9)
    assert ran.result.stats["missed"] == 2, "OUT and MOV from CS, of this test itself"


def test_relocations_are_the_same_before_and_after() -> None:
    ask = f"mov eax, 30\n mov ebx, {RELOC}\n call ebx\n mov [{{at}}], eax\n mov [{{at}}+4], edx\n"
    before = run(ask.format(at=DATA + 0x90))
    after = run_after_init(ask.format(at=RESULTS + 16))
    expected = [rom_text().entries[30], interface().relocations["call_rel"]]
    assert [before.dword(DATA + 0x90), before.dword(DATA + 0x94)] == expected
    assert [after.dword(RESULTS + 16), after.dword(RESULTS + 20)] == expected


def test_tables_that_are_not_mapped_end_the_guest() -> None:
    ran = run(f"{LOAD_GDT}{PAGING} mov dword ptr [{DATA + 0x42}], 0x40000000\n lgdt [{DATA + 0x40}]\n{CALL}")
    assert ran.result.outcome is Outcome.CRASHED
    assert "VMI_Init" in ran.result.detail


def test_a_kernel_whose_code_segment_is_not_in_its_table_is_killed() -> None:
    ran = run(f"{LOAD_GDT}{PAGING} mov word ptr [{DATA + 0x40}], 7\n lgdt [{DATA + 0x40}]\n{CALL}")
    assert ran.result.outcome is Outcome.CRASHED
    assert "vmi killed the guest: its code segment" in ran.result.detail
