"""Every call with wild arguments: the defined behaviour, and nothing outside the guest's own memory."""

from __future__ import annotations

import pytest

from runtime.backends.vmi.backend import VmiHypervisor
from runtime.backends.vmi.interface import VmiCall, interface
from runtime.backends.vmi.model import VmiModel
from runtime.backends.vmi.rom import GDT_ENTRIES, HOST_DATA, PAGE
from runtime.outcome import Outcome
from tests.backends.images import Ran
from tests.vmi.guest import RESULTS, UNMAPPED, run_after_init

ALL = sorted(interface().calls.values(), key=lambda call: call.number)
BY_NAME = pytest.mark.parametrize("call", ALL, ids=lambda call: f"{call.number}-{call.name}")
WILD = -1
OPEN_BUS = 1 << 32
WILD_VALUES = (
    0, 0xFFFF_FFFF, 0x7FFF_FFFF, 0x8000_0000, UNMAPPED, 0x0100_0000, 0xFC00_0000, 0xFC01_0000, 0xFFC0_0000,
)  # fmt: skip
ENDS = {
    Outcome.EXITED, Outcome.POWERED_OFF, Outcome.REBOOTED,
    Outcome.CRASHED, Outcome.HALTED, Outcome.TIME_LIMIT,
}  # fmt: skip
FAULTING = {
    "WriteGDTEntry": {"eax": UNMAPPED, "edx": 0},
    "WriteLDTEntry": {"eax": UNMAPPED, "edx": 0},
    "WriteIDTEntry": {"eax": UNMAPPED, "edx": 0},
    "SetCR4": {"eax": 0xFFFF_FFDF},  # PAE alone would leave the guest without page tables of its own
    "IRET": {"s2": 2},  # EFLAGS
}
"""Arguments other than all ones, where those would not be wrong in the way that counts."""
END = {
    "Reboot": Outcome.REBOOTED, "Shutdown": Outcome.POWERED_OFF, "Halt": Outcome.HALTED,
}  # fmt: skip


def with_arguments(call: VmiCall, values: dict[str, int], default: int) -> Ran:
    """One call with `default` in every register and stack word but those in `values`."""
    stack = "\n".join(f"  push {values.get(f's{n}', default)}" for n in (2, 1, 0))
    registers = "\n".join(
        f"  mov {name}, {values.get(name, default)}" for name in ("eax", "edx", "ecx", "ebx", "esi", "edi")
    )
    way = "jmp" if call.relocation == "jump_rel" else "call"
    return run_after_init(
        f"guard(over)\n{stack}\n{registers}\n  mov ebp, CALL_{call.name}\n  {way} ebp\nover:\n"
    )


def model_of(ran: Ran) -> VmiModel:
    hypervisor = ran.machine.hypervisor
    assert isinstance(hypervisor, VmiHypervisor)
    return hypervisor.model


def check_the_hypervisor_is_whole(ran: Ran) -> None:
    """Its code, the real GDT and the shadow tables are as they may be."""
    model, memory = model_of(ran), ran.machine.memory.whole
    top = interface().virtual_top
    text = model.shadow.host_physical(top + PAGE)
    gdt = ran.machine.cpu.state.gdt
    place = model.shadow.host_physical(gdt.base)
    assert text is not None and place is not None
    assert memory.load(text, len(model.text.code)) == model.text.code
    assert gdt.limit == GDT_ENTRIES * 8 - 1
    table = memory.load(place, GDT_ENTRIES * 8)
    for index in range(GDT_ENTRIES):
        high = int.from_bytes(table[index * 8 + 4 : index * 8 + 8], "little")
        assert not high or (high & 0x1000 and high & 0x6000), f"descriptor {index} is {high:#x}"
    assert table[HOST_DATA & ~7 :] == b"\xff\xff\x00\x00\x00\xb3\xcf\x00"
    check_shadow(model)


