"""The local APIC as the CPU's instructions reach it: memory, MSRs, CR8, NMI; and which machines have one."""

from __future__ import annotations

import pytest

from tests.cpu.world import World

BOTH = pytest.mark.parametrize("width", [32, 64])
MASK_8259 = "mov al, 0xff; out 0x21, al; out 0xa1, al\n"
BASE = "mov ebx, 0xfee00000\n"
SELF_IPI = "mov dword ptr [ebx + 0x300], 0x40051\n"
X2APIC = "mov ecx, 0x1b; rdmsr; or eax, 0xc00; wrmsr\n"


@BOTH
def test_a_self_ipi_through_memory(width: int) -> None:
    base = BASE.replace("ebx", "rbx") if width == 64 else BASE
    send = SELF_IPI.replace("[ebx", "[rbx") if width == 64 else SELF_IPI
    code = base + send + "mov esi, [ebx + 0x220]; sti; nop; jmp here; here: nop; ud2"
    world = World(width, code.replace("[ebx", "[rbx") if width == 64 else code, own_page_tables=False).run()
    assert world.vector == 0x51
    assert world.machine.cpu.state.gpr[6] == 1 << 0x11
    assert world.machine.stats.exits["device_write"] == 1


@BOTH
def test_the_machine_says_that_it_has_an_apic(width: int) -> None:
    code = "mov eax, 1; cpuid; mov esi, edx; mov edi, ecx; mov ecx, 0x1b; rdmsr; mov ebp, eax; ud2"
    world = World(width, code).run()
    gpr = world.machine.cpu.state.gpr
    assert gpr[6] >> 9 & 1 and gpr[7] >> 21 & 1 and gpr[7] >> 24 & 1
    assert gpr[5] == 0xFEE00900


@BOTH
@pytest.mark.parametrize("way", ["0x83f, 0x51", "0x830, 0x40051"])
def test_x2apic_sends_to_itself(width: int, way: str) -> None:
    register, value = way.split(", ")
    send = f"mov ecx, {register}; mov eax, {value}; xor edx, edx; wrmsr"
    code = f"{X2APIC} {send}; sti; nop; jmp here; here: ud2"
    assert World(width, code).run().vector == 0x51


@BOTH
def test_x2apic_registers_fault_while_it_is_off(width: int) -> None:
    world = World(width, "mov ecx, 0x802; rdmsr; ud2").run()
    assert world.vector == 13
    assert world.frame(1)[0] == 0


@BOTH
def test_the_deadline_is_of_the_time_stamp_counter(width: int) -> None:
    code = f"""
        {X2APIC}
        mov ecx, 0x832; mov eax, 0x40051; xor edx, edx; wrmsr
        rdtsc; add eax, 2000000; adc edx, 0; mov ecx, 0x6e0; wrmsr
        sti; hlt; ud2
    """
    world = World(width, code).run()
    assert world.vector == 0x51
    assert 1_000_000 <= world.result.guest_ns <= 1_050_000


def test_cr8_holds_back_and_lets_in() -> None:
    world = World(
        64,
        f"""
        {X2APIC}
        mov eax, 5; mov cr8, rax
        mov ecx, 0x83f; mov eax, 0x51; xor edx, edx; wrmsr
        sti; nop; jmp on
    on: nop; mov rsi, cr8; mov ecx, 0x808; rdmsr; mov edi, eax
        mov eax, 4; mov cr8, rax; nop; jmp over
    over: ud2
        """,
    ).run()
    assert world.vector == 0x51
    assert world.machine.cpu.state.gpr[6] == 5
    assert world.machine.cpu.state.gpr[7] == 0x50


def test_reserved_bits_of_cr8_fault() -> None:
    assert World(64, "mov eax, 16; mov cr8, rax; ud2").run().vector == 13


@BOTH
def test_an_nmi_comes_with_interrupts_off_and_not_twice_before_iret(width: int) -> None:
    nmi = f"{X2APIC} mov ecx, 0x830; mov eax, 0x40400; xor edx, edx; wrmsr; jmp on; on: "
    iret = "iretq" if width == 64 else "iretd"
    again = "mov ecx, 0x830; mov eax, 0x40400; xor edx, edx; wrmsr; jmp in_it; in_it: "
    handler = f"inc ebp; cmp ebp, 1; jne second; {again} mov esi, ebp; second: {iret}"
    world = World(width, f"xor ebp, ebp; {nmi} nop; jmp off; off: nop; ud2", stubs={2: handler}).run()
    gpr = world.machine.cpu.state.gpr
    assert (world.vector, gpr[6], world.machine.stats.interrupts[2]) == (6, 1, gpr[5])
    assert gpr[5] in (1, 2)


@BOTH
def test_user_code_reaches_no_apic_register(width: int) -> None:
    world = World(width, "", user="mov ecx, 0x1b; rdmsr; ud2").run()
    assert world.vector == 13
