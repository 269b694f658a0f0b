"""Guests of lguest as their kernels were built: calls by VMCALL (Linux 2.6.31 to 3.0), three-level tables."""

from __future__ import annotations

import pytest

from runtime.backends.lguest.interface import interface
from runtime.outcome import Outcome
from tests.backends.images import CODE, DATA, Ran, run_text, words
from tests.backends.test_lguest_model import INIT, SHARED, call, killed, shared_page

HIGH = 0xC000_0000
VMCALL = ".byte 0x0f, 0x01, 0xc1\n"


def vmcall(name: str, *arguments: int | str) -> str:
    return call(name, *arguments).replace("int 0x1f\n", VMCALL)


STACK = f"mov esp, {CODE - 0x1000}\n"
OLD_INIT = STACK + vmcall("lguest_init", SHARED)
OLD_END = vmcall("shutdown", 0x1000, 1)


def run_old(text: str) -> Ran:
    return run_text(OLD_INIT + text + OLD_END, "lguest", data=shared_page().ljust(0x574, b"\0"))


def test_the_older_layout_has_one_field_more() -> None:
    """struct lguest_data of Linux 2.6.32."""
    known = interface().for_vmcall()
    assert known.data_size == 0x574
    expected = {
        "tsc_khz": 0x55C, "pgdir": 0x560, "noirq_start": 0x564, "noirq_end": 0x568,
        "kernel_address": 0x56C, "syscall_vec": 0x570,
    }  # fmt: skip
    assert {name: known.offset(name) for name in expected} == expected


def test_vmcall_is_a_call_and_is_overwritten() -> None:
    ran = run_old("")
    assert ran.result.outcome is Outcome.POWERED_OFF, ran.result.detail
    code = ran.machine.memory.load(CODE, 0x80)
    assert interface().vmcall not in code
    assert code.count(b"\xcd\x1f\x90") == 2
    assert ran.dword(SHARED + 0x560) >= ran.machine.memory.size, "pgdir: the table that the host made"


def test_the_host_starts_a_guest_with_its_memory_mapped_high() -> None:
    ran = run_old(
        f"""
        mov eax, 0x12345678
        mov [{HIGH + DATA + 0x1000}], eax
        lea eax, [above]
        add eax, {HIGH}
        jmp eax
        above:
        """
    )
    assert ran.result.outcome is Outcome.POWERED_OFF, ran.result.detail
    assert ran.dword(DATA + 0x1000) == 0x12345678


def test_vmcall_of_user_mode_is_an_invalid_opcode() -> None:
    text = f"""
    push 0x7b
    push {CODE - 0x2000}
    push 0x202
    push 0x73
    lea eax, [user]
    push eax
    iretd
    user: {VMCALL}
    """
    gdt = call("load_gdt_entry", 14, 0xFFFF, 0x00CFFA00) + call("load_gdt_entry", 15, 0xFFFF, 0x00CFF200)
    killed(run_text(INIT + gdt + text, "lguest", data=shared_page()), "unhandled trap 6")


def test_a_guest_older_than_the_interface_is_told_so() -> None:
    text = f"mov edx, {SHARED}\nmov ebx, 0\nmov eax, 1\nint 0x1f\n"
    killed(run_text(STACK + text, "lguest", data=shared_page()), "Linux before 2.6.31")


POINTERS, DIRECTORY = 0x30_0000, 0x30_1000
TABLES = {
    "three-level": [
        (POINTERS, DIRECTORY | 1),
        (POINTERS + 4, 0),
        (DIRECTORY, 0xE7),
        (DIRECTORY + 8, 0x2000E7),
    ],
    "two-level": [(POINTERS, 0xE7), (POINTERS + 4, 0x4000E7), (POINTERS + 8, 0x8000E7)],
}


@pytest.mark.parametrize("tables", TABLES)
def test_the_format_of_the_page_tables_is_the_guests_build(tables: str) -> None:
    """CR4 is never written."""
    stores = "".join(f"mov dword ptr [{at}], {value}\n" for at, value in TABLES[tables])
    ran = run_text(
        INIT + stores + call("new_pgtable", POINTERS) + f"mov dword ptr [{DATA + 0x1000}], 0x77\n"
        + call("set_pmd", DIRECTORY, 1) * (tables == "three-level")
        + call("shutdown", 0x1000, 1),
        "lguest",
        data=shared_page(kernel_address=HIGH),
    )  # fmt: skip
    assert ran.result.outcome is Outcome.POWERED_OFF, ran.result.detail
    assert ran.machine.memory.load(DATA + 0x1000, 4) == words(0x77)
