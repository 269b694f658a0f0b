"""Direct paging: types, references, pinning, and the error codes of every refusal."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from runtime.backends.xen.construction import Construction
from runtime.backends.xen.domain import Domain
from runtime.backends.xen.frames import PageType, XenError
from runtime.backends.xen.hypercalls import Continue, call
from runtime.backends.xen.layout import ERRNO, PAGE_SIZE, numbers, struct
from runtime.backends.xen.paging import GLOBAL, GUEST_KERNEL, PRESENT, PSE, USER, WRITE
from tests.xen.domains import (
    RecordingCpu,
    check_counts,
    heap_address,
    l1_entry_address,
    make_domain,
    mfn_at,
    table_at,
)

HYPERCALL = numbers("hypercall")
MMUEXT = numbers("mmuext")
DOMID_SELF = 0x7FF0
WIDTHS = (32, 64)
LEAF = PRESENT | WRITE | USER


def error_of(action: Callable[[], object]) -> ERRNO:
    with pytest.raises(XenError) as caught:
        action()
    return caught.value.errno


def mmuext(domain: Domain, at: int, *operations: tuple[str, int, int]) -> int:
    size = domain.width // 8
    data = b"".join(
        MMUEXT[name].to_bytes(size, "little")
        + first.to_bytes(size, "little")
        + second.to_bytes(size, "little")
        for name, first, second in operations
    )
    domain.space.write(at, data)
    result = call(domain, HYPERCALL["mmuext_op"], (at, len(operations), 0, DOMID_SELF))
    assert not isinstance(result, Continue)
    return result


@pytest.mark.parametrize("width", WIDTHS)
def test_a_fresh_domain_holds_exactly_what_its_tables_say(width: int) -> None:
    domain, _ = make_domain(width)
    check_counts(domain)


@pytest.mark.parametrize("width", WIDTHS)
def test_a_page_table_cannot_be_mapped_writable(width: int) -> None:
    domain, parts = make_domain(width)
    entry = l1_entry_address(domain, heap_address(parts))
    table = table_at(domain, heap_address(parts), 1)
    assert error_of(lambda: domain.tables.write_entry(entry, table << 12 | LEAF)) == ERRNO.EBUSY
    domain.tables.write_entry(entry, table << 12 | PRESENT | USER)
    check_counts(domain)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize(
    ("frame", "flags", "errno"),
    [
        ("xen", LEAF, ERRNO.EBUSY),
        ("free", PRESENT, ERRNO.EBUSY),
        ("beyond", PRESENT, ERRNO.EPERM),
        ("invalid", PRESENT, ERRNO.EINVAL),
        ("own", LEAF | PSE, ERRNO.EINVAL),
    ],
)
def test_what_an_l1_entry_may_not_say(width: int, frame: str, flags: int, errno: ERRNO) -> None:
    domain, parts = make_domain(width)
    mfn = {
        "xen": domain.m2p >> 12,
        "free": domain.frames.frames - 1,
        "beyond": domain.frames.frames + 5,
        "invalid": (1 << 40) - 1,
        "own": mfn_at(domain, heap_address(parts)),
    }[frame]
    entry = l1_entry_address(domain, heap_address(parts))
    before = domain.memory.load(entry, 8)
    assert error_of(lambda: domain.tables.write_entry(entry, mfn << 12 | flags)) == errno
    assert domain.memory.load(entry, 8) == before
    check_counts(domain)


@pytest.mark.parametrize("width", WIDTHS)
def test_shared_info_may_be_mapped_but_no_other_frame_of_xen(width: int) -> None:
    domain, parts = make_domain(width)
    entry = l1_entry_address(domain, heap_address(parts))
    domain.tables.write_entry(entry, domain.shared_info | LEAF)
    found = domain.tables.walk(domain.kernel_root, heap_address(parts))
    assert found is not None
    assert found.address == domain.shared_info
    domain.tables.write_entry(entry, 0)
    check_counts(domain)


def test_a_pv64_kernel_entry_becomes_a_user_one_and_keeps_a_mark() -> None:
    domain, parts = make_domain(64)
    address = heap_address(parts)
    entry, mfn = l1_entry_address(domain, address), mfn_at(domain, address)
    domain.tables.write_entry(entry, mfn << 12 | PRESENT | WRITE)
    stored = int.from_bytes(domain.memory.load(entry, 8), "little")
    assert stored & (USER | GUEST_KERNEL | GLOBAL) == USER | GUEST_KERNEL
    domain.tables.write_entry(entry, mfn << 12 | LEAF)
    stored = int.from_bytes(domain.memory.load(entry, 8), "little")
    assert stored & (USER | GUEST_KERNEL | GLOBAL) == USER | GLOBAL


@pytest.mark.parametrize("width", WIDTHS)
def test_pin_holds_one_reference_and_cannot_be_taken_twice(width: int) -> None:
    domain, parts = make_domain(width)
    address = heap_address(parts)
    scratch = address + PAGE_SIZE
    mfn = mfn_at(domain, address)
    assert mmuext(domain, scratch, ("pin_l1_table", mfn, 0)) == -ERRNO.EINVAL, "still mapped writable"
    domain.space.write(address, bytes(PAGE_SIZE))
    domain.tables.write_entry(l1_entry_address(domain, address), mfn << 12 | PRESENT | USER)
    assert mmuext(domain, scratch, ("pin_l1_table", mfn, 0)) == 0
    check_counts(domain)
    assert mmuext(domain, scratch, ("pin_l1_table", mfn, 0)) == -ERRNO.EINVAL
    assert mmuext(domain, scratch, ("pin_l2_table", mfn, 0)) == -ERRNO.EINVAL
    assert mmuext(domain, scratch, ("unpin_table", mfn, 0)) == 0
    assert mmuext(domain, scratch, ("unpin_table", mfn, 0)) == -ERRNO.EINVAL
    check_counts(domain)


@pytest.mark.parametrize("width", WIDTHS)
def test_a_stale_translation_ends_before_its_frame_is_something_else(width: int) -> None:
    """The guest need not flush after an update; the CPU must not write to a page table all the same."""
    domain, parts = make_domain(width)
    cpu = domain.cpu
    assert isinstance(cpu, RecordingCpu)
    address = heap_address(parts)
    for change in ("pin", "free"):
        mfn = mfn_at(domain, address)
        domain.space.write(address, bytes(PAGE_SIZE))
        before = cpu.flushes
        if change == "pin":
            domain.tables.write_entry(l1_entry_address(domain, address), mfn << 12 | PRESENT | USER)
            assert (domain.tables.stale, cpu.flushes) == (True, before)
            domain.tables.pin(mfn, 1)
        else:
            domain.tables.write_entry(l1_entry_address(domain, address), 0)
            assert (domain.tables.stale, cpu.flushes) == (True, before)
            domain.frames.put(mfn)
            assert not domain.frames.owned(mfn)
        assert (domain.tables.stale, cpu.flushes) == (False, before + 1)
        address += PAGE_SIZE


@pytest.mark.parametrize("width", WIDTHS)
def test_a_failed_pin_gives_everything_back(width: int) -> None:
    domain, parts = make_domain(width)
    address = heap_address(parts)
    mfn, other = mfn_at(domain, address), mfn_at(domain, address + PAGE_SIZE)
    entries = domain.memory.entries(mfn)
    entries[:] = 0
    domain.tables.write_entry(l1_entry_address(domain, address), mfn << 12 | PRESENT | USER)
    entries[3] = other << 12 | LEAF
    entries[9] = domain.m2p | PRESENT
    before = int(domain.frames.references[other])
    assert error_of(lambda: domain.tables.pin(mfn, 1)) == ERRNO.EBUSY
    assert int(domain.frames.references[other]) == before
    check_counts(domain)


@pytest.mark.parametrize("width", WIDTHS)
def test_xens_slots_are_not_the_guests_to_change(width: int) -> None:
    domain, _ = make_domain(width)
    if width == 64:
        slots = [(domain.kernel_root, 256), (domain.kernel_root, 271)]
    else:
        slots = [(domain.kernel_root, 3), (table_at(domain, 0xC0000000, 2), 0xF5800000 >> 21 & 511)]
    for table, index in slots:
        assert error_of(lambda t=table, i=index: domain.tables.write_entry(t * PAGE_SIZE + i * 8, 0)) == (
            ERRNO.EINVAL
        )


def test_a_table_below_itself_is_read_only_or_refused() -> None:
    domain, _ = make_domain(64)
    root = domain.kernel_root
    slot = root * PAGE_SIZE + 8 * 5
    assert error_of(lambda: domain.tables.write_entry(slot, root << 12 | LEAF)) == ERRNO.EINVAL
    domain.tables.write_entry(slot, root << 12 | PRESENT | USER)
    check_counts(domain)
    domain.tables.write_entry(slot, 0)
    check_counts(domain)


@pytest.mark.parametrize("way", ["update", "multicall", "pin"])
def test_a_pv32_top_level_table_may_not_refer_to_itself(way: str) -> None:
    """Xen makes its entries writable: there is no linear L3 in get_page_from_l3e for such guests."""
    domain, parts = make_domain(32)
    heap = heap_address(parts)
    address = heap + PAGE_SIZE
    mfn = mfn_at(domain, address)
    root = domain.kernel_root * PAGE_SIZE
    itself = mfn << 12 | PRESENT
    if way == "pin":
        domain.memory.entries(mfn)[:4] = domain.memory.entries(domain.kernel_root)[:4]
        domain.memory.entries(mfn)[1] = itself
        domain.tables.write_entry(l1_entry_address(domain, address), mfn << 12 | PRESENT | USER)
        assert mmuext(domain, heap, ("pin_l3_table", mfn, 0)) == -ERRNO.EINVAL
        check_counts(domain)
        return
    own = domain.kernel_root << 12 | PRESENT
    domain.space.write(heap, (root + 8).to_bytes(8, "little") + own.to_bytes(8, "little"))
    arguments = (heap, 1, 0, DOMID_SELF)
    if way == "update":
        assert call(domain, HYPERCALL["mmu_update"], arguments) == -ERRNO.EINVAL
    else:
        words = (HYPERCALL["mmu_update"], 0, *arguments, 0, 0)
        domain.space.write(heap + 64, b"".join(word.to_bytes(4, "little") for word in words))
        assert call(domain, HYPERCALL["multicall"], (heap + 64, 1)) == 0
        assert domain.space.word(heap + 68, 4) == (1 << 32) - ERRNO.EINVAL
    check_counts(domain)


def test_linear_tables_do_not_form_chains() -> None:
    domain, parts = make_domain(64)
    tables = []
    for page in range(3):
        address = heap_address(parts, page * PAGE_SIZE)
        mfn = mfn_at(domain, address)
        domain.memory.entries(mfn)[:] = 0
        domain.tables.write_entry(l1_entry_address(domain, address), mfn << 12 | PRESENT | USER)
        domain.tables.pin(mfn, 4)
        tables.append(mfn)
    first, second, third = tables
    flags = PRESENT | USER
    domain.tables.write_entry(first * PAGE_SIZE, second << 12 | flags)
    assert (
        error_of(lambda: domain.tables.write_entry(second * PAGE_SIZE, third << 12 | flags)) == ERRNO.EINVAL
    )
    assert error_of(lambda: domain.tables.write_entry(third * PAGE_SIZE, first << 12 | flags)) == ERRNO.EINVAL
    check_counts(domain)
    domain.tables.unpin(second)
    check_counts(domain)
    domain.tables.write_entry(first * PAGE_SIZE, 0)
    check_counts(domain)
    assert domain.frames.kind[second] == PageType.NONE


def test_a_frame_cannot_be_two_levels_of_its_own_tree() -> None:
    domain, parts = make_domain(64)
    address = heap_address(parts)
    mfn = mfn_at(domain, address)
    domain.memory.entries(mfn)[:] = 0
    domain.memory.entries(mfn)[0] = mfn << 12 | LEAF
    domain.tables.write_entry(l1_entry_address(domain, address), mfn << 12 | PRESENT | USER)
    for level in (2, 3, 4):
        assert error_of(lambda n=level: domain.tables.pin(mfn, n)) == ERRNO.EINVAL
    assert error_of(lambda: domain.tables.pin(mfn, 1)) == ERRNO.EBUSY
    check_counts(domain)


def test_pv32_needs_its_last_l2_and_gets_the_hole_in_it() -> None:
    domain, parts = make_domain(32)
    address = heap_address(parts)
    mfn = mfn_at(domain, address)
    domain.memory.entries(mfn)[:] = 0
    domain.tables.write_entry(l1_entry_address(domain, address), mfn << 12 | PRESENT | USER)
    assert error_of(lambda: domain.tables.pin(mfn, 3)) == ERRNO.EINVAL
    shared = table_at(domain, 0xC0000000, 2)
    domain.memory.entries(mfn)[0] = shared << 12 | PRESENT
    domain.memory.entries(mfn)[3] = shared << 12 | PRESENT
    assert error_of(lambda: domain.tables.pin(mfn, 3)) == ERRNO.EINVAL, "the last L2 is not an ordinary one"
    hole = domain.tables.hole
    assert [int(v) for v in domain.memory.entries(shared)[hole.first :]] == list(hole.values)
    check_counts(domain)


@pytest.mark.parametrize("width", WIDTHS)
def test_descriptor_pages_are_checked_and_mended(width: int) -> None:
    domain, parts = make_domain(width)
    address, scratch = heap_address(parts), heap_address(parts, PAGE_SIZE)
    mfn = mfn_at(domain, address)
    ring0_code, tss = 0x00CF9A000000FFFF, 0x0000890000000067
    domain.space.write(address, bytes(8) + ring0_code.to_bytes(8, "little"))
    domain.space.write(scratch, mfn.to_bytes(width // 8, "little"))
    set_gdt = HYPERCALL["set_gdt"]
    assert call(domain, set_gdt, (scratch, 512)) == -ERRNO.EINVAL, "mapped writable"
    domain.tables.write_entry(l1_entry_address(domain, address), mfn << 12 | PRESENT | USER)
    assert call(domain, set_gdt, (scratch, 512)) == 0
    mended = int(domain.memory.entries(mfn)[1])
    assert mended >> 45 & 3 == (1 if width == 32 else 3)
    check_counts(domain)
    update = HYPERCALL["update_descriptor"]
    at = mfn * PAGE_SIZE + 16

    def arguments(value: int) -> tuple[int, ...]:
        if width == 64:
            return (at, value)
        return (at & 0xFFFFFFFF, at >> 32, value & 0xFFFFFFFF, value >> 32)

    assert call(domain, update, arguments(tss)) == -ERRNO.EINVAL
    assert call(domain, update, arguments(ring0_code)) == 0
    assert call(domain, set_gdt, (scratch, 14 * 512 + 1)) == -ERRNO.EINVAL
    assert call(domain, set_gdt, (0, 0)) == 0
    check_counts(domain)


def test_the_ldt_is_checked_when_used_and_let_go_when_unmapped() -> None:
    domain, parts = make_domain(64)
    address, scratch = heap_address(parts), heap_address(parts, PAGE_SIZE)
    mfn = mfn_at(domain, address)
    domain.space.write(address, (0x00CFFA000000FFFF).to_bytes(8, "little"))
    assert mmuext(domain, scratch, ("set_ldt", address + 8, 4)) == -ERRNO.EINVAL
    assert mmuext(domain, scratch, ("set_ldt", address, 8193)) == -ERRNO.EINVAL
    assert mmuext(domain, scratch, ("set_ldt", address, 4)) == 0
    assert not domain.map_ldt_page(0), "the page is mapped writable"
    entry = l1_entry_address(domain, address)
    domain.tables.write_entry(entry, mfn << 12 | PRESENT | USER)
    assert domain.map_ldt_page(0)
    assert not domain.map_ldt_page(1)
    check_counts(domain)
    domain.tables.write_entry(entry, 0)
    assert domain.frames.kind[mfn] == PageType.NONE
    check_counts(domain)


# -- any sequence of operations ------------------------------------------------------------------

PAGES = 6
OPERATION = st.tuples(
    st.sampled_from(["entry", "pin", "unpin", "base", "user", "map", "release", "populate", "gdt", "ldt"]),
    st.integers(0, PAGES - 1),
    st.integers(0, PAGES - 1),
    st.integers(0, 7),
    st.sampled_from([0, PRESENT, PRESENT | USER, LEAF, LEAF | PSE]),
)


def apply(
    domain: Domain, parts: Construction, pages: list[int], operation: tuple[str, int, int, int, int]
) -> None:
    name, first, second, index, flags = operation
    mfn, other = pages[first], pages[second]
    base = heap_address(parts)
    scratch = base + PAGES * PAGE_SIZE
    if name == "entry":
        domain.tables.write_entry(mfn * PAGE_SIZE + index * 8, other << 12 | flags if flags else 0)
    elif name == "pin":
        domain.tables.pin(mfn, 1 + index % domain.tables.top_level)
    elif name == "unpin":
        domain.tables.unpin(mfn)
    elif name in ("base", "user"):
        command = "new_baseptr" if name == "base" else "new_user_baseptr"
        keep = domain.kernel_root
        mmuext(domain, scratch, (command, mfn, 0))
        if domain.kernel_root != keep:
            # The new tree does not map the test's own scratch page: go back through the model.
            domain.tables.get_root(keep)
            old, domain.kernel_root = domain.kernel_root, keep
            domain.tables.put_type(old)
    elif name == "map":
        domain.tables.write_entry(l1_entry_address(domain, base + first * PAGE_SIZE), other << 12 | flags)
    elif name in ("release", "populate"):
        command = numbers("memory")["decrease_reservation" if name == "release" else "populate_physmap"]
        size = domain.width // 8
        word = mfn if name == "release" else first
        domain.space.write(scratch + 256, word.to_bytes(size, "little"))
        fields = {"extent_start": scratch + 256, "nr_extents": 1, "domid": DOMID_SELF}
        domain.space.write(scratch, bytes(struct("memory_reservation", domain.width).pack(**fields)))
        call(domain, HYPERCALL["memory_op"], (command, scratch))
    elif name == "gdt":
        domain.space.write(scratch, mfn.to_bytes(domain.width // 8, "little"))
        call(domain, HYPERCALL["set_gdt"], (scratch, 512 if flags else 0))
    elif name == "ldt":
        mmuext(domain, scratch, ("set_ldt", base + first * PAGE_SIZE, 512))
        domain.map_ldt_page(0)


@pytest.mark.parametrize("width", WIDTHS)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(operations=st.lists(OPERATION, max_size=25))
def test_counts_balance_after_any_operations(
    width: int, operations: list[tuple[str, int, int, int, int]]
) -> None:
    domain, parts = make_domain(width, 4)
    base = heap_address(parts)
    pages = [mfn_at(domain, base + page * PAGE_SIZE) for page in range(PAGES)]
    for page, mfn in enumerate(pages):
        domain.tables.write_entry(
            l1_entry_address(domain, base + page * PAGE_SIZE), mfn << 12 | PRESENT | USER
        )
        domain.memory.entries(mfn)[:] = 0
    for operation in operations:
        with contextlib.suppress(XenError):
            apply(domain, parts, pages, operation)
        domain.work_done = 0
    check_counts(domain)
