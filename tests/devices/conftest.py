from __future__ import annotations

from dataclasses import dataclass

import pytest

from runtime.devices import PcPlatform, build_platform
from tests.devices.board import Control, ManualClock, Memory, Sink


@dataclass
class Board:
    clock: ManualClock
    memory: Memory
    sink: Sink
    control: Control
    pc: PcPlatform

    def inb(self, port: int) -> int:
        return self.pc.read_port(port, 1)

    def outb(self, port: int, *values: int) -> None:
        for value in values:
            self.pc.write_port(port, 1, value)


@pytest.fixture
def board() -> Board:
    clock, memory, sink, control = ManualClock(), Memory(), Sink(), Control()
    return Board(clock, memory, sink, control, build_platform(clock, memory, sink, control))
