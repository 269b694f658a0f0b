"""Frames, stacks, error codes and flags of every way an event can reach a handler."""

from __future__ import annotations

import pytest

from runtime.outcome import Outcome
from tests.cpu.world import (
    ABSENT,
    CODE1,
    GDT,
    IST_STACK,
    KCODE,
    KDATA,
    KERNEL_STACK,
    PAGED,
    STUB_SIZE,
    STUBS,
    TSS2,
    TSS2_SEL,
    TSS_STACK,
    UCODE,
    UDATA,
    USER_CODE,
    USER_STACK,
    World,
    gate,
)

BOTH = pytest.mark.parametrize("width", [32, 64])
RF = 0x10000


def kernel_frame(world: World, words: int) -> list[int]:
    """Frame words above an optional error code, with SS and SP cut off where 32-bit has none."""
    return world.frame(words)


@BOTH
def test_software_interrupt_at_level_0_points_after_the_instruction(width: int) -> None:
    world = World(width, "nop; int 0x30").run()
    assert world.vector == 0x30
    after = world.code_at(b"\x90\xcd\x30") + 3
    if width == 64:
        assert world.frame(5) == [after, KCODE, 2, KERNEL_STACK, KDATA]
    else:
        assert world.frame(3) == [after, KCODE, 2]
        assert world.stack_pointer == KERNEL_STACK - 12


@BOTH
def test_int3_is_a_trap_and_ud2_a_fault(width: int) -> None:
    world = World(width, "nop; int3").run()
    assert (world.vector, world.frame(1)[0]) == (3, world.code_at(b"\x90\xcc") + 2)
    assert not world.frame(3)[2] & RF
    world = World(width, "nop; ud2").run()
    assert (world.vector, world.frame(1)[0]) == (6, world.code_at(b"\x90\x0f\x0b") + 1)
    assert world.frame(3)[2] & RF


@BOTH
@pytest.mark.parametrize(
    ("text", "vector"),
    [("xor ecx, ecx; xor edx, edx; div ecx", 0), ("push 0x102; popf; nop; nop", 1)],
)
def test_faults_without_error_code(width: int, text: str, vector: int) -> None:
    pop = "popfq" if width == 64 else "popfd"
    world = World(width, text.replace("popf", pop)).run()
    assert world.vector == vector
    assert world.frame(2)[1] == KCODE


@BOTH
def test_single_step_traps_after_the_next_instruction(width: int) -> None:
    pop = "popfq" if width == 64 else "popfd"
    world = World(width, f"push 0x102; {pop}; nop; nop; nop").run()
    assert world.vector == 1
    assert world.frame(1)[0] == world.code_at(b"\x9d\x90\x90\x90") + 2
    assert world.frame(3)[2] & 0x100, "the frame keeps TF"
    assert not world.handler_flags & 0x100, "the handler runs without it"


@BOTH
def test_general_protection_has_the_selector_as_error_code(width: int) -> None:
    world = World(width, "nop; mov eax, 0x300; mov ds, eax").run()
    assert world.vector == 13
    assert world.frame(3)[:3] == [0x300, world.code_at(b"\xb8\x00\x03") + 5, KCODE]


@BOTH
def test_interrupt_gate_clears_if_and_trap_gate_keeps_it(width: int) -> None:
    for kind, kept in ((0xE, False), (0xF, True)):
        gates = {0x31: gate(width, KCODE, STUBS + 0x31 * STUB_SIZE, kind)}
        mask = "mov al, 0xff; out 0x21, al; out 0xa1, al; sti; nop; int 0x31"
        world = World(width, mask, gates=gates).run()
        assert world.vector == 0x31
        assert bool(world.handler_flags & 0x200) is kept
        assert world.frame(3)[2] & 0x200


@BOTH
def test_privilege_change_takes_the_stack_of_the_tss(width: int) -> None:
    world = World(width, "", user="nop; ud2").run()
    assert world.vector == 6
    assert world.frame(5) == [USER_CODE + 1, UCODE, 2 | RF, USER_STACK, UDATA]
    assert world.stack_pointer == TSS_STACK - 5 * width // 8
    assert world.machine.cpu.cpl == 0
    assert world.machine.cpu.state.segments[2].selector == (0 if width == 64 else KDATA)


@BOTH
def test_error_code_below_the_privilege_change_frame(width: int) -> None:
    world = World(width, "", user="nop; hlt").run()
    assert world.vector == 13
    assert world.frame(6) == [0, USER_CODE + 1, UCODE, 2 | RF, USER_STACK, UDATA]


@BOTH
def test_int_n_from_user_needs_the_gates_permission(width: int) -> None:
    world = World(width, "", user="nop; int 0x80").run()
    assert world.vector == 13
    assert world.frame(2) == [0x80 * 8 + 2, USER_CODE + 1]
    allowed = {0x80: gate(width, KCODE, STUBS + 0x80 * STUB_SIZE, dpl=3)}
    world = World(width, "", user="nop; int 0x80", gates=allowed).run()
    assert world.vector == 0x80
    assert world.frame(2) == [USER_CODE + 3, UCODE]


