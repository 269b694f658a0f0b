"""What Linux 2.6.21 to 2.6.36 rely on beneath the calls: ranges without memory, instructions left native."""

from __future__ import annotations

from runtime.outcome import Outcome
from tests.backends.images import Ran
from tests.vmi.guest import RESULTS, run_after_init

HERE = RESULTS + 0x10
MAXMEM_PAGES = 0x339FE
"""MAXMEM_PFN of Linux with PAGE_OFFSET 0xC0000000: its low memory at the most, whatever the machine has."""


def words(ran: Ran, count: int) -> list[int]:
    assert ran.result.outcome is Outcome.EXITED, ran.result.detail
    return [ran.dword(HERE + 4 * index) for index in range(count)]


def test_a_linear_mapping_may_reach_beyond_memory() -> None:
    """An entry that lies in memory is found by it, although nothing maps the address."""
    ran = run_after_init(
        f"""
        push 0
        mov ecx, {MAXMEM_PAGES}
        mov edx, 0xC0000000
        mov eax, 0
        mov ebx, CALL_SetLinearMapping
        call ebx
        lea esp, [esp+4]
        mov ecx, 1
        mov edx, 0xC0700000
        mov eax, 0x12345067
        mov ebx, CALL_SetPxE
        call ebx
        mov eax, [0x700000]
        mov [{HERE}], eax
        guard(over)
        mov ecx, 1
        mov edx, 0xE0000000
        mov ebx, CALL_SetPxE
        call ebx
        over:
        mov eax, [{RESULTS}]
        mov [{HERE + 4}], eax
        """
    )
    entry, traps = words(ran, 2)
    assert entry == 0x12345067
    assert traps == 1, "behind the memory an address is what the guest's tables say: not mapped"


def test_model_specific_registers_by_instruction_and_by_call() -> None:
    ran = run_after_init(
        f"""
        guard(over)
        mov ecx, 0x175
        mov eax, 0x11223344
        mov edx, 0
        wrmsr
        mov eax, 0
        rdmsr
        mov [{HERE}], eax
        mov ebx, CALL_RDMSR
        call ebx
        mov [{HERE + 4}], eax
        mov ecx, 0xC0000080
        rdmsr
        mov [{HERE + 8}], eax
        mov ecx, 0
        mov eax, 1
        mov edx, 1
        rdpmc
        mov [{HERE + 12}], eax
        mov [{HERE + 16}], edx
        over:
        mov eax, [{RESULTS}]
        mov [{HERE + 20}], eax
        """
    )
    assert words(ran, 6) == [0x11223344, 0x11223344, 0, 0, 0, 0]


def test_registers_of_the_processor_by_instruction() -> None:
    ran = run_after_init(
        f"""
        guard(over)
        mov eax, cr3
        mov [{HERE}], eax
        mov eax, 0x1000
        mov dr0, eax
        mov ebx, dr0
        mov [{HERE + 4}], ebx
        mov eax, cr0
        or eax, 8
        mov cr0, eax
        clts
        mov eax, cr0
        and eax, 8
        mov [{HERE + 8}], eax
        invlpg [0x1000]
        wbinvd
        mov eax, cr4
        mov cr4, eax
        over:
        mov eax, [{RESULTS}]
        mov [{HERE + 12}], eax
        """
    )
    assert words(ran, 4) == [0x300000, 0x1000, 0, 0]


def test_cpuid_promises_nothing_that_the_calls_do_not_carry_out() -> None:
    ask = "\n".join(
        f"mov eax, {leaf}\n mov ecx, 0\n {how}\n mov [{HERE + 4 * index}], {register}"
        for index, (leaf, how, register) in enumerate(
            [
                (1, "cpuid", "ecx"),
                (0x80000001, "cpuid", "edx"),
                (13, "cpuid", "eax"),
                (1, "mov ebx, CALL_CPUID\n call ebx", "ecx"),
                (0x80000001, "mov ebx, CALL_CPUID\n call ebx", "edx"),
                (13, "mov ebx, CALL_CPUID\n call ebx", "eax"),
            ]
        )
    )
    features, extended, state, *by_call = words(run_after_init(ask), 6)
    assert not features & (1 << 26 | 1 << 27), "XSAVE would lead to XSETBV"
    assert not extended & 1 << 20, "NX would lead to EFER"
    assert state == 0
    assert by_call == [features, extended, state]
