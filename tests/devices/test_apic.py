"""Local APIC, I/O APIC and their timer against the SDM and the 82093AA data sheet."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.devices import PcPlatform, build_platform
from runtime.devices.apic_bus import ApicBus
from runtime.devices.apic_timer import ApicTimer
from runtime.devices.ioapic import IoApic
from runtime.devices.lapic import LocalApic, Register
from tests.devices.board import Control, ManualClock, Memory, Sink

ENABLED, MASKED = 0x1FF, 1 << 16


class Pair:
    """A local and an I/O APIC with nothing else, software enabled."""

    def __init__(self) -> None:
        self.clock, self.control, self.bus = ManualClock(), Control(), ApicBus()
        self.local = LocalApic(0, self.clock, self.bus, self.control, lambda: None)
        self.io = IoApic(self.bus)

    def set(self, register: int, value: int) -> None:
        self.local.write(register << 4, 4, value)

    def get(self, register: int) -> int:
        return self.local.read(register << 4, 4)

    def route(self, pin: int, low: int, high: int = 0) -> None:
        for half, value in ((1, high), (0, low)):
            self.io.write(0x00, 4, 0x10 + 2 * pin + half)
            self.io.write(0x10, 4, value)

    def entry(self, pin: int) -> int:
        self.io.write(0x00, 4, 0x10 + 2 * pin)
        return self.io.read(0x10, 4)

    def taken(self) -> list[int]:
        """Every vector that the CPU would take now, nested."""
        vectors = []
        while self.local.pending is not None:
            vectors.append(self.local.acknowledge())
        return vectors

    def end(self) -> None:
        self.set(Register.EOI, 0)


@pytest.fixture
def pair() -> Pair:
    return Pair()


def test_state_at_hand_over(pair: Pair) -> None:
    assert pair.get(Register.VERSION) == 0x00050014
    assert pair.get(Register.SVR) == 0x1FF
    assert pair.get(Register.LVT_LINT0) == 0x700
    assert pair.get(Register.LVT_LINT1) == 0x400
    assert pair.get(Register.LVT_TIMER) == MASKED
    assert pair.get(Register.DFR) == 0xFFFFFFFF
    assert pair.local.passes_pic


def test_self_ipis_come_by_priority_and_nest(pair: Pair) -> None:
    for vector in (0x31, 0x52, 0x51):
        pair.set(Register.ICR, 0x40000 | vector)
    assert pair.taken() == [0x52]  # 0x51 is of the same class
    pair.set(Register.ICR, 0x40061)
    assert pair.taken() == [0x61]
    assert pair.get(Register.PPR) == 0x60
    assert pair.get(Register.ISR + 2) == 1 << 0x12
    pair.end()
    assert pair.taken() == []
    pair.end()
    assert pair.taken() == [0x51]
    pair.end()
    assert pair.taken() == [0x31]


def test_task_priority_holds_back_its_class_and_lower_ones(pair: Pair) -> None:
    pair.set(Register.TPR, 0x40)
    pair.set(Register.ICR, 0x4004F)
    assert pair.local.pending is None
    assert pair.get(Register.PPR) == 0x40
    pair.set(Register.ICR, 0x40050)
    assert pair.local.pending == 0x50
    pair.set(Register.TPR, 0x50)
    assert pair.local.acknowledge() == 0xFF  # withdrawn: the spurious vector
    pair.set(Register.TPR, 0x3F)
    assert pair.taken() == [0x50]
    pair.end()
    assert pair.taken() == [0x4F]


@pytest.mark.parametrize(
    ("high", "low", "arrives"),
    [
        (0, 0x4041, True),
        (0xFF << 24, 0x4041, True),
        (1 << 24, 0x4041, False),
        (0, 0xC0041, False),  # all but itself
        (0, 0x80041, True),
        (0, 0x4941, False),  # logical, and no logical number is set
        (2 << 24, 0x4841, True),
        (4 << 24, 0x4841, False),
    ],
)
def test_destinations(pair: Pair, high: int, low: int, arrives: bool) -> None:
    pair.set(Register.LDR, 2 << 24 if low & 0x800 and high else 0)
    pair.set(Register.ICR_HIGH, high)
    pair.set(Register.ICR, low)
    assert pair.taken() == ([0x41] if arrives else [])


def test_logical_destinations_by_cluster(pair: Pair) -> None:
    pair.set(Register.DFR, 0x0FFFFFFF)
    pair.set(Register.LDR, 0x32000000)
    for destination, arrives in ((0x32, True), (0x31, False), (0x42, False), (0xF2, True)):
        pair.set(Register.ICR_HIGH, destination << 24)
        pair.set(Register.ICR, 0x4841)
        assert pair.taken() == ([0x41] if arrives else []), hex(destination)
        pair.end()


def test_software_disable_masks_the_local_table_and_drops_requests(pair: Pair) -> None:
    pair.set(Register.SVR, 0xFF)
    assert pair.get(Register.LVT_LINT0) == 0x700 | MASKED
    assert not pair.local.passes_pic
    pair.set(Register.LVT_LINT0, 0x700)
    assert pair.get(Register.LVT_LINT0) == 0x700 | MASKED
    pair.set(Register.ICR, 0x40041)
    pair.set(Register.SVR, ENABLED)
    assert pair.taken() == []
    assert pair.get(Register.LVT_LINT0) == 0x700 | MASKED


def test_errors_are_seen_after_a_write_and_can_interrupt(pair: Pair) -> None:
    pair.set(Register.LVT_ERROR, 0x45)
    pair.set(Register.ICR, 0x40005)
    assert pair.taken() == [0x45]
    assert pair.get(Register.ESR) == 0
    pair.set(Register.ESR, 0)
    assert pair.get(Register.ESR) == 0x20
    pair.set(Register.ESR, 0)
    assert pair.get(Register.ESR) == 0
    pair.set(0x3A, 0)
    pair.set(Register.ESR, 0)
    assert pair.get(Register.ESR) == 0x80


def test_nmi_and_init(pair: Pair) -> None:
    pair.set(Register.ICR, 0x40400)
    pair.set(Register.ICR, 0xC4500)  # INIT for the others: there are none
    pair.set(Register.ICR, 0x8500)  # level de-assert
    assert [name for name, _ in pair.control.calls] == ["nmi"]
    pair.set(Register.ICR, 0x4500)
    assert [name for name, _ in pair.control.calls] == ["nmi", "reset"]


# -- the timer ---------------------------------------------------------------------------------------


def test_one_shot(pair: Pair) -> None:
    pair.set(Register.DIVIDE, 0x3)  # 16
    pair.set(Register.LVT_TIMER, 0x41)
    pair.set(Register.INITIAL_COUNT, 1000)
    pair.clock.advance(4000)
    assert pair.get(Register.CURRENT_COUNT) == 750
    pair.clock.advance(11_999)
    assert pair.taken() == []
    pair.clock.advance(1)
    assert pair.taken() == [0x41]
    assert pair.get(Register.CURRENT_COUNT) == 0
    pair.end()
    pair.clock.advance(10**9)
    assert pair.taken() == []


def test_periodic_and_a_handler_that_is_late(pair: Pair) -> None:
    pair.set(Register.DIVIDE, 0xB)  # 1
    pair.set(Register.LVT_TIMER, 0x20041)
    pair.set(Register.INITIAL_COUNT, 100_000)
    pair.clock.advance(1_050_000)
    assert pair.clock.fired == 1  # nobody took it: further expiries cost nothing
    assert pair.get(Register.CURRENT_COUNT) == 50_000
    for _ in range(3):
        assert pair.taken() == [0x41]
        pair.end()
        pair.clock.advance(100_000)
    assert pair.clock.fired == 4


def test_a_masked_timer_counts_and_is_not_heard(pair: Pair) -> None:
    pair.set(Register.DIVIDE, 0xB)
    pair.set(Register.LVT_TIMER, MASKED | 0x41)
    pair.set(Register.INITIAL_COUNT, 1000)
    pair.clock.advance(400)
    assert pair.get(Register.CURRENT_COUNT) == 600
    pair.clock.advance(1000)
    pair.set(Register.LVT_TIMER, 0x41)
    pair.clock.advance(10**6)
    assert pair.taken() == [] and pair.clock.fired == 0


def test_deadline() -> None:
    clock = ManualClock()
    fired: list[int] = []
    timer = ApicTimer(clock, lambda: fired.append(clock.now_ns), lambda: False)
    timer.write_deadline(5000)
    assert timer.deadline == 0  # not in this mode
    timer.write_lvt(0x40041)
    timer.write_initial(77)
    assert timer.initial == timer.current == 0
    timer.write_deadline(5000)
    assert timer.deadline == 5000
    clock.advance(2499)
    assert fired == []
    clock.advance(1)
    assert fired == [2500] and timer.deadline == 0
    timer.write_deadline(1)  # in the past: at once
    clock.advance(0)
    assert fired == [2500, 2500]
    timer.write_deadline(10**9)
    timer.write_lvt(0x41)
    clock.advance(10**9)
    assert len(fired) == 2


def test_an_expiry_that_is_due_is_not_lost_by_a_write_before_its_event() -> None:
    clock = ManualClock()
    fired: list[int] = []
    timer = ApicTimer(clock, lambda: fired.append(1), lambda: False)
    timer.write_divide(0xB)
    timer.write_lvt(0x41)
    timer.write_initial(1000)
    clock.now_ns = 1500  # the block that runs has passed it
    timer.write_initial(1000)
    assert fired == [1]
    clock.advance(1000)
    assert fired == [1, 1]


# -- the I/O APIC ---------------------------------------------------------------------------------------


def test_registers_of_the_io_apic(pair: Pair) -> None:
    pair.io.write(0, 4, 1)
    assert pair.io.read(0x10, 4) == 0x00170020
    assert pair.entry(0) == pair.entry(23) == MASKED
    pair.route(23, 0xFFFFFFFF, 0xFFFFFFFF)
    assert pair.entry(23) == 0x1AFFF  # status and remote IRR are read only
    pair.io.write(0, 4, 0x10 + 47)
    assert pair.io.read(0x10, 4) == 0xFF000000


def test_edges(pair: Pair) -> None:
    pair.io.set_line(4, True)
    pair.route(4, 0x51)  # unmasked after the edge, which is lost
    assert pair.taken() == []
    pair.io.set_line(4, False)
    pair.io.set_line(4, True)
    assert pair.taken() == [0x51]
    pair.end()
    assert pair.taken() == []


def test_a_level_interrupts_again_until_the_line_falls(pair: Pair) -> None:
    pair.route(9, 0x8051)
    pair.io.set_line(9, True)
    assert pair.entry(9) == 0xC051  # remote IRR
    assert pair.get(Register.TMR + 2) == 1 << 0x11
    assert pair.taken() == [0x51]
    pair.end()
    assert pair.taken() == [0x51]
    pair.io.set_line(9, False)
    pair.end()
    assert pair.taken() == [] and pair.entry(9) == 0x8051


def test_the_end_register_of_the_io_apic(pair: Pair) -> None:
    pair.route(9, 0x8051)
    pair.io.set_line(9, True)
    pair.io.set_line(9, False)
    pair.io.write(0x40, 4, 0x51)
    assert pair.entry(9) == 0x8051


# -- the board ----------------------------------------------------------------------------------------------


def board() -> tuple[ManualClock, PcPlatform]:
    clock = ManualClock()
    return clock, build_platform(clock, Memory(), Sink(), Control(), apics=True)


def _tick(pc: PcPlatform) -> None:
    """Counter 0 of the 8254, every millisecond."""
    for port, value in ((0x43, 0x34), (0x40, 0xA9), (0x40, 0x04)):
        pc.write_port(port, 1, value)


def test_the_8254_is_on_pin_2_and_on_the_8259(pair: Pair) -> None:
    clock, pc = board()
    assert pc.apics is not None
    pc.apics.io.entries[2] = 0x51
    _tick(pc)
    clock.advance(1_100_000)
    assert pc.has_interrupt() and pc.acknowledge() == 0x51
    assert not pc.has_interrupt()  # the 8259 has it too, masked
    pc.write_port(0x21, 1, 0xFE)
    assert pc.has_interrupt() and pc.acknowledge() == 0x08


def test_ticks_go_on_for_whom_wants_them() -> None:
    clock, pc = board()
    assert pc.apics is not None
    _tick(pc)
    clock.advance(100_000_000)
    assert clock.fired == 1  # masked everywhere: one is latched
    pc.apics.io.write(0, 4, 0x14)
    pc.apics.io.write(0x10, 4, 0x51)
    taken = 0
    for _ in range(20):
        clock.advance(1_000_000)
        while pc.has_interrupt():
            assert pc.acknowledge() == 0x51
            pc.apics.local.write(0xB0, 4, 0)
            taken += 1
    assert 19 <= taken <= 20


def test_the_8259s_go_through_lint0_while_it_lets_them() -> None:
    clock, pc = board()
    assert pc.apics is not None
    pc.write_port(0x21, 1, 0xFE)
    _tick(pc)
    clock.advance(1_100_000)
    assert pc.has_interrupt()
    pc.apics.local.write(0x350, 4, 0x10700)
    assert not pc.has_interrupt()
    pc.apics.local.write(0x350, 4, 0x700)
    assert pc.acknowledge() == 0x08


# -- MSRs --------------


def test_x2apic_transitions() -> None:
    _, pc = board()
    msr = pc.local_apic
    assert msr is not None and pc.apics is not None
    assert msr.read(0x1B) == 0xFEE00900
    assert msr.read(0x802) is None
    assert not msr.write(0x1B, 0xFEE00500)  # extended without enable
    assert msr.write(0x1B, 0xFEE00D00)
    assert msr.read(0x802) == 0 and msr.read(0x80D) == 1
    assert pc.apics.local.read(0x30, 4) == 0xFFFFFFFF
    assert msr.read(0x830) == 0
    assert not msr.write(0x1B, 0xFEE00900)  # back only through disabled
    assert not msr.write(0x80D, 1) and not msr.write(0x80B, 1) and msr.write(0x80B, 0)
    assert not msr.write(0x80F, 0x200)
    assert msr.write(0x83F, 0x61) and pc.acknowledge() == 0x61
    assert msr.write(0x1B, 0xFEE00100) and not msr.is_enabled
    assert not msr.write(0x1B, 0xFEE00D00)
    assert msr.write(0x1B, 0xFEE00900) and msr.is_enabled


_registers = st.integers(0, 0x40)
_access = st.tuples(st.sampled_from(["local", "io", "msr"]), _registers, st.integers(0, (1 << 32) - 1))


@given(st.lists(_access, max_size=60))
def test_any_traffic_is_safe(accesses: list[tuple[str, int, int]]) -> None:
    clock, pc = board()
    assert pc.apics is not None and pc.local_apic is not None
    write: dict[str, Callable[[int, int], object]] = {
        "local": lambda number, value: pc.apics and pc.apics.local.write(number << 4, 4, value),
        "io": lambda number, value: pc.apics and pc.apics.io.write(number << 4 & 0x30, 4, value),
        "msr": lambda number, value: pc.local_apic and pc.local_apic.write(0x800 + number, value),
    }
    for what, number, value in accesses:
        write[what](number, value)
        clock.advance(1000)
        assert 0 <= pc.apics.local.read(number << 4, 4) < 1 << 32
        if pc.has_interrupt():
            assert 0 <= pc.acknowledge() <= 255