@BOTH
def test_absent_and_malformed_gates(width: int) -> None:
    for bad, expected, error in (
        (gate(width, KCODE, STUBS, present=False), 11, 0x40 * 8 + 2),
        (gate(width, KCODE, STUBS, kind=0xC), 13, 0x40 * 8 + 2),
        (gate(width, 0, STUBS), 13, 0),
        (gate(width, ABSENT, STUBS), 11, ABSENT),
        (gate(width, KDATA, STUBS), 13, KDATA),
    ):
        world = World(width, "nop; int 0x40", gates={0x40: bad}).run()
        assert (world.vector, world.frame(1)[0]) == (expected, error)
        assert world.frame(2)[1] == world.code_at(b"\x90\xcd\x40") + 1


@BOTH
def test_hardware_faults_set_ext_when_their_gate_is_bad(width: int) -> None:
    world = World(width, "nop; ud2", gates={6: gate(width, KCODE, STUBS, present=False)}).run()
    assert (world.vector, world.frame(1)[0]) == (11, 6 * 8 + 2 + 1)


def test_ist_stack_is_used_even_without_a_privilege_change() -> None:
    gates = {6: gate(64, KCODE, STUBS + 6 * STUB_SIZE, ist=1)}
    world = World(64, "ud2", gates=gates).run()
    assert world.vector == 6
    assert world.stack_pointer == IST_STACK - 40
    assert world.frame(5)[3] == KERNEL_STACK


def test_long_mode_aligns_the_frame() -> None:
    world = World(64, "sub rsp, 3; int 0x30").run()
    assert world.stack_pointer == ((KERNEL_STACK - 3) & ~15) - 40
    assert world.frame(5)[3] == KERNEL_STACK - 3


def test_ring_1_is_a_level_of_its_own() -> None:
    code = f"push {CODE1 + 8 | 1}; push {USER_STACK}; push 2; push {CODE1 | 1}; push {USER_CODE}; iretd"
    world = World(32, code, user="nop; cli").run()
    assert world.vector == 13
    assert world.frame(6) == [0, USER_CODE + 1, CODE1 | 1, 2 | RF, USER_STACK, CODE1 + 8 | 1]


def test_16_bit_gates_push_words() -> None:
    gates = {0x30: gate(32, KCODE, 0x8000, kind=0x6)}
    world = World(32, "mov byte ptr [0x8000], 0xf4; int 0x30", gates=gates).run()
    state = world.machine.cpu.state
    assert state.rip == 0x8001
    raw = world.machine.memory.load(state.gpr[4], 6)
    assert raw[2:4] == KCODE.to_bytes(2, "little")
    assert state.gpr[4] == KERNEL_STACK - 6


def test_task_gate_switches_and_links_back() -> None:
    handler = STUBS + 6 * STUB_SIZE
    gates = {6: gate(32, TSS2_SEL, 0, kind=5)}
    setup = "".join(
        f"mov dword ptr [{TSS2 + offset}], {value}\n"
        for offset, value in (
            (0x20, handler), (0x24, 2), (0x38, 0x155000),
            (0x48, KDATA), (0x4C, KCODE), (0x50, KDATA), (0x54, KDATA), (0x58, 0), (0x5C, 0),
        )
    )  # fmt: skip
    world = World(32, setup + "ud2", gates=gates).run()
    assert world.vector == 6
    assert world.stack_pointer == 0x155000
    assert world.machine.memory.load_u32(TSS2) == 0x28
    assert world.handler_flags & 0x4000, "NT is set"
    assert world.machine.memory.load(GDT + TSS2_SEL + 5, 1)[0] & 2, "the new task is busy"


@BOTH
@pytest.mark.parametrize(
    ("entry", "user", "text", "error"),
    [
        (0, False, "mov eax, [{page}]", 0),
        (0, False, "mov [{page}], eax", 2),
        (0, True, "mov eax, [{page}]", 4),
        (0, True, "mov [{page}], eax", 6),
        (PAGED | 5, True, "mov [{page}], eax", 7),
        (PAGED | 5, False, "mov [{page}], eax", 3),
        (PAGED | 3, True, "mov eax, [{page}]", 5),
    ],
)
def test_page_faults_have_address_and_error_code(
    width: int, entry: int, user: bool, text: str, error: int
) -> None:
    body = text.replace("{page}", "rbx" if width == 64 else "ebx")
    # write protection for the supervisor needs CR0.WP, which 64-bit entry does not promise
    wp = "mov rax, cr0; or eax, 0x10000; mov cr0, rax;" if width == 64 else ""
    access = f"mov ebx, {PAGED + 4}; {body}"
    code = wp + ("" if user else access)
    world = World(width, code, user=access if user else "", paging=True, pages={0: entry}).run()
    assert world.vector == 14
    assert world.frame(1)[0] == error
    assert world.machine.cpu.state.cr[2] == PAGED + 4


