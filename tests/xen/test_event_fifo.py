"""FIFO event channels; the guest does with its queues what Linux does (drivers/xen/events/events_fifo.c)."""

from __future__ import annotations

import pytest

from runtime.backends.xen.layout import ERRNO, PAGE_SIZE, numbers
from tests.xen.domains import check_counts, heap_address, make_domain, mfn_at
from tests.xen.test_services import ask, dwords

EVENT = numbers("event")
PENDING, MASKED, LINKED = 1 << 31, 1 << 30, 1 << 29
LINK = (1 << 17) - 1
WIDTHS = (32, 64)


class Guest:
    """A domain whose second heap page is its control block, and whose third holds the first event words."""

    def __init__(self, width: int, expand: bool = True) -> None:
        self.domain, self.parts = make_domain(width)
        self.heap = heap_address(self.parts)
        self.control, self.words = self.heap + PAGE_SIZE, self.heap + 2 * PAGE_SIZE
        self.asked = self.init(mfn_at(self.domain, self.control))
        if expand:
            assert self.expand(mfn_at(self.domain, self.words)) == 0

    def call(self, name: str, data: bytes) -> int:
        self.domain.space.write(self.heap, data)
        return ask(self.domain, "event_channel_op", EVENT[name], self.heap)

    def init(self, mfn: int, offset: int = 0, vcpu: int = 0) -> int:
        return self.call("init_control", mfn.to_bytes(8, "little") + dwords(offset, vcpu, 0, 0))

    def expand(self, mfn: int) -> int:
        return self.call("expand_array", mfn.to_bytes(8, "little"))

    def port(self) -> int:
        return self.domain.events.bind_ipi(0)

    def word(self, port: int) -> int:
        return self.domain.space.word(self.words + 4 * port, 4)

    def set_word(self, port: int, value: int) -> None:
        self.domain.space.write(self.words + 4 * port, dwords(value))

    def ready(self) -> int:
        return self.domain.space.word(self.control, 4)

    def consume(self) -> list[int]:
        """Take every event off its queue, the most urgent first, and clear the upcall."""
        found, space = [], self.domain.space
        for priority in range(16):
            if not self.ready() & 1 << priority:
                continue
            port = space.word(self.control + 8 + 4 * priority, 4)
            while port:
                word = self.word(port)
                self.set_word(port, word & ~(LINKED | LINK | PENDING))
                if word & PENDING and not word & MASKED:
                    found.append(port)
                port = word & LINK
        space.write(self.control, dwords(0))
        self.domain.memory.store(self.domain.vcpu_info, b"\0")
        return found


@pytest.mark.parametrize("width", WIDTHS)
def test_events_come_in_order_and_by_priority(width: int) -> None:
    guest = Guest(width)
    events = guest.domain.events
    assert guest.asked == 0
    first, second, third = (guest.port() for _ in range(3))
    assert guest.call("set_priority", dwords(third, 3)) == 0
    for port in (second, first, third, second):
        events.send(port)
    assert guest.domain.upcall_pending
    assert guest.ready() == 1 << 7 | 1 << 3
    assert guest.word(second) == PENDING | LINKED | first
    assert guest.consume() == [third, second, first]
    events.send(first)
    assert guest.consume() == [first], "an emptied queue starts again"
    check_counts(guest.domain)


def test_a_masked_event_is_linked_when_it_is_unmasked() -> None:
    guest = Guest(64)
    port = guest.port()
    guest.set_word(port, MASKED)
    guest.domain.events.send(port)
    assert guest.word(port) == MASKED | PENDING
    assert not guest.domain.upcall_pending
    assert guest.call("unmask", dwords(port)) == 0
    assert guest.word(port) == PENDING | LINKED
    assert guest.consume() == [port]


def test_what_was_pending_before_is_not_lost() -> None:
    domain, parts = make_domain(64)
    early = domain.events.bind_ipi(0)
    domain.events.send(early)
    guest = Guest.__new__(Guest)
    guest.domain, guest.parts, guest.heap = domain, parts, heap_address(parts)
    guest.control, guest.words = guest.heap + PAGE_SIZE, guest.heap + 2 * PAGE_SIZE
    assert guest.init(mfn_at(domain, guest.control)) == 0
    later = guest.port()
    domain.events.send(later)
    assert guest.expand(mfn_at(domain, guest.words)) == 0
    assert sorted(guest.consume()) == [early, later]


def test_a_closed_port_is_not_used_again_while_it_is_on_a_queue() -> None:
    guest = Guest(64)
    port = guest.port()
    guest.domain.events.send(port)
    guest.domain.events.close(port)
    assert guest.word(port) == LINKED
    assert guest.port() != port
    assert guest.consume() == []
    assert guest.port() == port


@pytest.mark.parametrize(
    ("offset", "vcpu", "frame", "errno"),
    [
        (4, 0, "own", ERRNO.EINVAL),
        (PAGE_SIZE - 64, 0, "own", ERRNO.EINVAL),
        (0, 1, "own", ERRNO.ENOENT),
        (0, 0, "table", ERRNO.EINVAL),
        (0, 0, "none", ERRNO.EINVAL),
    ],
)
def test_a_bad_control_block_leaves_the_two_level_form(
    offset: int, vcpu: int, frame: str, errno: ERRNO
) -> None:
    domain, parts = make_domain(64)
    guest = Guest.__new__(Guest)
    guest.domain, guest.heap = domain, heap_address(parts)
    own = mfn_at(domain, guest.heap + PAGE_SIZE)
    mfn = {"own": own, "table": domain.kernel_root, "none": 1 << 40}[frame]
    assert guest.init(mfn, offset, vcpu) == -errno
    assert domain.events.fifo is None
    assert guest.expand(own) == -ERRNO.EOPNOTSUPP
    assert guest.call("set_priority", dwords(1, 1)) == -ERRNO.ENOSYS
    check_counts(domain)


def test_refusals_of_the_fifo_form() -> None:
    guest = Guest(64)
    port = guest.port()
    assert guest.init(mfn_at(guest.domain, guest.control)) == -ERRNO.EINVAL, "there is a control block"
    assert guest.expand(guest.domain.kernel_root) == -ERRNO.EINVAL
    assert guest.call("set_priority", dwords(port, 16)) == -ERRNO.EINVAL
    assert guest.call("set_priority", dwords(4000, 1)) == -ERRNO.EINVAL
    check_counts(guest.domain)


def test_a_reset_gives_the_pages_back() -> None:
    guest = Guest(32)
    assert guest.call("reset", dwords(0x7FF0)) == 0
    assert guest.domain.events.fifo is None
    check_counts(guest.domain)


def test_a_guest_that_writes_nonsense_into_its_words_hurts_only_itself() -> None:
    guest = Guest(64)
    ports = [guest.port() for _ in range(8)]
    for value in (0xFFFFFFFF, LINK, LINKED | 3, PENDING | LINK, 0):
        for port in ports:
            guest.set_word(port, value)
            guest.domain.events.send(port)
            guest.domain.events.unmask(port)
    check_counts(guest.domain)
