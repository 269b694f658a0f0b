"""The shadow tables of both modes say what a walk of the guest's tables says, whatever came before."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.backends.xen.native.shadow import PAGE, ShadowMmu
from runtime.memory import GuestMemory, MemoryRange, PageFault, translate

RAM = 8 << 20
HOST_PAGES = 40
ROOT = 1
"""Frame of the guest's top table; the tables below it follow."""
TABLES = range(0x2000, 0x8000, PAGE)
OWN = 0xFFFF_87FF_FFE0_0000
CR0, CR4, EFER = 0x8001_0001, 0x30, 0xC00
KERNEL_HALF = 0xFFFF_FFFF_8000_0000
PAGES = [slot << 21 | page << 12 | 0x10 for slot in (0, 1) for page in (0, 1, 511)]
LINEAR = st.sampled_from([base | page for base in (0, KERNEL_HALF) for page in PAGES])
ACCESS = st.tuples(LINEAR, st.booleans(), st.booleans(), st.booleans())


class World:
    """A guest's tables, a shadow over them, and the CPU's view of the shadow."""

    def __init__(self, seed: int) -> None:
        self.memory = GuestMemory(RAM, HOST_PAGES * PAGE)
        self.guest = MemoryRange(self.memory.view, RAM)
        self.shadow = ShadowMmu(self.memory, self.guest, RAM, HOST_PAGES, lambda: None)
        self.shadow.map_host(OWN, 0x9000, writable=False, executable=True)
        self.random = random.Random(seed)
        pointers, directory, low, high = TABLES[0], TABLES[1], TABLES[2], TABLES[3]
        for slot in (0, 511):
            self.guest.store_u64(ROOT * PAGE + slot * 8, pointers | 7)
        for slot in (0, 510):
            self.guest.store_u64(pointers + slot * 8, directory | 7)
        self.guest.store_u64(directory, low | 7)
        self.guest.store_u64(directory + 8, high | 7)
        for _ in range(12):
            self.edit()

    def edit(self) -> int:
        """Change one entry of the guest's: the page number of it in its table."""
        table, page = self.random.choice(TABLES[2:4]), self.random.choice((0, 1, 511))
        frame = self.random.randrange(0x10, RAM >> 12)
        flags = self.random.randrange(8) | (self.random.randrange(2) << 63)
        self.guest.store_u64(table + page * 8, frame << 12 | flags)
        return page

    def cpu(self, linear: int, kernel: bool, write: bool, fetch: bool) -> int:
        """Physical address as the CPU, at privilege 3, finds it in the shadow. Raises `PageFault`."""
        return translate(
            self.memory.whole, linear, cr0=CR0, cr3=self.shadow.top_for(kernel, ROOT), cr4=CR4, efer=EFER,
            write=write, user=True, fetch=fetch, mark=False,
        ).physical  # fmt: skip

    def access(self, linear: int, kernel: bool, write: bool, fetch: bool) -> int | None:
        """One access with its fault served, as the machine does it; None if the fault is the guest's."""
        for _ in range(3):
            try:
                return self.cpu(linear, kernel, write, fetch)
            except PageFault:
                try:
                    self.shadow.fill(linear, kernel_mode=kernel, write=write, fetch=fetch)
                except PageFault:
                    return None
        raise AssertionError("the fault comes again and again")

    def architectural(self, linear: int, kernel: bool, write: bool, fetch: bool) -> int | None:
        """What the guest's own tables say."""
        try:
            return self.shadow.walk(ROOT, linear, write=write, user=not kernel, fetch=fetch).physical
        except PageFault:
            return None


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 1 << 30), st.lists(ACCESS, min_size=1, max_size=30))
def test_both_modes_follow_the_guests_tables(seed: int, accesses: list[tuple[int, bool, bool, bool]]) -> None:
    world = World(seed)
    for count, (linear, kernel, write, fetch) in enumerate(accesses):
        wanted = world.architectural(linear, kernel, write, fetch)
        assert world.access(linear, kernel, write, fetch) == wanted
        if count % 7 == 6:
            world.edit()
            world.shadow.flush()


def test_kernel_pages_are_absent_for_user_mode() -> None:
    world = World(1)
    world.guest.store_u64(TABLES[2], 0x40_0000 | 3)  # supervisor's, writable
    assert world.access(0x10, True, True, False) == 0x40_0010
    assert world.access(0x10, False, False, False) is None


def test_own_pages_survive_a_flush_and_are_the_kernels_alone() -> None:
    world = World(2)
    world.shadow.flush()
    assert world.cpu(OWN + 8, True, False, True) == 0x9008
    assert world.access(OWN, False, False, False) is None
    assert world.access(OWN, True, True, False) is None


def test_one_address_is_forgotten_in_both_modes() -> None:
    world = World(3)
    world.guest.store_u64(TABLES[2], 0x40_0000 | 7)
    for kernel in (True, False):
        assert world.access(0x10, kernel, False, False) == 0x40_0010
    world.guest.store_u64(TABLES[2], 0x50_0000 | 7)
    world.shadow.invalidate(0x10)
    for kernel in (True, False):
        assert world.access(0x10, kernel, False, False) == 0x50_0010


def test_accessed_and_dirty_bits_appear_as_in_hardware() -> None:
    world = World(4)
    world.guest.store_u64(TABLES[2], 0x40_0000 | 7)
    world.access(0x10, True, False, False)
    assert world.guest.load_u64(TABLES[2]) & 0x60 == 0x20
    world.access(0x10, True, True, False)
    assert world.guest.load_u64(TABLES[2]) & 0x60 == 0x60


def test_running_out_of_tables_forgets_and_goes_on() -> None:
    world = World(5)
    for slot in range(60):
        world.guest.store_u64(TABLES[0] + slot * 8, 0x83 | 0)
        assert world.access(slot << 30 | 0x10_0010, True, False, True) == 0x10_0010


def test_pages_with_descriptors_cannot_be_written_however_they_are_mapped() -> None:
    world = World(6)
    world.guest.store_u64(TABLES[2], 0x40_0000 | 7)
    assert world.access(0x10, True, True, False) == 0x40_0010
    world.shadow.protect(frozenset({0x40_0000}))
    assert world.access(0x10, True, False, False) == 0x40_0010
    assert world.access(0x10, True, True, False) is None
    world.guest.store_u64(TABLES[1], 0x40_0000 | 0x87)  # within a large page too
    world.shadow.flush()
    assert world.access(0x10, True, True, False) is None
    assert world.access(0x1010, True, True, False) == 0x40_1010