@BOTH
def test_a_fault_while_delivering_a_benign_event_is_delivered_itself(width: int) -> None:
    pages = {0: 0}
    stack = "mov rsp" if width == 64 else "mov esp"
    gates = {14: gate(width, KCODE, STUBS + 14 * STUB_SIZE, ist=1)} if width == 64 else {}
    if width == 32:
        return  # without IST the page fault would meet the same bad stack: that is the double-fault case
    world = World(width, f"{stack}, {PAGED + 0x100}; int 0x30", paging=True, pages=pages, gates=gates).run()
    assert (world.vector, world.frame(1)[0]) == (14, 2)


def test_double_fault_on_ist_has_error_code_zero() -> None:
    gates = {8: gate(64, KCODE, STUBS + 8 * STUB_SIZE, ist=1)}
    world = World(64, f"mov rsp, {PAGED + 0x100}; ud2", pages={0: 0}, gates=gates).run()
    assert world.vector == 8
    assert world.frame(1)[0] == 0
    assert world.machine.cpu.state.cr[2] == PAGED + 0x100 - 40 - 8


def test_double_fault_through_a_task_gate() -> None:
    handler = STUBS + 8 * STUB_SIZE
    gates = {8: gate(32, TSS2_SEL, 0, kind=5), 13: gate(32, KCODE, STUBS, present=False)}
    setup = "".join(
        f"mov dword ptr [{TSS2 + offset}], {value}\n"
        for offset, value in (
            (0x20, handler), (0x24, 2), (0x38, 0x155000),
            (0x48, KDATA), (0x4C, KCODE), (0x50, KDATA), (0x54, KDATA), (0x58, 0), (0x5C, 0),
        )
    )  # fmt: skip
    world = World(32, setup + "mov eax, 0x300; mov ds, eax", gates=gates).run()
    assert world.vector == 8
    assert world.frame(1)[0] == 0, "a double fault pushes error code 0 on the new task's stack"


@BOTH
def test_triple_fault_ends_the_run_with_a_report(width: int) -> None:
    absent = gate(width, KCODE, STUBS, present=False)
    world = World(width, "nop; ud2", gates={6: absent, 8: absent, 11: absent}).run()
    assert world.result.outcome is Outcome.CRASHED
    assert world.result.exit_code == 4
    crash = world.result.crash
    assert crash is not None
    assert crash.registers["rip"] == world.code_at(b"\x90\x0f\x0b") + 1
    assert crash.code.startswith(b"\x0f\x0b")
    assert "triple fault" in crash.reason


def _descriptors_in_a_supervisor_page(width: int, user: str) -> World:
    """A world whose GDT was moved to a page that user code cannot read, and user code for it."""
    code = f"""
        mov esi, {GDT}
        mov edi, {PAGED}
        mov ecx, 24
        cld
        rep movsd
        mov ebx, {PAGED + 0x1000}
        mov word ptr [{{b}}], 95
        mov dword ptr [{{b}}+2], {PAGED}
        mov dword ptr [{{b}}+6], 0
        lgdt [{{b}}]
    """.replace("{b}", "rbx" if width == 64 else "ebx")
    return World(width, code, user=user, paging=True, pages={0: PAGED | 3}).run()


def _iret_to(width: int, label: str) -> str:
    """User code that returns to itself, as kernels at an outer level do to serialize."""
    if width == 32:
        return f"pushfd; push cs; mov ecx, {label}; push ecx; iretd; {label}:"
    return f"""
        mov rcx, rsp; push {UDATA}; push rcx; pushfq; push {UCODE}
        lea rcx, [rip + {label}]; push rcx; iretq; {label}:"""


@BOTH
@pytest.mark.parametrize("load", ["mov ds, eax", "lar ecx, eax", "verr ax", "push {word}; pop fs"])
def test_user_code_loads_descriptors_from_supervisor_pages(width: int, load: str) -> None:
    """The GDT lies in a page that user code cannot read; loading a selector reads it all the same."""
    word, pointer = ("rax", "rbx") if width == 64 else ("eax", "ebx")
    load = f"mov eax, {UDATA};" + load.replace("{word}", word)
    assert _descriptors_in_a_supervisor_page(width, f"{load}; ud2").vector == 6
    for before in ("", f"{load}; jmp behind; behind:", f"{_iret_to(width, 'here')} nop;"):
        world = _descriptors_in_a_supervisor_page(width, f"{before} mov ebx, {PAGED}; mov eax, [{pointer}]")
        assert (world.vector, world.frame(1)[0]) == (14, 5), before


@BOTH
def test_user_code_returns_to_its_own_level_again_and_again(width: int) -> None:
    """Each IRET reads two descriptors; the second time the emulator needs no help with it."""
    counter = "r8d" if width == 64 else "ebx"
    code = f"mov {counter}, 1000; again: {_iret_to(width, 'back')} dec {counter}; jne again; ud2"
    assert _descriptors_in_a_supervisor_page(width, code).vector == 6
