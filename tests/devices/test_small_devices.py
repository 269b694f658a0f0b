"""Keyboard controller, VGA registers, PCI, power management, debug ports, and the port space."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from runtime.devices import build_platform
from runtime.devices.vga import TEXT_MEMORY
from tests.devices.board import Control, ManualClock, Memory, Sink
from tests.devices.conftest import Board

# -- 8042 ---------------------------------------------------------------------------------------


def test_controller_self_test_and_mode_byte(board: Board) -> None:
    assert board.inb(0x64) & 0x01 == 0
    board.outb(0x64, 0xAA)
    assert board.inb(0x64) & 0x01
    assert board.inb(0x60) == 0x55
    board.outb(0x64, 0x60)
    board.outb(0x60, 0x30)
    board.outb(0x64, 0x20)
    assert board.inb(0x60) == 0x30


def test_keyboard_identifies_itself(board: Board) -> None:
    board.outb(0x60, 0xFF)
    assert [board.inb(0x60), board.inb(0x60)] == [0xFA, 0xAA]
    board.outb(0x60, 0xF2)
    assert [board.inb(0x60) for _ in range(3)] == [0xFA, 0xAB, 0x83]
    board.outb(0x60, 0xED, 0x07)
    assert [board.inb(0x60), board.inb(0x60)] == [0xFA, 0xFA]
    board.outb(0x60, 0x01)
    assert board.inb(0x60) == 0xFE


def test_keyboard_answers_interrupt_byte_by_byte(board: Board) -> None:
    board.outb(0x20, 0x11)
    board.outb(0x21, 0x20, 4, 1, 0xFD)
    board.outb(0x60, 0xFF)
    for expected in (0xFA, 0xAA):
        assert board.pc.acknowledge() == 0x21
        assert board.inb(0x60) == expected
        board.outb(0x20, 0x20)
    assert not board.control.interrupt


def test_mouse_port_is_there_and_empty(board: Board) -> None:
    board.outb(0x64, 0xA9)
    assert board.inb(0x60) == 0x00
    board.outb(0x64, 0xD3)
    board.outb(0x60, 0x5A)
    assert board.inb(0x64) & 0x21 == 0x21
    assert board.inb(0x60) == 0x5A
    for command, disabled in ((0xA7, 0x20), (0xA8, 0x00)):
        board.outb(0x64, command, 0x20)
        assert board.inb(0x60) & 0x20 == disabled
    board.outb(0x64, 0xD4)
    board.outb(0x60, 0xFF)
    assert board.inb(0x64) & 0x61 == 0x61  # from the mouse port, after a timeout
    assert board.inb(0x60) == 0xFE


def test_every_reset_line(board: Board) -> None:
    for port, values in ((0x64, (0xFE,)), (0x92, (0x01,)), (0xCF9, (0x02, 0x06))):
        board.control.calls.clear()
        board.outb(port, *values)
        assert [name for name, _ in board.control.calls] == ["reset"], hex(port)
    board.control.calls.clear()
    board.outb(0x64, 0xFF, 0xD1)
    board.outb(0x60, 0x03)
    board.outb(0xCF9, 0x00)
    assert board.control.calls == []
    board.outb(0x64, 0xD1)
    board.outb(0x60, 0x02)
    assert board.control.calls[0][0] == "reset"


def test_fast_a20_gate_reads_back(board: Board) -> None:
    assert board.inb(0x92) == 0x02
    board.outb(0x92, 0x00)
    assert board.inb(0x92) == 0x00


# -- VGA ------------------------------------------------------------------------------------------


def test_screen_follows_the_start_address(board: Board) -> None:
    for row, line in enumerate((b"first", b"second \xb3\xc4")):
        cells = bytes(byte for character in line for byte in (character, 0x07))
        board.memory.store(TEXT_MEMORY + 160 * row, cells)
    assert board.pc.screen()[:3] == ["first", "second │─", ""]
    board.pc.write_port(0x3D4, 2, 80 << 8 | 0x0D)  # index and data in one access
    assert board.pc.screen()[0] == "second │─"


def test_cursor_registers(board: Board) -> None:
    for index, value in ((0x0E, 0x01), (0x0F, 0x45)):
        board.outb(0x3D4, index)
        board.outb(0x3D5, value)
    assert board.inb(0x3D5) == 0x45
    assert board.pc.vga.cursor == divmod(0x145, 80)


def test_crtc_write_protection(board: Board) -> None:
    board.outb(0x3D4, 0x00)
    board.outb(0x3D5, 0x12)
    assert board.inb(0x3D5) == 0x5F


def test_attribute_flip_flop_is_reset_by_the_status_register(board: Board) -> None:
    board.inb(0x3DA)
    board.outb(0x3C0, 0x05, 0x3A)
    board.inb(0x3DA)
    board.outb(0x3C0, 0x05)
    assert board.inb(0x3C1) == 0x3A


def test_palette_counts_up(board: Board) -> None:
    board.outb(0x3C8, 7)
    board.outb(0x3C9, 1, 2, 3)
    board.outb(0x3C7, 7)
    assert [board.inb(0x3C9) for _ in range(3)] == [1, 2, 3]


def test_retrace_comes_and_goes(board: Board) -> None:
    seen = set()
    for _ in range(2000):
        seen.add(board.inb(0x3DA) & 0x08)
        board.clock.advance(10_000)
    assert seen == {0, 8}


# -- PCI, power, debug ------------------------------------------------------------------------------


def test_pci_mechanism_is_there_and_the_bus_is_empty(board: Board) -> None:
    board.pc.write_port(0xCF8, 4, 0x80001234)
    assert board.pc.read_port(0xCF8, 4) == 0x80001234
    assert board.pc.read_port(0xCFC, 4) == 0xFFFFFFFF
    assert board.pc.read_port(0xCFE, 2) == 0xFFFF
    board.pc.write_port(0xCFC, 4, 0)


def test_acpi_mode_is_entered_and_left_by_the_command_port(board: Board) -> None:
    assert board.pc.read_port(0x604, 2) == 0x0000
    board.outb(0xB2, 0xF1)
    assert board.pc.read_port(0x604, 2) == 0x0001
    board.pc.write_port(0x604, 2, 0)
    assert board.pc.read_port(0x604, 2) == 0x0001
    board.outb(0xB2, 0xF0)
    assert board.pc.read_port(0x604, 2) == 0x0000
    assert board.inb(0xB2) == 0xF0


def test_power_off_by_sleep_enable(board: Board) -> None:
    board.outb(0xB2, 0xF1)
    assert board.pc.read_port(0x604, 2) == 0x0001
    board.pc.write_port(0x604, 2, 0x1400)
    board.pc.write_port(0x604, 2, 0x3400)  # a sleep type that is not S5
    assert board.control.calls == []
    board.pc.write_port(0x604, 2, 0x2000)
    assert [name for name, _ in board.control.calls] == ["power_off"]


def test_power_management_timer(board: Board) -> None:
    assert board.pc.read_port(0x608, 4) == 0
    board.clock.advance(10**9)
    assert board.pc.read_port(0x608, 4) == 3_579_545


def test_debug_exit_passes_the_value(board: Board) -> None:
    board.pc.write_port(0xF4, 4, 0x10)
    assert board.control.calls == [("exit", 0x10)]


def test_post_code_is_latched(board: Board) -> None:
    board.outb(0x80, 0x42)
    assert board.inb(0x80) == 0x42


# -- the port space -----------------------------------------------------------------------------------


def test_unclaimed_ports_read_all_ones(board: Board) -> None:
    assert board.pc.read_port(0x300, 1) == 0xFF
    assert board.pc.read_port(0x300, 2) == 0xFFFF
    assert board.pc.read_port(0xFFFF, 4) == 0xFFFFFFFF
    board.pc.write_port(0x300, 4, 0)


def test_no_device_claims_anothers_ports(board: Board) -> None:
    pc = board.pc
    claimed = [
        port
        for device in (
            pc.pic,
            pc.pit,
            pc.keyboard,
            pc.uart,
            pc.rtc,
            pc.vga,
            pc.power,
            pc.pci,
            pc.debug_ports,
        )
        for port in device.ports
    ]
    assert len(claimed) == len(set(claimed))


_ports = st.one_of(
    st.integers(0, 0xFFFF),
    st.sampled_from(
        [0x20, 0x40, 0x43, 0x60, 0x64, 0x70, 0x71, 0x3C0, 0x3D4, 0x3F8, 0x3FA, 0x600, 0xCF8, 0xCF9]
    ),
)
_access = st.tuples(_ports, st.sampled_from([1, 2, 4]), st.integers(0, 0xFFFFFFFF))


@given(st.lists(_access, max_size=40))
def test_any_port_traffic_is_safe(accesses: list[tuple[int, int, int]]) -> None:
    clock, memory, control = ManualClock(), Memory(1 << 20), Control()
    pc = build_platform(clock, memory, Sink(), control)
    for port, size, value in accesses:
        pc.write_port(port, size, value)
        clock.advance(1000)
        assert 0 <= pc.read_port(port, size) < 1 << 8 * size
        assert 0 <= pc.acknowledge() <= 255
    assert len(pc.screen()) == 25
