"""A hostile guest: every hypercall number with wrong pointers, counts, frames and commands.

Whatever it asks, the answer is a number (or "make the call again"), nothing that is Xen's changes, the counts
still balance, and a call does a bounded amount of work.
"""

from __future__ import annotations

import contextlib
import hashlib

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from runtime.backends.xen.construction import Construction
from runtime.backends.xen.domain import WORK_LIMIT, Domain
from runtime.backends.xen.frames import DOMAIN, XEN, XenError
from runtime.backends.xen.hypercalls import Continue, call
from runtime.backends.xen.layout import ERRNO, PAGE_SIZE, numbers, struct
from tests.xen.domains import check_counts, heap_address, make_domain

HYPERCALL = numbers("hypercall")
WIDTHS = (32, 64)
DOMID_SELF = 0x7FF0
ERRORS = {-int(code) for code in ERRNO}
LARGEST_RESULT = 1 << 32


def xen_state(domain: Domain, parts: Construction) -> str:
    """A digest of every frame that is Xen's and that the guest has no business with."""
    shared = {domain.shared_info >> 12, *domain.grants.shared, *domain.grants.status}
    m2p = range(domain.m2p >> 12, (domain.m2p >> 12) + 4096)
    digest = hashlib.sha256()
    for mfn in range(domain.frames.frames):
        if domain.frames.owner[mfn] == XEN and mfn not in shared and mfn not in m2p:
            digest.update(domain.memory.load(mfn * PAGE_SIZE, PAGE_SIZE))
    return digest.hexdigest()


def m2p_of_others(domain: Domain) -> bytes:
    """The M2P entries of frames that are not the domain's."""
    size = domain.width // 8
    return b"".join(
        domain.memory.load(domain.m2p + mfn * size, size)
        for mfn in range(domain.frames.frames)
        if domain.frames.owner[mfn] == XEN
    )


def check_answer(answer: int | Continue) -> None:
    if isinstance(answer, Continue):
        assert len(answer.arguments) <= 6
    else:
        assert answer in ERRORS or 0 <= answer < LARGEST_RESULT


def wild_values(parts: Construction) -> list[int]:
    """Numbers that mean something to some hypercall, and others that mean nothing."""
    width = parts.width
    top = (1 << width) - 1
    heap = heap_address(parts)
    return [
        0, 1, 2, 3, 7, 8, 63, 64, 255, 0x7FF0, 0x7FF1, 0xFFFF, 1 << 31, (1 << 31) - 1, top, top - 7, top >> 1,
        heap, heap + 1, heap + PAGE_SIZE - 4, parts.plan.start_info, parts.hole.extent[0],
        parts.domain.kernel_root, parts.domain.kernel_root * PAGE_SIZE, parts.gdt_frame,
        parts.domain.shared_info, parts.domain.m2p, parts.domain.frames.frames, 1 << 40 & top,
    ]  # fmt: skip


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("number", [*range(56), 57, 127, 128, 255, 0x7FFFFFFF, 0xFFFFFFFF])
def test_every_number_with_wild_arguments(width: int, number: int) -> None:
    domain, parts = make_domain(width)
    before, others = xen_state(domain, parts), m2p_of_others(domain)
    values = wild_values(parts)
    for index, first in enumerate(values):
        arguments = [first] + [values[(index * (k + 3) + 5 * k + number) % len(values)] for k in range(1, 6)]
        domain.work_done = 0
        check_answer(call(domain, number, arguments))
        assert domain.work_done <= WORK_LIMIT + 512
    if number not in HYPERCALL.values():
        assert call(domain, number, [0] * 6) == -ERRNO.ENOSYS
    if domain.kernel_root:
        check_counts(domain)
    assert xen_state(domain, parts) == before
    assert m2p_of_others(domain) == others


@st.composite
def requests(draw: st.DrawFn) -> tuple[int, list[int], list[int]]:
    """A hypercall, choices of arguments, and words to put into the structures that it reads."""
    number = draw(st.sampled_from(sorted(HYPERCALL.values())))
    arguments = draw(st.lists(st.integers(0, 63), min_size=6, max_size=6))
    words = draw(st.lists(st.integers(0, 63), min_size=24, max_size=24))
    return number, arguments, words


