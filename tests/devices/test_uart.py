"""The 16550A against its data sheet."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from runtime.devices.uart import COM1, Uart16550
from tests.devices.board import ManualClock, Sink
from tests.devices.conftest import Board

IER, IIR, LCR, MCR, LSR, MSR, SCR = (COM1 + offset for offset in range(1, 8))


class Line:
    def __init__(self) -> None:
        self.level = False
        self.rises = 0

    def __call__(self, level: bool) -> None:
        self.rises += level and not self.level
        self.level = level


def make() -> tuple[Uart16550, ManualClock, Line, Sink]:
    clock, line, sink = ManualClock(), Line(), Sink()
    return Uart16550(clock, line, sink), clock, line, sink


def enable(uart: Uart16550, ier: int, fcr: int = 0x01) -> None:
    uart.write(MCR, 0x0B)
    uart.write(IIR, fcr)
    uart.write(IER, ier)


def test_transmits_at_once_and_is_always_ready(board: Board) -> None:
    for byte in b"hello":
        assert board.inb(LSR) & 0x60 == 0x60
        board.outb(COM1, byte)
    assert board.sink.data == b"hello"


def test_divisor_latch_hides_data_and_interrupt_enable() -> None:
    uart, _, _, sink = make()
    uart.write(LCR, 0x83)
    uart.write(COM1, 0x01)
    uart.write(IER, 0x02)
    assert (uart.read(COM1), uart.read(IER)) == (0x01, 0x02)
    uart.write(LCR, 0x03)
    assert uart.read(IER) == 0
    assert sink.data == b""


def test_transmitter_interrupt_comes_again_for_every_byte() -> None:
    uart, _, line, _ = make()
    enable(uart, 0x02)
    assert line.level
    assert uart.read(IIR) == 0xC2
    assert not line.level  # reading the IIR acknowledged it
    assert uart.read(IIR) == 0xC1
    uart.write(COM1, 0x41)
    assert line.level
    uart.write(COM1, 0x42)
    assert line.rises == 3  # an edge each, for an edge-triggered controller


def test_interrupts_come_whatever_out2_says() -> None:
    """As in QEMU's port: drivers that leave MCR 0 expect it."""
    uart, _, line, _ = make()
    uart.write(IER, 0x02)
    assert line.level
    uart.write(MCR, 0x08)
    assert line.level
    assert uart.read(IIR) & 0x0F == 0x02
    assert not line.level


def test_a_driver_that_leaves_mcr_alone_receives_by_interrupt() -> None:
    uart, clock, line, _ = make()
    uart.receive(b"hi")
    uart.write(IER, 0x01)
    uart.write(IER, 0x00)  # a probe of the register
    clock.advance(2_000_000)
    assert uart.read(LSR) & 1 == 0
    uart.write(IER, 0x01)
    clock.advance(2_000_000)
    assert line.level
    assert (uart.read(COM1), uart.read(COM1)) == (ord("h"), ord("i"))
    assert not line.level


def test_a_driver_that_polls_receives_without_request_to_send() -> None:
    uart, _, _, _ = make()
    uart.receive(b"p")
    for byte in b"a check before each byte that is sent is no waiting for data":
        assert uart.read(LSR) & 1 == 0
        uart.write(COM1, byte)
    assert any(uart.read(LSR) & 1 for _ in range(16))
    assert uart.read(COM1) == ord("p")


def test_receive_trigger_level_then_timeout() -> None:
    uart, clock, line, _ = make()
    enable(uart, 0x01, 0x81)  # trigger at 8
    uart.receive(b"abc")
    assert not line.level
    clock.advance(4 * 1_100_000)
    assert uart.read(IIR) == 0xCC
    assert bytes(uart.read(COM1) for _ in range(3)) == b"abc"
    assert uart.read(LSR) & 1 == 0
    uart.receive(b"12345678")
    assert uart.read(IIR) == 0xC4


def test_typed_text_never_overruns() -> None:
    uart, _, _, _ = make()
    uart.write(IIR, 0x01)
    uart.write(MCR, 0x02)
    text = bytes(range(1, 200))
    uart.receive(text)
    got = bytearray()
    while uart.read(LSR) & 1:
        got.append(uart.read(COM1))
    assert bytes(got) == text
    assert not uart.read(LSR) & 0x02


def test_typed_text_waits_for_request_to_send() -> None:
    uart, _, _, _ = make()
    uart.receive(b"z")
    assert not uart.read(LSR) & 1
    uart.write(MCR, 0x03)
    assert uart.read(COM1) == ord("z")


def test_without_fifo_one_byte_waits() -> None:
    uart, _, _, _ = make()
    uart.write(MCR, 0x02)
    uart.receive(b"xy")
    assert uart.read(IIR) == 0x01
    assert [uart.read(COM1), uart.read(COM1)] == [ord("x"), ord("y")]


def test_loop_back_returns_data_and_modem_lines() -> None:
    """What Linux's autoconfiguration checks."""
    uart, _, _, sink = make()
    uart.write(MCR, 0x10 | 0x0A)
    assert uart.read(MSR) & 0xF0 == 0x90
    uart.write(COM1, 0x55)
    assert uart.read(LSR) & 1
    assert uart.read(COM1) == 0x55
    assert sink.data == b""


def test_modem_status_changes_are_shown_once() -> None:
    uart, _, line, _ = make()
    uart.read(MSR)
    enable(uart, 0x08)
    uart.write(MCR, 0x18)
    uart.write(MCR, 0x08)
    assert line.level
    assert uart.read(IIR) & 0x0F == 0x00
    assert uart.read(MSR) & 0x0F
    assert uart.read(MSR) & 0x0F == 0
    assert not line.level


def test_scratch_and_interrupt_enable_bits() -> None:
    uart, _, _, _ = make()
    uart.write(SCR, 0xA5)
    uart.write(IER, 0xFF)
    assert (uart.read(SCR), uart.read(IER)) == (0xA5, 0x0F)


@given(st.lists(st.tuples(st.integers(0, 7), st.integers(0, 255), st.binary(max_size=20))))
def test_any_writes_are_safe(steps: list[tuple[int, int, bytes]]) -> None:
    uart, clock, _, _ = make()
    for register, value, typed in steps:
        uart.write(COM1 + register, value)
        uart.receive(typed)
        clock.advance(10_000)
        assert all(0 <= uart.read(COM1 + other) <= 255 for other in range(8))
