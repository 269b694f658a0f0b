"""The MC146818 and the CMOS bytes that describe the machine."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.devices.rtc import Rtc
from tests.devices.board import ManualClock
from tests.devices.conftest import Board

SECOND = 10**9


def read(board: Board, register: int) -> int:
    board.outb(0x70, register)
    return board.inb(0x71)


def write(board: Board, register: int, value: int) -> None:
    board.outb(0x70, register)
    board.outb(0x71, value)


def date(board: Board) -> tuple[int, ...]:
    return tuple(read(board, register) for register in (0x32, 9, 8, 7, 4, 2, 0))


def test_starts_at_the_fixed_date_and_follows_virtual_time(board: Board) -> None:
    assert date(board) == (0x20, 0x24, 1, 1, 0, 0, 0)
    board.clock.advance((31 * 86400 + 3661) * SECOND)
    assert date(board) == (0x20, 0x24, 2, 1, 0x01, 0x01, 0x01)
    assert read(board, 6) == 5  # 1 February 2024 is a Thursday; Sunday is 1


def test_binary_and_twelve_hour_formats(board: Board) -> None:
    board.clock.advance((13 * 3600 + 45 * 60) * SECOND)
    write(board, 0x0B, 0x04)
    assert read(board, 4) == 0x81
    assert read(board, 2) == 45
    write(board, 0x0B, 0x00)
    assert read(board, 2) == 0x45
    board.clock.advance(11 * 3600 * SECOND)
    assert read(board, 4) == 0x12  # midnight is 12 am


def test_update_in_progress_before_each_second(board: Board) -> None:
    assert not read(board, 0x0A) & 0x80
    board.clock.advance(SECOND - 1_000_000)
    assert read(board, 0x0A) & 0x80
    board.clock.advance(1_000_000)
    assert not read(board, 0x0A) & 0x80


def test_setting_the_clock(board: Board) -> None:
    write(board, 0x0B, 0x82)
    for register, value in ((0, 0x59), (2, 0x59), (4, 0x23), (7, 0x28), (8, 0x02), (9, 0x25)):
        write(board, register, value)
    board.clock.advance(10 * SECOND)
    assert date(board) == (0x20, 0x25, 2, 0x28, 0x23, 0x59, 0x59)
    write(board, 0x0B, 0x02)
    board.clock.advance(SECOND)
    assert date(board) == (0x20, 0x25, 3, 1, 0, 0, 0)


def unmask_irq8(board: Board) -> None:
    for base, words in ((0x20, (0x20, 4, 1, 0xFB)), (0xA0, (0x28, 2, 1, 0xFE))):
        board.outb(base, 0x11)
        board.outb(base + 1, *words)


def acknowledge(board: Board) -> None:
    assert board.pc.acknowledge() == 0x28
    board.outb(0xA0, 0x20)
    board.outb(0x20, 0x20)


def test_periodic_interrupt_waits_for_register_c(board: Board) -> None:
    unmask_irq8(board)
    write(board, 0x0B, 0x42)
    ticks = 0
    for _ in range(1000):
        board.clock.advance(1_000_000)
        if board.control.interrupt:
            acknowledge(board)
            assert read(board, 0x0C) & 0xC0 == 0xC0
            ticks += 1
    assert ticks == 1000  # 1024 Hz
    board.clock.advance(SECOND)
    acknowledge(board)
    assert not board.control.interrupt  # one until it is acknowledged


def test_update_ended_and_alarm_interrupts(board: Board) -> None:
    unmask_irq8(board)
    write(board, 0x01, 0x03)
    write(board, 0x03, 0xFF)
    write(board, 0x05, 0xFF)
    write(board, 0x0B, 0x22)
    board.clock.advance(2 * SECOND)
    assert not board.control.interrupt
    board.clock.advance(SECOND)
    acknowledge(board)
    assert read(board, 0x0C) & 0xB0 == 0xB0
    assert read(board, 0x0C) == 0
    write(board, 0x0B, 0x12)
    board.clock.advance(SECOND)
    acknowledge(board)
    assert read(board, 0x0C) & 0x90 == 0x90


def test_flags_without_interrupts_are_computed_on_reading(board: Board) -> None:
    board.clock.advance(5 * SECOND)
    assert board.clock.fired <= 1  # the masked timer's first edge
    assert read(board, 0x0C) & 0xD0 == 0x50


_SIZES = [(2, 1024, 0), (32, 31744, 256), (512, 0xFFFF, 7936)]


@pytest.mark.parametrize(("mib", "above_1m", "above_16m"), _SIZES)
def test_memory_size_bytes(mib: int, above_1m: int, above_16m: int) -> None:
    rtc = Rtc(ManualClock(), lambda level: None, mib << 20)

    def word(low: int) -> int:
        values = []
        for index in (low, low + 1):
            rtc.write(0x70, index)
            values.append(rtc.read(0x71))
        return values[0] | values[1] << 8

    assert word(0x15) == 639
    assert (word(0x17), word(0x30), word(0x34)) == (above_1m, above_1m, above_16m)


@given(st.lists(st.tuples(st.integers(0, 255), st.integers(0, 255), st.integers(0, 10**10)), max_size=30))
def test_any_writes_are_safe(steps: list[tuple[int, int, int]]) -> None:
    clock = ManualClock()
    rtc = Rtc(clock, lambda level: None, 1 << 26)
    for index, value, wait in steps:
        rtc.write(0x70, index)
        rtc.write(0x71, value)
        clock.advance(wait % 10**7)
        for register in range(0x34):
            rtc.write(0x70, register)
            assert 0 <= rtc.read(0x71) <= 255
