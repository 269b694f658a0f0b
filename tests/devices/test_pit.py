"""The 8254 against its data sheet and against a counter that really ticks."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.devices.pit import PIT_HZ
from runtime.devices.pit_counter import Counter8254
from tests.devices.conftest import Board


class TickingCounter:
    """Pulse by pulse, as the data sheet tells it, for one count and a gate that may move."""

    def __init__(self, mode: int, count: int, gate: bool) -> None:
        self.mode, self.count, self.gate = mode, count, gate
        self.load = mode not in (1, 5)
        self.loaded = False
        self.value = 0
        self.out = mode != 0
        self.done = False

    def set_gate(self, level: bool) -> None:
        if level and not self.gate and self.mode in (1, 2, 3, 5):
            self.load = True
        if not level and self.mode in (2, 3):
            self.out = True
        self.gate = level

    def pulse(self) -> None:
        if self.load and (self.gate or self.mode in (0, 4)):
            self.load, self.loaded, self.done = False, True, False
            self.value = self.count - (self.count & 1 if self.mode == 3 else 0)
            self.out = self.mode not in (0, 1)
            return
        if not self.loaded or not (self.gate or self.mode in (1, 5)):
            return
        {0: self._to_zero, 1: self._to_zero, 2: self._rate, 3: self._square}.get(self.mode, self._strobe)()

    def _to_zero(self) -> None:
        self.value -= 1
        if self.value == 0:
            self.out = True
        self.value %= 0x10000

    def _strobe(self) -> None:
        self.value = (self.value - 1) % 0x10000
        self.out = not (self.value == 0 and not self.done)
        self.done |= self.value == 0

    def _rate(self) -> None:
        self.value -= 1
        if self.value == 0:
            self.value = self.count
        self.out = self.value != 1

    def _square(self) -> None:
        odd = self.count & 1
        end = 0 if odd and self.out else 2
        if self.value == end:
            self.out = not self.out
            self.value = self.count - odd
        else:
            self.value -= 2


def program(mode: int, count: int, tick: int, gate: bool = True, bcd: int = 0) -> Counter8254:
    counter = Counter8254(gate)
    counter.control(0x30 | mode << 1 | bcd)
    counter.write(count & 0xFF, tick)
    counter.write(count >> 8 & 0xFF, tick)
    return counter


@settings(max_examples=300)
@given(
    mode=st.integers(0, 5),
    count=st.integers(2, 40),
    gate=st.booleans(),
    moves=st.lists(st.tuples(st.integers(1, 60), st.booleans()), max_size=5),
)
def test_output_and_value_equal_a_ticking_counter(
    mode: int, count: int, gate: bool, moves: list[tuple[int, bool]]
) -> None:
    counter, reference = program(mode, count, 0, gate), TickingCounter(mode, count, gate)
    tick = 0
    for pulses, level in [*moves, (100, gate)]:
        for _ in range(pulses):
            tick += 1
            reference.pulse()
            assert counter.output(tick) == reference.out, f"output at {tick}"
            if reference.loaded:
                assert counter.value(tick) == reference.value, f"value at {tick}"
        counter.set_gate(level, tick)
        reference.set_gate(level)


@settings(max_examples=200)
@given(
    mode=st.integers(0, 5), count=st.integers(2, 50), start=st.integers(0, 10**12), wait=st.integers(0, 300)
)
def test_next_rise_is_the_first_rise_of_the_output(mode: int, count: int, start: int, wait: int) -> None:
    counter = program(mode, count, start, gate=mode not in (1, 5))
    if mode in (1, 5):
        counter.set_gate(True, start)
    now = start + wait
    rise = counter.next_rise(now)
    levels = [counter.output(tick) for tick in range(now, now + 120)]
    rises = [now + 1 + i for i, (a, b) in enumerate(itertools.pairwise(levels)) if b and not a]
    assert (rises[0] if rises else None) == rise


@given(
    mode=st.sampled_from([2, 3]),
    first=st.integers(2, 60),
    second=st.integers(2, 60),
    when=st.integers(1, 200),
)
def test_a_new_count_of_a_periodic_counter_waits_for_the_cycle(
    mode: int, first: int, second: int, when: int
) -> None:
    counter = program(mode, first, 0)
    before = counter.output(when)
    counter.write(second & 0xFF, when)
    counter.write(second >> 8, when)
    assert counter.null_count(when)
    assert counter.output(when) == before
    levels = [counter.output(when + step) for step in range(first + 3 * second + 2)]
    rise = [i for i in range(1, len(levels)) if levels[i] and not levels[i - 1]]
    assert not counter.null_count(when + first)
    assert rise[-1] - rise[-2] == second


@given(st.lists(st.tuples(st.integers(0x40, 0x43), st.integers(0, 255), st.integers(0, 10**6)), max_size=30))
def test_any_programming_gives_bytes_and_bounded_events(steps: list[tuple[int, int, int]]) -> None:
    from runtime.devices.pit import Pit8254
    from tests.devices.board import ManualClock

    clock = ManualClock()
    pit = Pit8254(clock, lambda level: None)
    for port, value, wait in steps:
        pit.write(port, value)
        clock.advance(wait)
        for register in (0x40, 0x41, 0x42, 0x43, 0x61):
            assert 0 <= pit.read(register) <= 255
    clock.fired = 0
    clock.advance(10_000_000)
    assert clock.fired <= 10_000_000 // 20_000 + 1


def test_bcd_counts_in_decimal() -> None:
    counter = program(0, 0x1000, 0, bcd=1)
    assert counter.value(1) == 0x1000
    assert counter.value(2) == 0x0999
    assert counter.output(1000) is False
    assert counter.output(1001) is True
    assert counter.value(1002) == 0x9999
    assert program(2, 0, 0, bcd=1).next_rise(1) == 10_001


def test_a_count_of_zero_is_the_largest() -> None:
    assert program(2, 0, 0).next_rise(1) == 0x10001


def test_latch_holds_until_read_and_status_comes_first() -> None:
    counter = program(2, 0x1234, 0)
    counter.latch_count(11)
    counter.latch_count(500)
    counter.latch_status(11)
    assert counter.read(600) == 0x80 | 0x30 | 0x04
    assert counter.read(600) | counter.read(700) << 8 == 0x1234 - 10


@pytest.mark.parametrize(("access", "expected"), [(1, [0x34, 0x34]), (2, [0x12, 0x12]), (3, [0x34, 0x12])])
def test_access_modes_choose_the_bytes(access: int, expected: list[int]) -> None:
    counter = Counter8254(True)
    counter.control(access << 4 | 2 << 1)
    for byte in {1: [0x34], 2: [0x12], 3: [0x34, 0x12]}[access]:
        counter.write(byte, 0)
    counter.latch_count(1)
    reads = [counter.read(1) for _ in expected]
    whole = {1: 0x34, 2: 0x1200, 3: 0x1234}[access]
    assert reads == [{1: whole & 0xFF, 2: whole >> 8, 3: 0}[access]] * 2 if access < 3 else reads == expected


def test_mode_zero_stops_between_its_two_bytes() -> None:
    counter = program(0, 100, 0)
    counter.write(50, 20)
    assert counter.output(500) is False
    counter.write(0, 500)
    assert counter.next_rise(500) == 551


def test_irq0_comes_at_the_programmed_rate(board: Board) -> None:
    board.outb(0x20, 0x11)
    board.outb(0x21, 0x20, 4, 1, 0xFE)
    board.outb(0x43, 0x34)
    board.outb(0x40, 11932 & 0xFF, 11932 >> 8)
    ticks = 0
    for _ in range(1000):
        board.clock.advance(1_000_000)
        if board.control.interrupt:
            ticks += 1
            assert board.pc.acknowledge() == 0x20
            board.outb(0x20, 0x20)
    assert ticks in (99, 100)


def test_one_shot_interrupts_once(board: Board) -> None:
    board.outb(0x20, 0x11)
    board.outb(0x21, 0x20, 4, 1, 0xFE)
    board.outb(0x43, 0x30)
    board.outb(0x40, 0x00, 0x10)
    assert not board.control.interrupt
    board.clock.advance(4096 * 10**9 // PIT_HZ)
    assert not board.control.interrupt
    board.clock.advance(2000)
    assert board.control.interrupt
    board.pc.acknowledge()
    board.outb(0x20, 0x20)
    board.clock.advance(10**9)
    assert not board.control.interrupt


def test_speaker_gate_times_a_delay_loop(board: Board) -> None:
    """The way Linux measures its clocks: counter 2 in mode 0, gated and watched through port 0x61."""
    board.outb(0x61, board.inb(0x61) & ~2 | 1)
    board.outb(0x43, 0xB0)
    latch = PIT_HZ // 20
    board.outb(0x42, latch & 0xFF, latch >> 8)
    assert not board.inb(0x61) & 0x20
    board.clock.advance(49_999_000)
    assert not board.inb(0x61) & 0x20
    board.clock.advance(5_000)
    assert board.inb(0x61) & 0x20


def test_refresh_bit_toggles(board: Board) -> None:
    seen = set()
    for _ in range(4):
        seen.add(board.inb(0x61) & 0x10)
        board.clock.advance(15_085)
    assert seen == {0, 0x10}


def test_read_back_latches_several_counters(board: Board) -> None:
    board.outb(0x43, 0xC0 | 0x0A)  # status and count of counters 0 and 2
    assert board.inb(0x40) & 0x3F == 0x36
    assert board.inb(0x42) & 0x3F == 0x36