def check_shadow(model: VmiModel) -> None:
    """Below the hole, every mapping is of the guest's memory or of the empty bus."""
    memory = model.machine.memory.whole
    for slot in range(interface().virtual_top >> 21):
        directory = memory.load_u64(model.shadow.pointer_table + (slot >> 9) * 8) & ~0xFFF
        entry = memory.load_u64(directory + (slot & 511) * 8)
        if not entry & 1:
            continue
        if entry & 0x80:
            assert (entry & 0xF_FFFF_FFE0_0000) + (1 << 21) <= model.guest.size
            continue
        for index in range(512):
            leaf = memory.load_u64((entry & 0xF_FFFF_FFFF_F000) + index * 8)
            frame = leaf & 0xF_FFFF_FFFF_F000
            assert not leaf & 1 or frame < model.guest.size or frame >= OPEN_BUS


@BY_NAME
def test_the_defined_behaviour(call: VmiCall) -> None:
    ran = with_arguments(call, FAULTING.get(call.name, {}), WILD)
    outcome, detail = ran.result.outcome, ran.result.detail
    check_the_hypervisor_is_whole(ran)
    if call.name in END:
        assert outcome is END[call.name], detail
    elif call.bad == "killed":
        assert outcome is Outcome.CRASHED
        assert detail.startswith("vmi killed the guest: ")
    else:
        assert outcome is Outcome.EXITED, detail
        assert ran.dword(RESULTS) == (1 if call.bad == "fault" else 0)


@BY_NAME
@pytest.mark.parametrize("value", WILD_VALUES, ids=hex)
def test_nothing_leaves_the_guest(call: VmiCall, value: int) -> None:
    ran = with_arguments(call, {}, value)
    assert ran.result.outcome in ENDS
    if ran.result.outcome is Outcome.CRASHED:
        assert "vmi killed the guest" in ran.result.detail or "triple fault" in ran.result.detail
    check_the_hypervisor_is_whole(ran)


@pytest.mark.parametrize("number", [74, 75, 0x7FFF_FFFF, 0xFFFF_FFFF])
def test_a_number_that_does_not_exist_keeps_its_native_code(number: int) -> None:
    rom = interface().rom_physical
    ask = f"mov eax, {number}\n mov ebx, {rom + 0x88}\n call ebx\n"
    ran = run_after_init(f"{ask} mov [{RESULTS + 16}], eax\n mov [{RESULTS + 20}], edx\n")
    assert (ran.dword(RESULTS + 16), ran.dword(RESULTS + 20)) == (0, 0)


@pytest.mark.parametrize("call", ALL, ids=lambda call: call.name)
def test_a_stack_that_is_not_there_ends_only_the_guest(call: VmiCall) -> None:
    ran = run_after_init(f"guard(over)\n mov esp, {UNMAPPED}\n mov eax, CALL_{call.name}\n jmp eax\nover:\n")
    assert ran.result.outcome in ENDS
    check_the_hypervisor_is_whole(ran)


@pytest.mark.parametrize("offset", [0, 0x1000, 0x10000, 0x20000, 0x30000])
def test_the_hole_cannot_be_written_but_for_the_shared_page(offset: int) -> None:
    place = interface().virtual_top + offset
    ran = run_after_init(f"guard(over)\n mov dword ptr [{place}], 0x12345678\nover:\n")
    assert ran.dword(RESULTS) == (1 if offset else 0)
    check_shadow(model_of(ran))


def test_the_hypercall_works_only_in_the_rom() -> None:
    ran = run_after_init("guard(over)\n .byte 0x0f, 0x01, 0xc1\nover:\n")
    assert ran.result.outcome is Outcome.EXITED
    assert ran.dword(RESULTS) == 1


def test_user_code_cannot_call_the_rom() -> None:
    user = "  push 0x23\n  push 0x110000\n  push 0x202\n  push 0x1b\n  push user\n"
    enter = "  mov dword ptr [0x300000], 0x87\n  mov ebp, CALL_IRET\n  jmp ebp\n"
    ran = run_after_init(f"guard(over)\n{user}{enter}user:\n  mov eax, CALL_Reboot\n  jmp eax\nover:\n")
    assert ran.result.outcome in {Outcome.EXITED, Outcome.CRASHED}, ran.result.detail
    check_the_hypervisor_is_whole(ran)
