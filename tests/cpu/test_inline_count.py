"""The count in front of each translated block is the same whether it is called or stands there."""

from __future__ import annotations

import iced_x86
import pytest

from runtime.cpu import inline_count
from runtime.cpu.native import ControlBlock
from tests.cpu.world import World

FIELD = {name: getattr(ControlBlock, name).offset for name, _ in ControlBlock._fields_}
LOOP = "mov ecx, 1000; again: dec ecx; jne again; call there; ud2; there: ret"


def test_the_sequence_is_what_its_comments_say() -> None:
    code = inline_count.shorter_sequence(FIELD)
    instructions = list(iced_x86.Decoder(64, code))
    assert [str(one).split()[0] for one in instructions] == [
        "lea", "mov", "add", "cmp", "jae", "mov", "inc", "jmp", "mov", "call", "jmp",
    ]  # fmt: skip
    places = [
        one.memory_displacement for one in instructions[1:7] if one.memory_base == iced_x86.Register.RCX
    ]
    assert places == [FIELD[name] for name in ("now", "limit", "now", "blocks")]
    assert instructions[4].near_branch_target == instructions[8].ip, "the closer look"
    assert len(code) <= 10 + 5 + 5 + 7 + 5 + inline_count._CHECK_CODE, "it fits where it goes"


@pytest.mark.parametrize("width", [32, 64])
def test_time_and_blocks_are_counted_alike(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(width, LOOP).run()
    monkeypatch.setattr(inline_count, "_ADDRESS_LOADS", ())
    called = World(width, LOOP).run()
    assert world.vector == called.vector == 6
    assert world.result.stats["guest_blocks"] == called.result.stats["guest_blocks"]
    assert world.result.guest_ns == called.result.guest_ns
