"""KVM as its own guests see it: leaves, MSRs and hypercalls; what is not offered does not work."""

from __future__ import annotations

import pytest

from pvpatch.abi.spec import load_spec
from runtime.backends.kvm.interface import interface
from runtime.outcome import Outcome
from tests.backends.images import CODE, DATA, Ran, run_text

RAX, RCX, RDX, RBX = 0, 1, 2, 3
HALT = "cli\nhlt\n"
BOTH = pytest.mark.parametrize("width", [32, 64])
TRAPS = f"""
lea esp, [{CODE - 0x1000}]
mov word ptr [DATA+0x800], 0x7ff
mov dword ptr [DATA+0x802], DATA
lea eax, [on_fault]
mov edx, eax
and eax, 0xffff
and edx, 0xffff0000
or edx, 0x8e00
mov ecx, cs
shl ecx, 16
or eax, ecx
mov [DATA+13*8], eax
mov [DATA+13*8+4], edx
lidt [DATA+0x800]
jmp over
on_fault: mov ebx, 0x6b
cli
hlt
over:
"""
"""i386: a #GP sets EBX to 0x6b and halts. (The flat GDT of the loader stays in force.)"""


def run(text: str, width: int = 32) -> Ran:
    return run_text(text + HALT, "kvm", width=width)


def signed(value: int, width: int) -> int:
    value &= (1 << width) - 1
    return value - (1 << width) if value >> (width - 1) else value


def errno(name: str) -> int:
    return -interface().errors[name]


# -- leaves --------------------------------------------------------------------------------------


@BOTH
def test_signature(width: int) -> None:
    ran = run("mov eax, 0x40000000\ncpuid\n", width)
    text = b"".join(ran.register(index).to_bytes(8, "little")[:4] for index in (RBX, RCX, RDX))
    assert text == b"KVMKVMKVM\0\0\0"
    assert ran.register(RAX) == 0x4000_0001


def test_features_are_those_offered() -> None:
    ran = run("mov eax, 0x40000001\ncpuid\n")
    assert ran.register(RAX) == interface().feature_word
    assert ran.register(RAX) & 0b1001 == 0b1001, "both clock sources"
    for absent in (2, 4, 6, 7, 9, 11, 13):
        assert not ran.register(RAX) >> absent & 1


def test_leaf_1_says_that_there_is_a_hypervisor() -> None:
    assert run("mov eax, 1\ncpuid\n").register(RCX) >> 31 & 1


# -- hypercalls ----------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("instruction", ["vmcall", "vmmcall"])
def test_both_instructions_work(width: int, instruction: str) -> None:
    ran = run(f"mov eax, 1\n{instruction}\nmov ebx, 7\n", width)
    assert ran.register(RAX) == 0
    assert ran.register(RBX) == 7


@BOTH
@pytest.mark.parametrize("number", [0, *range(2, 9), 10, 11, 12, 13, 0x7FFFFFFF])
def test_what_is_not_offered_is_enosys(width: int, number: int) -> None:
    wild = "mov ebx, 0xfffff000\nmov ecx, 0xfffff000\nmov edx, 1\nmov esi, 1\n"
    ran = run(f"mov eax, {number}\n{wild}vmcall\n", width)
    assert signed(ran.register(RAX), width) == errno("ENOSYS")


@BOTH
def test_clock_pairing(width: int) -> None:
    ran = run("mov eax, 9\nmov ebx, DATA\nmov ecx, 0\nvmcall\n", width)
    assert ran.register(RAX) == 0
    assert ran.machine.memory.load_u64(DATA) >= 1_700_000_000
    assert ran.machine.memory.load_u64(DATA + 8) < 1_000_000_000


def test_clock_pairing_of_another_clock() -> None:
    ran = run("mov eax, 9\nmov ebx, DATA\nmov ecx, 1\nvmcall\n")
    assert signed(ran.register(RAX), 32) == errno("EOPNOTSUPP")


@BOTH
@pytest.mark.parametrize("address", [0xFFFF_F000, (16 << 20) - 8, 0x7FFF_FFFF])
def test_clock_pairing_with_a_wild_pointer(width: int, address: int) -> None:
    ran = run(f"mov eax, 9\nmov ebx, {address}\nmov ecx, 0\nvmcall\n", width)
    assert signed(ran.register(RAX), width) == errno("EFAULT")
    assert ran.result.outcome is Outcome.HALTED


# -- registers -----------------------------------------------------------------------------------


def write(index: int, low: int, high: int = 0) -> str:
    return f"mov ecx, {index}\nmov eax, {low}\nmov edx, {high}\nwrmsr\n"


def read(index: int) -> str:
    return f"mov ecx, {index}\nrdmsr\n"


@BOTH
@pytest.mark.parametrize("index", [0x12, 0x4B56_4D01])
def test_system_time(width: int, index: int) -> None:
    ran = run(write(index, DATA + 1) + read(0x4B56_4D01), width)
    memory = ran.machine.memory
    assert ran.register(RAX) == DATA + 1, "old and new number are one register"
    assert memory.load_u32(DATA) == 2
    timestamp, now = memory.load_u64(DATA + 8), memory.load_u64(DATA + 16)
    assert timestamp * memory.load_u32(DATA + 24) >> 32 == now
    assert memory.load(DATA + 28, 2) == b"\x00\x01"


