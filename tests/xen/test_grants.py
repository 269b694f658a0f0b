"""Grants to oneself: both versions of the table, mappings for a device, entries that change places."""

from __future__ import annotations

import pytest

from runtime.backends.xen.layout import PAGE_SIZE
from tests.xen.domains import check_counts, heap_address, l1_entry_address, make_domain, mfn_at
from tests.xen.test_services import ask, dwords

MAP, UNMAP, SETUP, COPY, REPLACE = 0, 1, 2, 5, 7
SET_VERSION, STATUS_FRAMES, GET_VERSION, SWAP = 8, 9, 10, 11
DEVICE, HOST, READ_ONLY, APPLICATION, BY_ENTRY = 1, 2, 4, 8, 16
OKAY, GENERAL, BAD_REF, BAD_HANDLE, BAD_BUS, EAGAIN = 0, -1, -3, -4, -6, -12
READING, WRITING = 8, 16
REF = 9
SELF = 0x7FF0
WIDTHS = (32, 64)


class Guest:
    """A domain that grants its fourth heap page to itself as entry 9."""

    def __init__(self, width: int, version: int = 1) -> None:
        self.domain, parts = make_domain(width)
        self.size, self.version = width // 8, version
        self.heap = heap_address(parts)
        self.target, self.spare = self.heap + 2 * PAGE_SIZE, self.heap + 4 * PAGE_SIZE
        self.mfn = mfn_at(self.domain, self.heap + 3 * PAGE_SIZE)
        self.domain.space.write(self.heap, dwords(version))
        assert ask(self.domain, "grant_table_op", SET_VERSION, self.heap, 1) == 0
        self.give(REF, 1)

    def give(self, reference: int, flags: int, extra: bytes = bytes(4), frame: int | None = None) -> None:
        address = self.domain.grants.entry_address(reference)
        assert address is not None
        head, frame = dwords(flags | self.domain.domid << 16), self.mfn if frame is None else frame
        wide = head + extra + frame.to_bytes(8, "little")
        self.domain.memory.store(address, head + dwords(frame) if self.version == 1 else wide)

    def operate(self, command: int, request: bytes, status_at: int) -> int:
        self.domain.space.write(self.heap, request)
        assert ask(self.domain, "grant_table_op", command, self.heap, 1) == 0
        raw = self.domain.space.read(self.heap + status_at, 2)
        return int.from_bytes(raw, "little", signed=True)

    def map(self, flags: int, host: int | None = None, reference: int = REF) -> int:
        host = self.target if host is None else host
        request = host.to_bytes(8, "little") + dwords(flags, reference, self.domain.domid, 0, 0, 0)
        return self.operate(MAP, request, 18)

    @property
    def handle(self) -> int:
        return self.domain.space.word(self.heap + 20, 4)

    def unmap(self, handle: int, host: int = 0, bus: int = 0) -> int:
        request = host.to_bytes(8, "little") + bus.to_bytes(8, "little") + dwords(handle, 0)
        return self.operate(UNMAP, request, 20)

    def in_use(self) -> int:
        grants = self.domain.grants
        address = grants.entry_address(REF)
        assert address is not None
        if self.version == 2:
            address = grants.status[0] * PAGE_SIZE + 2 * REF
        return int.from_bytes(self.domain.memory.load(address, 2), "little") & (READING | WRITING)


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("width", WIDTHS)
def test_a_mapping_shows_in_the_entry_or_its_status(width: int, version: int) -> None:
    guest = Guest(width, version)
    assert guest.map(HOST | READ_ONLY) == OKAY
    assert guest.in_use() == READING
    handle = guest.handle
    assert guest.map(HOST, guest.spare) == OKAY
    assert guest.in_use() == READING | WRITING
    check_counts(guest.domain)
    assert guest.unmap(guest.handle, guest.spare) == OKAY
    assert guest.in_use() == READING
    assert guest.unmap(handle, guest.target) == OKAY
    assert guest.in_use() == 0
    check_counts(guest.domain)


@pytest.mark.parametrize("width", WIDTHS)
def test_a_mapping_for_a_device_is_taken_away_on_its_own(width: int) -> None:
    guest = Guest(width)
    assert guest.map(DEVICE | HOST) == OKAY
    handle, bus = guest.handle, guest.domain.space.word(guest.heap + 24, 8)
    assert bus == guest.mfn * PAGE_SIZE
    check_counts(guest.domain)
    assert guest.unmap(handle, guest.target, bus + PAGE_SIZE) == BAD_BUS
    assert guest.unmap(handle, 0, bus) == OKAY
    check_counts(guest.domain)
    assert guest.unmap(handle, guest.target) == OKAY
    assert guest.unmap(handle, guest.target) == BAD_HANDLE
    assert guest.map(DEVICE) == OKAY, "no entry is needed for it"
    assert guest.unmap(guest.handle, 0, bus) == OKAY
    check_counts(guest.domain)


def test_an_unmapping_names_where_the_frame_is() -> None:
    guest = Guest(64)
    assert guest.map(HOST) == OKAY
    handle = guest.handle
    assert guest.unmap(handle, guest.spare) == GENERAL
    assert guest.unmap(handle) == OKAY, "of nothing"
    assert guest.unmap(handle, guest.target) == OKAY
    entry = l1_entry_address(guest.domain, guest.target)
    assert guest.map(HOST | BY_ENTRY, entry) == OKAY
    assert guest.unmap(guest.handle, entry) == OKAY
    check_counts(guest.domain)