@pytest.mark.parametrize("width", WIDTHS)
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(batch=st.lists(requests(), min_size=1, max_size=12))
def test_structures_full_of_nonsense(width: int, batch: list[tuple[int, list[int], list[int]]]) -> None:
    domain, parts = make_domain(width, 4)
    before, others = xen_state(domain, parts), m2p_of_others(domain)
    values = wild_values(parts) + list(range(32))
    size = width // 8
    heap = heap_address(parts)
    for number, arguments, words in batch:
        data = b"".join(values[word % len(values)].to_bytes(size, "little") for word in words)
        if domain.tables.walk(domain.kernel_root, heap) is not None:
            with contextlib.suppress(XenError):  # the guest may have made its own page read-only
                domain.space.write(heap, data)
        picked = [values[a % len(values)] for a in arguments]
        picked[1 + words[0] % 2] = heap
        domain.work_done = 0
        check_answer(call(domain, number, picked))
        assert domain.work_done <= WORK_LIMIT + 512
    check_counts(domain)
    assert xen_state(domain, parts) == before
    assert m2p_of_others(domain) == others


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", ["mmu_update", "mmuext_op", "multicall"])
def test_a_huge_count_is_refused_or_done_in_parts(width: int, name: str) -> None:
    domain, parts = make_domain(width)
    heap = heap_address(parts)
    assert call(domain, HYPERCALL[name], (heap, 0x7FFFFFFF, 0, DOMID_SELF)) in (
        -ERRNO.EFAULT,
        -ERRNO.EINVAL,
        -ERRNO.ENOSYS,
        0,
    )


def test_a_long_list_is_continued_where_it_stopped() -> None:
    """The same frame, full of valid updates, mapped many times in a row."""
    domain, parts = make_domain(64)
    heap = heap_address(parts)
    page = domain.tables.walk(domain.kernel_root, heap)
    plain = domain.tables.walk(domain.kernel_root, heap + 64 * PAGE_SIZE)
    assert page is not None
    assert plain is not None
    update = plain.address.to_bytes(8, "little") + (0x1234).to_bytes(8, "little")
    domain.memory.store(page.address, update * (PAGE_SIZE // 16))
    for index in range(1, 32):
        entry = domain.tables.leaf_entry(domain.kernel_root, heap + index * PAGE_SIZE)
        assert entry is not None
        domain.tables.write_entry(entry, page.entry)
    count, done_at = 16 * 256 * 2, heap + 80 * PAGE_SIZE
    arguments: tuple[int, ...] = (heap, count, done_at, DOMID_SELF)
    rounds = 0
    while True:
        domain.work_done = 0
        answer = call(domain, HYPERCALL["mmu_update"], arguments)
        if not isinstance(answer, Continue):
            break
        arguments = answer.arguments
        rounds += 1
        assert rounds < 10
    assert answer == 0
    assert rounds >= count // WORK_LIMIT - 1
    assert domain.space.word(done_at, 4) == count
    check_counts(domain)


def test_a_trap_table_without_an_end_stops_at_the_first_unmapped_page() -> None:
    domain, parts = make_domain(64)
    heap = heap_address(parts)
    entry = struct("trap_info", 64).pack(vector=3, flags=3, cs=0xE033, address=0xFFFFFFFF80000000)
    at = heap
    while domain.tables.walk(domain.kernel_root, at) is not None:
        domain.space.write(at, bytes(entry) * (PAGE_SIZE // 16))
        at += PAGE_SIZE
    arguments: tuple[int, ...] = (heap,)
    for _ in range(1000):
        domain.work_done = 0
        answer = call(domain, HYPERCALL["set_trap_table"], arguments)
        if not isinstance(answer, Continue):
            break
        arguments = answer.arguments
    assert answer == -ERRNO.EFAULT


@pytest.mark.parametrize("width", WIDTHS)
def test_multicall_runs_in_order_and_does_not_nest(width: int) -> None:
    domain, parts = make_domain(width)
    heap = heap_address(parts)
    layout = struct("multicall_entry", width)
    calls = [HYPERCALL["xen_version"], HYPERCALL["multicall"], 11, HYPERCALL["set_gdt"]]
    for index, number in enumerate(calls):
        domain.space.write(heap + index * layout.size, bytes(layout.pack(op=number)))
    assert call(domain, HYPERCALL["multicall"], (heap, len(calls))) == 0
    results = [
        domain.space.fields(heap + index * layout.size, layout)["result"] for index in range(len(calls))
    ]
    mask = (1 << width) - 1
    assert results == [4 << 16 | 17, -ERRNO.EINVAL & mask, -ERRNO.ENOSYS & mask, 0]


@pytest.mark.parametrize("width", WIDTHS)
def test_copies_never_reach_into_the_hole(width: int) -> None:
    domain, parts = make_domain(width)
    for address in (parts.hole.extent[0], parts.hole.extent[0] - 2, parts.hole.gdt & ((1 << width) - 1)):
        answer = call(domain, HYPERCALL["xen_version"], (numbers("version")["capabilities"], address))
        assert answer == -ERRNO.EFAULT
    assert all(domain.frames.owner[mfn] == DOMAIN for mfn in parts.plan.p2m)
