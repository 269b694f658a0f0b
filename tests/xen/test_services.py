"""Event channels, timers, run state, store, console, grants and memory: what hypercalls and rings do."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.backends.xen.construction import Construction
from runtime.backends.xen.domain import Domain
from runtime.backends.xen.frames import XenError
from runtime.backends.xen.hypercalls import Continue, call
from runtime.backends.xen.layout import ERRNO, PAGE_SIZE, numbers, struct
from runtime.backends.xen.timers import Timers
from tests.devices.board import ManualClock
from tests.xen.domains import check_counts, heap_address, l1_entry_address, make_domain, mfn_at

HYPERCALL = numbers("hypercall")
VCPU, SCHED, EVENT, MEMORY = (numbers(table) for table in ("vcpu", "sched", "event", "memory"))
DOMID_SELF = 0x7FF0
WIDTHS = (32, 64)


def error_of(action: Callable[[], object]) -> ERRNO:
    with pytest.raises(XenError) as caught:
        action()
    return caught.value.errno


def ask(domain: Domain, name: str, *arguments: int) -> int:
    answer = call(domain, HYPERCALL[name], (*arguments, 0, 0, 0, 0, 0))
    assert not isinstance(answer, Continue)
    return answer


def dwords(*values: int) -> bytes:
    return b"".join(value.to_bytes(4, "little") for value in values)


def clock_of(domain: Domain) -> ManualClock:
    clock = domain.timers.clock
    assert isinstance(clock, ManualClock)
    return clock


# -- event channels ------------------------------------------------------------------------------


@pytest.mark.parametrize("width", WIDTHS)
def test_binding_a_virq(width: int) -> None:
    events = make_domain(width)[0].events
    assert error_of(lambda: events.bind_virq(24, 0)) == ERRNO.EINVAL
    assert error_of(lambda: events.bind_virq(0, 1)) == ERRNO.ENOENT
    assert error_of(lambda: events.bind_virq(3, 1)) == ERRNO.EINVAL
    port = events.bind_virq(0, 0)
    assert error_of(lambda: events.bind_virq(0, 0)) == ERRNO.EEXIST
    assert error_of(lambda: events.send(port)) == ERRNO.EINVAL
    assert error_of(lambda: events.bind_vcpu(port, 0)) == ERRNO.EINVAL, "a per-vcpu virq stays"
    events.bind_vcpu(events.bind_virq(3, 0), 0)


@pytest.mark.parametrize("width", WIDTHS)
def test_pending_and_mask_are_bits_by_port(width: int) -> None:
    domain, _ = make_domain(width)
    events, shared = domain.events, struct("shared_info", width)
    port = events.bind_ipi(0)
    mask_at = domain.shared_info + shared.offsets["evtchn_mask"]
    domain.memory.store(mask_at, bytes([1 << port]))
    events.send(port)
    assert events.pending(port)
    assert not domain.upcall_pending
    events.unmask(port)
    assert domain.upcall_pending
    selector = domain.memory.load(domain.vcpu_info + struct("vcpu_info", width).offsets["pending_sel"], 1)
    assert selector == b"\1"


def test_a_pair_of_ports_inside_one_domain() -> None:
    domain, _ = make_domain(64)
    events = domain.events
    assert error_of(lambda: events.alloc_unbound(0, 1)) == ERRNO.EPERM
    assert error_of(lambda: events.alloc_unbound(5, 1)) == ERRNO.ESRCH
    waiting = events.alloc_unbound(DOMID_SELF, DOMID_SELF)
    assert error_of(lambda: events.bind_interdomain(9, waiting)) == ERRNO.ESRCH
    other = events.bind_interdomain(DOMID_SELF, waiting)
    assert error_of(lambda: events.bind_interdomain(DOMID_SELF, waiting)) == ERRNO.EINVAL
    events.send(other)
    assert events.pending(waiting)
    events.close(other)
    assert events.status(waiting)[1].state == "unbound"
    assert error_of(lambda: events.close(other)) == ERRNO.EINVAL


def test_ports_run_out_and_unknown_ones_are_refused() -> None:
    events = make_domain(32)[0].events
    assert error_of(lambda: events.status(64)) == ERRNO.EINVAL
    assert events.status(63)[0] == 0
    while len(events.ports) < 1023:
        events.bind_ipi(0)
    assert error_of(lambda: events.bind_ipi(0)) == ERRNO.ENOSPC


@pytest.mark.parametrize("width", WIDTHS)
def test_status_through_the_hypercall(width: int) -> None:
    domain, parts = make_domain(width)
    heap = heap_address(parts)
    domain.space.write(heap, dwords(0, 0, 0))
    assert ask(domain, "event_channel_op", EVENT["bind_virq"], heap) == 0
    port = domain.space.word(heap + 8, 4)
    domain.space.write(heap, dwords(DOMID_SELF, port))
    assert ask(domain, "event_channel_op", EVENT["status"], heap) == 0
    assert [domain.space.word(heap + at, 4) for at in (8, 12, 16)] == [4, 0, 0]
    domain.space.write(heap, dwords(EVENT["send"], port))
    assert ask(domain, "event_channel_op_compat", heap) == -ERRNO.EINVAL
    assert ask(domain, "event_channel_op", 14, heap) == -ERRNO.ENOSYS


# -- time ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", WIDTHS)
def test_set_timer_op_takes_absolute_nanoseconds(width: int) -> None:
    domain, _ = make_domain(width)
    port = domain.events.bind_virq(0, 0)
    due = 5 << 32 | 77
    if width == 32:
        assert ask(domain, "set_timer_op", due & 0xFFFFFFFF, due >> 32) == 0
    else:
        assert ask(domain, "set_timer_op", due) == 0
    clock_of(domain).advance(due - 1)
    assert not domain.events.pending(port)
    clock_of(domain).advance(1)
    assert domain.events.pending(port)


@pytest.mark.parametrize("due", [1 << 63, (1 << 64) - 1, (1 << 50) + 1000])
def test_an_absurd_time_becomes_100_ms(due: int) -> None:
    domain, _ = make_domain(64)
    port = domain.events.bind_virq(0, 0)
    ask(domain, "set_timer_op", due)
    clock_of(domain).advance(99_999_999)
    assert not domain.events.pending(port)
    clock_of(domain).advance(1)
    assert domain.events.pending(port)


@pytest.mark.parametrize("command", ["set_singleshot_timer", "set_periodic_timer"])
def test_times_beyond_all_sense_never_come(command: str) -> None:
    domain, parts = make_domain(64)
    heap = heap_address(parts)
    far = (1 << 62) - 1 if command == "set_periodic_timer" else (1 << 64) - 1
    domain.space.write(heap, far.to_bytes(8, "little") + dwords(0, 0))
    assert ask(domain, "vcpu_op", VCPU[command], 0, heap) == 0
    assert max(due for due, _, _ in clock_of(domain)._queue) * 4 < 1 << 64


def test_single_shot_and_periodic_timers() -> None:
    domain, parts = make_domain(64)
    heap, clock = heap_address(parts), clock_of(domain)
    port = domain.events.bind_virq(0, 0)
    clock.advance(1000)
    domain.space.write(heap, (999).to_bytes(8, "little") + dwords(1, 0))
    assert ask(domain, "vcpu_op", VCPU["set_singleshot_timer"], 0, heap) == -ERRNO.ETIME
    assert ask(domain, "vcpu_op", VCPU["set_singleshot_timer"], 1, heap) == -ERRNO.ENOENT
    domain.space.write(heap, (999_999).to_bytes(8, "little"))
    assert ask(domain, "vcpu_op", VCPU["set_periodic_timer"], 0, heap) == -ERRNO.EINVAL
    domain.space.write(heap, (1_000_000).to_bytes(8, "little"))
    assert ask(domain, "vcpu_op", VCPU["set_periodic_timer"], 0, heap) == 0
    for _ in range(3):
        clock.advance(1_000_000)
        assert domain.events.pending(port)
        domain.events.form.clear_pending(port)
    assert ask(domain, "vcpu_op", VCPU["stop_periodic_timer"], 0) == 0
    clock.advance(5_000_000)
    assert not domain.events.pending(port)


@given(ticks=st.integers(0, 1 << 62), hz=st.integers(1_000_000, 6_000_000_000))
def test_the_published_scale_turns_ticks_into_nanoseconds(ticks: int, hz: int) -> None:
    timers = Timers(ManualClock(), hz)
    mul, shift = timers.scale()
    assert 1 << 31 <= mul < 1 << 32
    scaled = ticks << shift if shift >= 0 else ticks >> -shift
    exact = ticks * 1_000_000_000 // hz
    lost = (1 << max(0, -shift)) * 1_000_000_000 // hz
    assert abs((scaled * mul >> 32) - exact) <= 2 + lost + exact // (1 << 31)


@pytest.mark.parametrize("width", WIDTHS)
def test_run_state_area_and_time_area_are_kept(width: int) -> None:
    domain, parts = make_domain(width)
    heap, size = heap_address(parts), width // 8
    domain.space.write(heap, (heap + 64).to_bytes(size, "little"))
    assert ask(domain, "vcpu_op", VCPU["register_runstate_memory_area"], 0, heap) == 0
    domain.space.write(heap, (heap + 256).to_bytes(size, "little"))
    assert ask(domain, "vcpu_op", VCPU["register_vcpu_time_memory_area"], 0, heap) == 0
    assert domain.space.word(heap + 256 + 0x18, 4) == 1 << 31
    clock_of(domain).advance(700)
    domain.timers.enter("blocked")
    clock_of(domain).advance(300)
    domain.publish_runstate()
    layout = struct("runstate_info", width)
    at = heap + 64 + layout.offsets["time"]
    assert [domain.space.word(at + 8 * i, 8) for i in range(3)] == [700, 0, 300]
    domain.space.write(heap, parts.hole.extent[0].to_bytes(size, "little"))
    assert ask(domain, "vcpu_op", VCPU["register_runstate_memory_area"], 0, heap) == -ERRNO.EFAULT


def test_a_watchdog_bites_unless_it_is_fed() -> None:
    domain, _ = make_domain(64)
    barks: list[int] = []
    domain.timers.watchdog_barked = lambda: barks.append(domain.timers.now_ns)
    assert error_of(lambda: domain.timers.watchdog(3, 1)) == ERRNO.EINVAL
    assert domain.timers.watchdog(0, 2) == 1
    assert domain.timers.watchdog(0, 9) == 2
    assert error_of(lambda: domain.timers.watchdog(0, 1)) == ERRNO.ENOSPC
    assert domain.timers.watchdog(2, 0) == 0
    clock_of(domain).advance(1_500_000_000)
    assert domain.timers.watchdog(1, 2) == 0
    clock_of(domain).advance(1_999_999_999)
    assert not barks
    clock_of(domain).advance(1)
    assert barks == [3_500_000_000]


def test_poll_wakes_by_port_or_by_time() -> None:
    domain, parts = make_domain(64)
    heap, clock = heap_address(parts), clock_of(domain)
    port = domain.events.bind_ipi(0)
    request = (heap + 64).to_bytes(8, "little") + dwords(1, 0) + (5000).to_bytes(8, "little")
    domain.space.write(heap, request)
    domain.space.write(heap + 64, dwords(port))
    domain.memory.store(domain.shared_info + struct("shared_info", 64).offsets["evtchn_mask"], b"\xff")
    assert ask(domain, "sched_op", SCHED["poll"], heap) == 0
    assert domain.blocked
    domain.events.send(port)
    assert not domain.blocked, "a masked port wakes a poller"
    assert ask(domain, "sched_op", SCHED["poll"], heap) == 0
    assert not domain.blocked, "already pending"
    domain.events.form.clear_pending(port)
    ask(domain, "sched_op", SCHED["poll"], heap)
    clock.advance(5000)
    assert not domain.blocked
    domain.space.write(heap + 8, dwords(129))
    assert ask(domain, "sched_op", SCHED["poll"], heap) == -ERRNO.EINVAL


# -- vcpu_info -------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", WIDTHS)
def test_vcpu_info_moves_once_and_loses_nothing(width: int) -> None:
    domain, parts = make_domain(width)
    heap = heap_address(parts)
    mfn = mfn_at(domain, heap + PAGE_SIZE)

    def register(frame: int, offset: int) -> int:
        domain.space.write(heap, frame.to_bytes(8, "little") + dwords(offset, 0))
        return ask(domain, "vcpu_op", VCPU["register_vcpu_info"], 0, heap)

    assert register(mfn, PAGE_SIZE - 8) == -ERRNO.EINVAL
    assert register(domain.kernel_root, 0) == -ERRNO.EINVAL
    assert register(parts.gdt_frame, 0) == -ERRNO.EINVAL
    domain.upcall_mask = True
    assert register(mfn, 0x40) == 0
    assert domain.vcpu_info == mfn * PAGE_SIZE + 0x40
    assert domain.upcall_mask
    assert domain.upcall_pending
    assert register(mfn, 0x80) == -ERRNO.EINVAL
    check_counts(domain)


# -- memory ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", WIDTHS)
def test_giving_frames_back_and_getting_others(width: int) -> None:
    domain, parts = make_domain(width)
    heap, size = heap_address(parts), width // 8
    page = heap + PAGE_SIZE
    mfn = mfn_at(domain, page)
    before = domain.current_pages

    def reservation(command: str, word: int, order: int = 0) -> int:
        fields = {"extent_start": heap + 512, "nr_extents": 1, "extent_order": order, "domid": DOMID_SELF}
        domain.space.write(heap, bytes(struct("memory_reservation", width).pack(**fields)))
        domain.space.write(heap + 512, word.to_bytes(size, "little"))
        return ask(domain, "memory_op", MEMORY[command], heap)

    assert reservation("populate_physmap", 7) == 0, "the reservation is full"
    assert reservation("decrease_reservation", mfn) == 1
    assert reservation("decrease_reservation", mfn) == 0, "twice"
    check_counts(domain)
    assert domain.current_pages == before, "still mapped"
    domain.tables.write_entry(l1_entry_address(domain, page), 0)
    assert domain.current_pages == before - 1
    check_counts(domain)
    assert reservation("populate_physmap", 1234) == 1
    fresh = domain.space.word(heap + 512, size)
    assert domain.frames.owned(fresh)
    assert int.from_bytes(domain.memory.load(domain.m2p + fresh * size, size), "little") == 1234
    assert reservation("populate_physmap", 0, 10) == 0
    assert reservation("decrease_reservation", parts.gdt_frame) == 0
    check_counts(domain)


def test_exchange_swaps_unused_frames_only() -> None:
    domain, parts = make_domain(64)
    heap = heap_address(parts)
    page = heap + PAGE_SIZE
    mfn = mfn_at(domain, page)
    side = {"nr_extents": 1, "domid": DOMID_SELF}
    inner = struct("memory_reservation", 64)
    request = bytes(inner.pack(extent_start=heap + 512, **side)) + bytes(
        inner.pack(extent_start=heap + 520, **side)
    )
    domain.space.write(heap, request + bytes(8))
    domain.space.write(heap + 512, mfn.to_bytes(8, "little") + (99).to_bytes(8, "little"))
    assert ask(domain, "memory_op", MEMORY["exchange"], heap) == -ERRNO.EINVAL, "mapped"
    domain.tables.write_entry(l1_entry_address(domain, page), 0)
    assert ask(domain, "memory_op", MEMORY["exchange"], heap) == 0
    fresh = domain.space.word(heap + 520, 8)
    assert fresh != mfn
    assert domain.frames.owned(fresh)
    assert not domain.frames.owned(mfn)
    check_counts(domain)


# -- grants ------------------------------------------------------------------------------------------


def grant(domain: Domain, heap: int, mfn: int, flags: int) -> None:
    """Set the table up and let entry 9 grant `mfn` to the domain itself."""
    size = domain.width // 8
    domain.space.write(heap, dwords(DOMID_SELF, 1, 0) + bytes(12))
    list_at = heap + (16 if domain.width == 64 else 12)
    domain.space.write(list_at, (heap + 256).to_bytes(size, "little"))
    assert ask(domain, "grant_table_op", 2, heap, 1) == 0
    table = domain.space.word(heap + 256, size) * PAGE_SIZE
    domain.memory.store(table + 9 * 8, dwords(flags | domain.domid << 16, mfn))


@pytest.mark.parametrize("width", WIDTHS)
def test_a_grant_to_oneself_is_mapped_and_unmapped(width: int) -> None:
    domain, parts = make_domain(width)
    heap = heap_address(parts)
    target = heap + 2 * PAGE_SIZE
    mfn = mfn_at(domain, heap + PAGE_SIZE)
    old = mfn_at(domain, target)
    grant(domain, heap, mfn, 1)

    def operate(flags: int, reference: int = 9) -> int:
        request = target.to_bytes(8, "little") + dwords(flags, reference, domain.domid, 0, 0, 0)
        domain.space.write(heap, request)
        assert ask(domain, "grant_table_op", 0, heap, 1) == 0
        return int.from_bytes(domain.space.read(heap + 18, 2), "little", signed=True)

    assert operate(2, reference=600) == -3
    assert operate(0) == -3
    assert operate(2) == 0
    assert mfn_at(domain, target) == mfn
    check_counts(domain)
    handle = domain.space.word(heap + 20, 4)
    domain.space.write(heap, target.to_bytes(8, "little") + bytes(8) + dwords(handle, 0))
    assert ask(domain, "grant_table_op", 1, heap, 1) == 0
    assert domain.space.word(heap + 20, 2) == 0
    assert domain.tables.walk(domain.kernel_root, target) is None
    assert ask(domain, "grant_table_op", 1, heap, 1) == 0
    assert domain.space.word(heap + 20, 2) == (-4 & 0xFFFF)
    assert domain.frames.owned(old)
    check_counts(domain)


@pytest.mark.parametrize("width", WIDTHS)
def test_a_granted_page_table_is_neither_mapped_writable_nor_copied_to(width: int) -> None:
    domain, parts = make_domain(width)
    heap = heap_address(parts)
    root = domain.kernel_root
    grant(domain, heap, root, 1)
    before = domain.memory.load(root * PAGE_SIZE, PAGE_SIZE)
    request = (heap + 2 * PAGE_SIZE).to_bytes(8, "little") + dwords(2, 9, domain.domid, 0, 0, 0)
    domain.space.write(heap, request)
    assert ask(domain, "grant_table_op", 0, heap, 1) == 0
    assert domain.space.word(heap + 18, 2) == (-1 & 0xFFFF)
    size = width // 8
    pad = b"" if width == 32 else bytes(4)
    source = mfn_at(domain, heap).to_bytes(size, "little") + dwords(domain.domid) + pad
    target = (9).to_bytes(size, "little") + dwords(domain.domid) + pad
    domain.space.write(heap, source + target + dwords(64 | 2 << 16, 0))
    assert ask(domain, "grant_table_op", 5, heap, 1) == 0
    assert domain.space.word(heap + 2 * len(source) + 4, 2) == (-1 & 0xFFFF)
    assert domain.memory.load(root * PAGE_SIZE, PAGE_SIZE) == before
    check_counts(domain)


# -- store and console -----------------------------------------------------------------------------


def store_request(domain: Domain, ring: int, kind: int, payload: bytes) -> tuple[int, bytes]:
    """One request over the ring page, as a guest makes it; (type, payload) of the first answer."""
    memory = domain.memory
    message = dwords(kind, 9, 0, len(payload)) + payload
    producer = int.from_bytes(memory.load(ring + 2052, 4), "little")
    for offset, byte in enumerate(message):
        memory.store(ring + (producer + offset) % 1024, bytes([byte]))
    memory.store(ring + 2052, dwords(producer + len(message)))
    domain.events.send(1)
    consumer = int.from_bytes(memory.load(ring + 2056, 4), "little")

    def take(count: int) -> bytes:
        nonlocal consumer
        data = b"".join(memory.load(ring + 1024 + (consumer + i) % 1024, 1) for i in range(count))
        consumer += count
        memory.store(ring + 2056, dwords(consumer))
        return data

    header = take(16)
    kind, length = int.from_bytes(header[:4], "little"), int.from_bytes(header[12:], "little")
    return kind, take(length)


READ, DIRECTORY, WRITE_NODE, ERROR = 2, 1, 11, 16


def test_the_store_answers_over_its_ring() -> None:
    domain, parts = make_domain(64)
    ring = parts.plan.p2m[parts.plan.store_pfn] * PAGE_SIZE
    assert store_request(domain, ring, READ, b"domid\0") == (READ, b"1")
    assert store_request(domain, ring, READ, b"nothing\0") == (ERROR, b"ENOENT\0")
    assert store_request(domain, ring, WRITE_NODE, b"data/key\0value") == (WRITE_NODE, b"OK\0")
    assert store_request(domain, ring, READ, b"/local/domain/1/data/key\0") == (READ, b"value")
    assert store_request(domain, ring, DIRECTORY, b"data\0") == (DIRECTORY, b"key\0")
    assert store_request(domain, ring, WRITE_NODE, b"/local/domain/0/x\0v") == (ERROR, b"EACCES\0")
    assert domain.events.pending(1)


@given(
    garbage=st.binary(max_size=1024), indices=st.lists(st.integers(0, (1 << 32) - 1), min_size=4, max_size=4)
)
def test_a_broken_store_ring_does_no_harm(garbage: bytes, indices: list[int]) -> None:
    if not _RINGS:
        _RINGS.append(make_domain(64, 4))
    domain, parts = _RINGS[0]
    store_ring = parts.plan.p2m[parts.plan.store_pfn] * PAGE_SIZE
    console_ring = parts.plan.p2m[parts.plan.console_pfn] * PAGE_SIZE
    domain.memory.store(store_ring, garbage)
    domain.memory.store(store_ring + 2048, dwords(*indices))
    domain.memory.store(console_ring + 3072, dwords(*indices))
    domain.events.send(1)
    domain.events.send(2)
    parts.ring.type(b"x")


_RINGS: list[tuple[Domain, Construction]] = []


def test_the_console_ring_both_ways() -> None:
    domain, parts = make_domain(64)
    ring = parts.plan.p2m[parts.plan.console_pfn] * PAGE_SIZE
    domain.memory.store(ring + 1024, b"hello")
    domain.memory.store(ring + 3084, dwords(5))
    domain.events.send(2)
    assert parts.machine.console.output == b"hello"  # type: ignore[attr-defined]
    parts.ring.type(b"ls\r" * 500)
    assert int.from_bytes(domain.memory.load(ring + 3076, 4), "little") == 1024
    domain.memory.store(ring + 3072, dwords(1024))
    domain.events.send(2)
    assert int.from_bytes(domain.memory.load(ring + 3076, 4), "little") == 1500
    assert domain.memory.load(ring, 3) == b"s\rl"


# -- identity --------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", WIDTHS)
def test_xen_version(width: int) -> None:
    domain, parts = make_domain(width)
    heap = heap_address(parts)
    assert ask(domain, "xen_version", 0) == 4 << 16 | 17
    assert ask(domain, "xen_version", 7) == PAGE_SIZE
    assert ask(domain, "xen_version", 7, heap) == -ERRNO.EINVAL
    assert ask(domain, "xen_version", 10, heap) == -ERRNO.EPERM
    assert ask(domain, "xen_version", 99, heap) == -ERRNO.ENOSYS
    assert ask(domain, "xen_version", 9, heap) == 0
    assert domain.space.read(heap, 9) == b"<denied>\0"
    assert ask(domain, "xen_version", 5, heap) == 0
    assert domain.space.word(heap, width // 8) == parts.hole.extent[0]
    domain.space.write(heap, dwords(1, 0))
    assert ask(domain, "xen_version", 6, heap) == -ERRNO.EINVAL
