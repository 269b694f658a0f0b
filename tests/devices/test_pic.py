"""The 8259 pair against the data sheet."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.devices.pic import DualPic, Pic8259


def make_pair() -> DualPic:
    """A pair initialised as a PC kernel does it: vectors 0x20 and 0x28, everything unmasked."""
    pic = DualPic()
    for base, words in ((0x20, (0x20, 4, 1)), (0xA0, (0x28, 2, 1))):
        pic.write(base, 0x11)
        for word in words:
            pic.write(base + 1, word)
    return pic


def make_chip() -> Pic8259:
    chip = Pic8259(elcr_writable=0xFF, is_master=True, on_output=lambda level: None)
    chip.write(0, 0x13)
    chip.write(1, 0x40)
    chip.write(1, 0x01)
    return chip


def test_hand_over_state_is_masked() -> None:
    pic = DualPic()
    pic.set_irq(0, True)
    pic.set_irq(8, True)
    assert not pic.pending
    assert (pic.read(0x21), pic.read(0xA1)) == (0xFF, 0xFF)


def test_mask_register_reads_back() -> None:
    pic = make_pair()
    pic.write(0x21, 0xFB)
    pic.write(0xA1, 0x5A)
    assert (pic.read(0x21), pic.read(0xA1)) == (0xFB, 0x5A)


def test_fixed_priority_and_end_of_interrupt() -> None:
    pic = make_pair()
    for irq in (7, 4, 1):
        pic.set_irq(irq, True)
    assert pic.acknowledge() == 0x21
    assert not pic.pending  # 4 and 7 wait behind 1
    pic.set_irq(0, True)
    assert pic.acknowledge() == 0x20  # 0 nests inside 1
    pic.write(0x20, 0x0B)
    assert pic.read(0x20) == 0b11
    pic.write(0x20, 0x20)
    assert pic.read(0x20) == 0b10
    pic.write(0x20, 0x20)
    assert pic.acknowledge() == 0x24


def test_cascade_gives_the_slaves_vector_and_needs_two_ends() -> None:
    pic = make_pair()
    pic.set_irq(12, True)
    assert pic.acknowledge() == 0x2C
    pic.set_irq(8, True)
    assert not pic.pending  # line 2 is in service in the master, which is not in SFNM
    pic.write(0xA0, 0x20)
    pic.write(0x20, 0x20)
    assert pic.acknowledge() == 0x28


def test_special_fully_nested_mode_lets_the_slave_nest() -> None:
    pic = make_pair()
    pic.write(0x20, 0x11)
    for word in (0x20, 4, 0x11):
        pic.write(0x21, word)
    pic.set_irq(12, True)
    assert pic.acknowledge() == 0x2C
    pic.set_irq(8, True)
    assert pic.acknowledge() == 0x28


def test_edge_line_that_falls_before_the_acknowledge_is_spurious() -> None:
    pic = make_pair()
    pic.set_irq(3, True)
    pic.set_irq(3, False)
    assert not pic.pending
    assert pic.acknowledge() == 0x27
    pic.write(0x20, 0x0B)
    assert pic.read(0x20) == 0  # a spurious interrupt sets no in-service bit


def test_edge_line_interrupts_once_per_rise() -> None:
    pic = make_pair()
    pic.set_irq(5, True)
    assert pic.acknowledge() == 0x25
    pic.write(0x20, 0x65)
    assert not pic.pending
    pic.set_irq(5, True)
    assert not pic.pending
    pic.set_irq(5, False)
    pic.set_irq(5, True)
    assert pic.pending


def test_level_line_interrupts_while_it_is_high() -> None:
    pic = make_pair()
    pic.write(0x4D1, 0xFF)
    assert pic.read(0x4D1) == 0xDE  # IRQ8 and IRQ13 stay edge
    pic.set_irq(10, True)
    assert pic.acknowledge() == 0x2A
    pic.write(0xA0, 0x20)
    pic.write(0x20, 0x20)
    assert pic.acknowledge() == 0x2A
    pic.set_irq(10, False)
    pic.write(0xA0, 0x20)
    pic.write(0x20, 0x20)
    assert not pic.pending


def test_elcr_of_the_master_keeps_timer_keyboard_and_cascade_edge() -> None:
    pic = make_pair()
    pic.write(0x4D0, 0xFF)
    assert pic.read(0x4D0) == 0xF8


def test_poll_mode_acknowledges_by_reading() -> None:
    pic = make_pair()
    pic.write(0x20, 0x0C)
    assert pic.read(0x20) == 0
    pic.set_irq(6, True)
    pic.write(0x20, 0x0C)
    assert pic.read(0x20) == 0x86
    pic.write(0x20, 0x0B)
    assert pic.read(0x20) == 0x40


def test_special_mask_mode_lets_lower_lines_through() -> None:
    pic = make_pair()
    pic.set_irq(1, True)
    pic.acknowledge()
    pic.set_irq(6, True)
    assert not pic.pending
    pic.write(0x21, 0x02)
    assert not pic.pending
    pic.write(0x20, 0x68)
    assert pic.acknowledge() == 0x26


def test_automatic_end_of_interrupt_with_rotation() -> None:
    chip = Pic8259(elcr_writable=0xFF, is_master=True, on_output=lambda level: None)
    for offset, word in ((0, 0x13), (1, 0x40), (1, 0x03), (0, 0x80)):
        chip.write(offset, word)
    chip.set_line(2, True)
    assert chip.acknowledge() == 2
    assert chip.isr == 0
    chip.set_line(1, True)
    chip.set_line(3, True)
    assert chip.acknowledge() == 3  # 2 has become the lowest


def test_initialisation_forgets_requests_and_modes() -> None:
    pic = make_pair()
    pic.set_irq(4, True)
    pic.write(0x21, 0xFF)
    pic.write(0x20, 0x11)
    for word in (0x20, 4, 1):
        pic.write(0x21, word)
    assert pic.read(0x21) == 0
    assert not pic.pending  # the line must rise again
    pic.set_irq(4, False)
    pic.set_irq(4, True)
    assert pic.acknowledge() == 0x24


def test_the_cascade_and_absent_lines_cannot_be_driven() -> None:
    pic = DualPic()
    for irq in (2, 16, -1):
        with pytest.raises(ValueError):
            pic.set_irq(irq, True)


@given(lines=st.integers(1, 255), mask=st.integers(0, 255), lowest=st.integers(0, 7))
def test_the_first_unmasked_line_after_the_lowest_wins(lines: int, mask: int, lowest: int) -> None:
    chip = make_chip()
    chip.write(1, mask)
    chip.write(0, 0xC0 | lowest)
    for line in range(8):
        if lines >> line & 1:
            chip.set_line(line, True)
    order = [(lowest + 1 + step) % 8 for step in range(8)]
    expected = next((line for line in order if lines & ~mask & 1 << line), None)
    assert chip.output is (expected is not None)
    assert chip.acknowledge() == expected


@given(st.lists(st.tuples(st.sampled_from(["raise", "lower", "ack", "eoi", "mask"]), st.integers(0, 255))))
def test_nothing_of_lower_priority_interrupts_what_is_in_service(steps: list[tuple[str, int]]) -> None:
    chip = make_chip()
    for action, value in steps:
        if action in ("raise", "lower"):
            chip.set_line(value & 7, action == "raise")
        elif action == "eoi":
            chip.write(0, 0x20)
        elif action == "mask":
            chip.write(1, value)
        else:
            before = chip.isr
            line = chip.acknowledge()
            if line is not None:
                assert before & (2 << line) - 1 == 0
        assert chip.output is (chip.request() is not None)
        assert 0 <= chip.isr | chip.irr | chip.imr <= 255


@given(
    st.lists(
        st.tuples(st.sampled_from([0x20, 0x21, 0xA0, 0xA1, 0x4D0, 0x4D1]), st.integers(0, 255), st.booleans())
    )
)
def test_any_writes_leave_a_working_pair(writes: list[tuple[int, int, bool]]) -> None:
    pic = DualPic()
    for port, value, also in writes:
        pic.write(port, value)
        assert 0 <= pic.read(port) <= 255
        if also:
            pic.set_irq(value % 16 if value % 16 != 2 else 3, bool(value & 16))
            assert 0 <= pic.acknowledge() <= 255
