"""Watched instructions: every execution is seen, wherever control comes from, and nothing else is."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from runtime.backends import Capabilities, Hypervisor
from runtime.backends.bare.backend import BACKEND
from runtime.cpu.watch import Site
from runtime.machine import Machine
from tests.cpu.world import KCODE, STUB_SIZE, STUBS, World, gate

BOTH = pytest.mark.parametrize("width", [32, 64])


class _Watching(Hypervisor):
    def __init__(self, machine: Machine, emulate: bool) -> None:
        super().__init__(machine)
        self.seen: Counter[str] = Counter()
        self.places: list[int] = []
        self.emulate = emulate

    def on_watched(self, site: Site) -> bool:
        self.seen[site.mnemonic] += 1
        self.places.append(site.address)
        assert self.machine.cpu.state.rip == site.address
        if self.emulate:
            self.machine.cpu.state.gpr[0] = 0x1234
        return self.emulate


class _WatchingBackend:
    def __init__(self, *mnemonics: str, emulate: bool = False) -> None:
        self.capabilities: Capabilities = replace(BACKEND.capabilities, watched=frozenset(mnemonics))
        self._emulate = emulate

    def hidden_memory(self, memory_size: int) -> int:
        return 0

    def attach(self, machine: Machine) -> Hypervisor:
        return _Watching(machine, self._emulate)


def run(world: World, *mnemonics: str, emulate: bool = False) -> _Watching:
    world.instance = _WatchingBackend(*mnemonics, emulate=emulate)
    world.run()
    hypervisor = world.machine.hypervisor
    assert isinstance(hypervisor, _Watching)
    return hypervisor


@BOTH
def test_in_loops_calls_and_the_very_first_block(width: int) -> None:
    code = """
        mov ecx, 10
    again:
        smsw eax
        call far_away
        dec ecx
        jnz again
        ud2
    far_away:
        smsw ebx
        ret
    """
    seen = run(World(width, code), "smsw", "lgdt")
    assert seen.seen == {"smsw": 20, "lgdt": 1}, "lgdt is in the first block after entry"


@BOTH
def test_in_handlers_and_after_returning_from_them(width: int) -> None:
    iret = "iretq" if width == 64 else "iretd"
    gates = {0x50: gate(width, KCODE, STUBS + 0x50 * STUB_SIZE)}
    code = "mov ecx, 5; again: int 0x50; smsw ebx; dec ecx; jnz again; ud2"
    seen = run(World(width, code, stubs={0x50: f"smsw eax; {iret}"}, gates=gates), "smsw")
    assert seen.seen == {"smsw": 10}


@BOTH
def test_in_user_mode(width: int) -> None:
    seen = run(World(width, "", user="smsw eax; nop; smsw ebx; ud2"), "smsw")
    assert seen.seen == {"smsw": 2}


@BOTH
def test_in_the_shadow_of_sti(width: int) -> None:
    seen = run(World(width, "mov ecx, 3; again: sti; smsw eax; dec ecx; jnz again; cli; ud2"), "smsw")
    assert seen.seen == {"smsw": 3}


@BOTH
def test_through_indirect_jumps(width: int) -> None:
    word, size = ("rax", 8) if width == 64 else ("eax", 4)
    del size
    code = f"""
        mov ecx, 4
    again:
        lea {word}, [{"rip+" if width == 64 else ""}target]
        jmp {word}
        nop
    target:
        smsw ebx
        dec ecx
        jnz again
        ud2
    """
    assert run(World(width, code), "smsw").seen == {"smsw": 4}


@BOTH
def test_emulated_instructions_are_skipped(width: int) -> None:
    world = World(width, "mov eax, 1; smsw eax; mov ebp, eax; mov ecx, 7; ud2")
    assert run(world, "smsw", emulate=True).seen == {"smsw": 1}
    assert world.machine.cpu.state.gpr[5] == 0x1234
    assert world.machine.cpu.state.gpr[1] == 7


def test_code_written_while_running_is_examined() -> None:
    code = """
        mov edi, 0x200000
        mov dword ptr [edi], 0x90909090
        mov dword ptr [edi+4], 0xc3
        call edi
        mov dword ptr [edi], 0x90e0010f
        call edi
        call edi
        mov dword ptr [edi], 0x90909090
        call edi
        ud2
    """
    assert run(World(32, code), "smsw").seen == {"smsw": 2}


def test_the_result_does_not_depend_on_watching() -> None:
    code = "mov ecx, 1000; again: smsw eax; add ebp, eax; dec ecx; jnz again; ud2"
    plain = World(32, code).run()
    watched = World(32, code)
    run(watched, "smsw")
    assert list(plain.machine.cpu.state.gpr)[1:] == list(watched.machine.cpu.state.gpr)[1:]


def test_hooks_are_bounded_for_a_guest_that_writes_its_code() -> None:
    """A watched instruction at ever new addresses: each one is seen, and what is kept does not grow."""
    count, first = 3000, 0x600000
    world = World(
        32,
        f"""
        mov edi, {first}
    again:
        mov dword ptr [edi], 0xc3e0010f
        call edi
        add edi, 16
        cmp edi, {first + count * 16}
        jb again
        ud2
        """,
    )
    seen = run(world, "smsw")
    assert seen.seen == {"smsw": count}
    assert len(world.machine.cpu._reached) < 1100
