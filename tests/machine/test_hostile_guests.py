"""Guests that mean ill: each ends with its defined outcome, in bounded time and memory."""

from __future__ import annotations

import pytest

from runtime.outcome import Outcome
from tests.cpu.world import PAGED, STUB_SIZE, STUBS, World

BOTH = pytest.mark.parametrize("width", [32, 64])


@BOTH
def test_a_loop_with_interrupts_off_meets_the_time_limit(width: int) -> None:
    world = World(width, "cli; here: jmp here", max_time_s=0.05).run()
    assert world.result.outcome is Outcome.TIME_LIMIT
    assert world.result.exit_code == 5
    assert 0.05e9 <= world.result.guest_ns < 0.0501e9


@BOTH
def test_endless_printing_is_bounded(width: int) -> None:
    world = World(width, "mov edx, 0x3f8; mov al, 65; here: out dx, al; jmp here", output_limit=5000).run()
    assert world.result.outcome is Outcome.OUTPUT_LIMIT
    assert world.result.exit_code == 5
    assert world.result.transcript == b"A" * 5000


@BOTH
def test_a_jump_to_nowhere_is_an_invalid_opcode(width: int) -> None:
    word = "rax" if width == 64 else "eax"
    address = 0x3F00_0000  # beyond RAM; the 64-bit identity map covers the first 4 GiB
    code = f"mov eax, {address}; jmp {word}"
    world = World(width, code, own_page_tables=False).run()
    assert world.vector == 6
    assert world.frame(1)[0] == address


@BOTH
def test_a_jump_to_nowhere_without_tables_is_a_triple_fault(width: int) -> None:
    word = "rax" if width == 64 else "eax"
    world = World(width, f"mov eax, 0x3f000000; jmp {word}", tables=False).run()
    assert world.result.outcome is Outcome.CRASHED
    assert world.result.exit_code == 4
    assert world.result.crash is not None


@BOTH
def test_memory_outside_ram_reads_as_ones_and_ignores_writes(width: int) -> None:
    code = "mov ebx, 0x30000000; mov dword ptr [{r}], 5; mov ecx, [{r}]; mov esi, 0x100; add esi, ecx; ud2"
    world = World(width, code.replace("{r}", "rbx" if width == 64 else "ebx"), own_page_tables=False).run()
    assert world.machine.cpu.state.gpr[1] == 0xFFFFFFFF
    assert world.machine.cpu.state.gpr[6] == 0xFF


@BOTH
def test_a_fault_in_the_fault_handler_runs_out_of_stack_not_out_of_time(width: int) -> None:
    """#UD whose handler is #UD again: the frames walk down the stack and over everything below."""
    world = World(width, "ud2", stubs={6: "ud2"}, max_time_s=0.5).run()
    assert world.result.outcome in (Outcome.CRASHED, Outcome.TIME_LIMIT)


@BOTH
def test_halting_with_interrupts_off_ends_the_run(width: int) -> None:
    world = World(width, "cli; hlt", max_time_s=None).run()
    assert world.result.outcome is Outcome.HALTED
    assert world.result.exit_code == 0


@BOTH
def test_random_code_does_not_escape(width: int) -> None:
    """Zero bytes, all ones and a pattern as code: whatever happens, it is one of the outcomes."""
    for fill in (0x00, 0xFF, 0x0F, 0x66, 0xF3):
        world = World(
            width,
            f"mov edi, 0x200000; mov ecx, 4096; mov al, {fill}; cld; rep stosb; "
            f"mov eax, 0x200000; jmp {'rax' if width == 64 else 'eax'}",
            max_time_s=0.02,
        ).run()
        assert isinstance(world.result.outcome, Outcome)
        assert world.result.exit_code in (0, 4, 5)


@BOTH
def test_a_wild_stack_pointer_and_an_absent_idt(width: int) -> None:
    sp = "rsp" if width == 64 else "esp"
    world = World(width, f"mov {sp}, 0x7ffffff0; int 0x55", tables=False).run()
    assert world.result.outcome is Outcome.CRASHED


def test_a_tss_out_of_reach_is_a_fault_not_an_error() -> None:
    world = World(32, "", user="ud2", tss_limit=3).run()
    assert world.result.outcome is Outcome.CRASHED, "#TS cannot be delivered either: same stack switch"


def test_code_that_overwrites_itself_runs_as_written() -> None:
    code = """
        mov ecx, 200
    again:
        mov eax, 0
        inc byte ptr [again+1]
        dec ecx
        jnz again
        mov ebp, eax
        ud2
    """
    world = World(32, code).run()
    assert world.vector == 6
    assert world.machine.cpu.state.gpr[5] == 199


def test_an_until_text_that_never_comes_is_an_answer() -> None:
    world = World(32, "cli; hlt", until="login:", max_time_s=None).run()
    assert world.result.exit_code == 1


def test_an_until_text_is_found_across_writes_and_ends_the_run() -> None:
    code = "mov edx, 0x3f8; here: mov al, 97; out dx, al; mov al, 98; out dx, al; jmp here"
    world = World(32, code, until="ba").run()
    assert world.result.outcome is Outcome.UNTIL
    assert world.result.exit_code == 0
    assert world.result.transcript.startswith(b"aba")
    assert len(world.result.transcript) <= 4, "the run ends with the block that printed the text"


def test_handlers_that_return_to_the_fault_do_not_stall_the_clock() -> None:
    world = World(32, "ud2", stubs={6: "iretd"}, max_time_s=0.01).run()
    assert world.result.outcome is Outcome.TIME_LIMIT
    assert world.machine.cpu.state.rip >= STUBS + 6 * STUB_SIZE or world.machine.cpu.state.rip < STUBS


def test_code_changed_through_another_mapping_runs_as_written() -> None:
    """The page at PAGED + 0x1000 is an alias of the one at PAGED, as kernels map their text to patch it."""
    code = f"""
        mov edi, {PAGED}
        mov dword ptr [edi], 0xc3c08940
        mov eax, 1
        call edi
        mov dword ptr [edi+0x1000], 0xc3c08948
        call edi
        call edi
        mov ebp, eax
        ud2
    """
    world = World(32, code, paging=True, pages={0: PAGED | 7, 1: PAGED | 7}).run()
    assert world.vector == 6
    assert world.machine.cpu.state.gpr[5] == 0, "1 + 1 (inc eax), then twice dec eax"