@pytest.mark.parametrize("flags", [0, APPLICATION])
def test_the_entry_is_no_code_and_the_kernels_unless_asked_otherwise(flags: int) -> None:
    guest = Guest(32)
    assert guest.map(HOST | flags | 5 << 16) == OKAY
    found = guest.domain.tables.walk(guest.domain.kernel_root, guest.target)
    assert found is not None
    assert found.entry >> 63 == 1
    assert found.entry >> 9 & 7 == 5
    assert bool(found.entry & 4) == bool(flags)


@pytest.mark.parametrize("width", WIDTHS)
def test_unmap_and_replace_moves_an_entry(width: int) -> None:
    guest = Guest(width)
    assert guest.map(HOST) == OKAY
    other = mfn_at(guest.domain, guest.spare)

    def replace(handle: int, new: int) -> int:
        request = guest.target.to_bytes(8, "little") + new.to_bytes(8, "little") + dwords(handle, 0)
        return guest.operate(REPLACE, request, 20)

    handle = guest.handle
    assert replace(handle + 1, guest.spare) == BAD_HANDLE
    assert replace(handle, guest.spare) == OKAY
    assert mfn_at(guest.domain, guest.target) == other
    assert guest.domain.tables.walk(guest.domain.kernel_root, guest.spare) is None
    assert guest.in_use() == 0
    check_counts(guest.domain)


def test_the_version_changes_and_keeps_the_toolstacks_entries() -> None:
    guest = Guest(64)
    grants = guest.domain.grants
    console = grants.entry(0)
    assert console is not None and console.flags == 1 and console.domid == 0
    assert guest.map(HOST) == OKAY
    handle = guest.handle
    guest.domain.space.write(guest.heap, dwords(2))
    assert ask(guest.domain, "grant_table_op", SET_VERSION, guest.heap, 1) == -16, "an entry is in use"
    assert guest.domain.space.word(guest.heap, 4) == 1
    assert guest.unmap(handle, guest.target) == OKAY
    guest.domain.space.write(guest.heap, dwords(2))
    assert ask(guest.domain, "grant_table_op", SET_VERSION, guest.heap, 1) == 0
    assert grants.entry(0) == console
    assert guest.map(HOST) == GENERAL, "the others are cleared"
    guest.domain.space.write(guest.heap, dwords(SELF, 0))
    assert ask(guest.domain, "grant_table_op", GET_VERSION, guest.heap, 1) == 0
    assert guest.domain.space.word(guest.heap + 4, 4) == 2
    guest.domain.space.write(guest.heap, dwords(3))
    assert ask(guest.domain, "grant_table_op", SET_VERSION, guest.heap, 1) == -22


@pytest.mark.parametrize(("wanted", "version", "status"), [(1, 2, OKAY), (2, 2, GENERAL), (1, 1, GENERAL)])
def test_status_frames(wanted: int, version: int, status: int) -> None:
    guest = Guest(64, version)
    request = dwords(wanted, SELF) + (guest.heap + 64).to_bytes(8, "little")
    assert guest.operate(STATUS_FRAMES, request, 6) == status
    if status == OKAY:
        assert guest.domain.space.word(guest.heap + 64, 8) == guest.domain.grants.status[0]


def copy(guest: Guest, reference: int, offset: int, length: int) -> int:
    own = mfn_at(guest.domain, guest.heap + PAGE_SIZE)
    pad = bytes(4)
    source = reference.to_bytes(8, "little") + dwords(guest.domain.domid | offset << 16) + pad
    target = own.to_bytes(8, "little") + dwords(guest.domain.domid) + pad
    return guest.operate(COPY, source + target + dwords(length | 1 << 16, 0), 36)


def test_parts_of_pages_and_grants_passed_on_are_copied() -> None:
    guest = Guest(64, 2)
    guest.domain.space.write(guest.heap + 3 * PAGE_SIZE + 0x100, b"in the middle")
    guest.give(REF, 1 | 4 | 1 << 8, dwords(0x100 | 0x20 << 16))
    assert copy(guest, REF, 0x100, 13) == OKAY
    assert guest.domain.space.read(guest.heap + PAGE_SIZE, 13) == b"in the middle"
    assert copy(guest, REF, 0x0F0, 13) == GENERAL
    assert copy(guest, REF, 0x110, 0x20) == GENERAL
    assert guest.map(HOST | READ_ONLY) == GENERAL, "a part of a page cannot be mapped"
    address = guest.domain.grants.entry_address(REF + 1)
    assert address is not None
    head = dwords(3 | guest.domain.domid << 16, guest.domain.domid, REF)
    guest.domain.memory.store(address, head + bytes(4))
    assert copy(guest, REF + 1, 0x100, 13) == OKAY


def test_entries_change_places_unless_they_are_in_use() -> None:
    guest = Guest(64)
    assert guest.operate(SWAP, dwords(REF, REF + 1, 0), 8) == OKAY
    assert guest.map(HOST) == GENERAL
    assert guest.map(HOST, reference=REF + 1) == OKAY
    assert guest.operate(SWAP, dwords(REF, REF + 1, 0), 8) == EAGAIN
    assert guest.operate(SWAP, dwords(REF, 1 << 20, 0), 8) == BAD_REF