@BOTH
@pytest.mark.parametrize("index", [0x11, 0x4B56_4D00])
def test_wall_clock(width: int, index: int) -> None:
    ran = run(write(index, DATA), width)
    assert ran.dword(DATA) == 2
    assert ran.dword(DATA + 4) >= 1_700_000_000


def test_disabled_system_time_writes_nothing() -> None:
    assert run(write(0x4B56_4D01, DATA)).machine.memory.load(DATA, 32) == bytes(32)


@pytest.mark.parametrize("index", [0x11, 0x12, 0x4B56_4D00, 0x4B56_4D01])
@pytest.mark.parametrize("address", [0xFFFF_F001, (16 << 20) - 3, 0x7FFF_FFFD])
def test_wild_clock_pages_are_ignored(index: int, address: int) -> None:
    ran = run(write(index, address, 0xFFFF_FFFF) + "mov ebx, 9\n")
    assert ran.result.outcome is Outcome.HALTED
    assert ran.register(RBX) == 9


def test_steal_time() -> None:
    ran = run(write(0x4B56_4D03, DATA + 1) + read(0x4B56_4D03))
    assert ran.register(RAX) == DATA + 1
    assert ran.machine.memory.load_u64(DATA) == 0
    assert ran.dword(DATA + 8) == 2


@pytest.mark.parametrize("low", [DATA + 3, DATA + 0x21, 0xFFFF_F001])
def test_bad_steal_time_faults(low: int) -> None:
    ran = run(TRAPS + write(0x4B56_4D03, low))
    assert ran.register(RBX) == 0x6B


@pytest.mark.parametrize("index", [0x4B56_4D02, *range(0x4B56_4D04, 0x4B56_4D0A), 0x4B56_4DFF])
def test_registers_that_are_not_offered_fault(index: int) -> None:
    assert run(TRAPS + write(index, DATA + 1)).register(RBX) == 0x6B
    assert run(TRAPS + read(index)).register(RBX) == 0x6B


def test_other_registers_go_to_the_cpu() -> None:
    ran = run(write(0x174, 0x1234) + read(0x174))
    assert ran.register(RAX) == 0x1234


def test_user_mode_gets_eperm() -> None:
    """Classical KVM refuses hypercalls from user mode."""
    text = f"""
    mov dword ptr [DATA+0x908], 0xffff
    mov dword ptr [DATA+0x90c], 0x00cffa00
    mov dword ptr [DATA+0x910], 0xffff
    mov dword ptr [DATA+0x914], 0x00cff200
    mov word ptr [DATA+0x800], 0x17
    mov dword ptr [DATA+0x802], DATA+0x900
    lgdt [DATA+0x800]
    push 0x13
    push {CODE - 0x2000}
    push 2
    push 0x0b
    lea eax, [user]
    push eax
    iretd
    user: mov eax, 1
    vmcall
    mov ebx, eax
    ud2
    """
    ran = run(f"mov esp, {CODE - 0x1000}\n" + text)
    assert signed(ran.register(RBX), 32) == errno("EPERM")


# -- slots ---------------------------------------------------------------------------------------


@BOTH
def test_clock_slots(width: int) -> None:
    """Two readings of the clock and one of the wall clock, the first one with the only exit."""
    stack = "mov esp, DATA+0x3000\n"
    text = stack + "call slot_clock_ns\nmov esi, eax\ncall slot_clock_ns\nmov edi, eax\n"
    text += "call slot_wallclock_ns\n"
    ran = run_text(text + HALT, "kvm", width=width, patched=True)
    first, second = ran.register(6), ran.register(7)
    wall = ran.register(RAX) if width == 64 else ran.register(RDX) << 32 | ran.register(RAX)
    assert 0 < first < second < ran.result.guest_ns
    assert 1_700_000_000 * 10**9 < wall < 1_800_000_000 * 10**9
    assert ran.result.stats["exits"]["msr_write"] == 2


@BOTH
def test_stolen_slot(width: int) -> None:
    text = "mov esp, DATA+0x3000\nmov eax, 5\nmov edx, 5\nstc\ncall slot_stolen_ns\nsetc bl\n"
    ran = run_text(text + HALT, "kvm", width=width, patched=True)
    assert ran.register(RAX) == 0
    assert ran.register(RBX) & 0xFF == 1, "flags are kept"
    assert ran.result.stats["exits"]["msr_write"] == 1


@BOTH
def test_query_names_the_backend(width: int) -> None:
    text = "mov esp, DATA+0x3000\nmov eax, 0\ncall slot_abi_query\n"
    ran = run_text(text + HALT, "kvm", width=width, patched=True)
    assert ran.register(RAX) == load_spec().version
    assert ran.register(RDX) == 1
