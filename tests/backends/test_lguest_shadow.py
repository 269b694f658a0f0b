"""The shadow tables say exactly what a walk of the guest's tables says, whatever came before."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.deprivileged.shadow import PAGE, ShadowMmu
from runtime.memory import GuestMemory, MemoryRange, PageFault, translate

RAM = 4 << 20
HOST_PAGES = 24
ROOT = 0x1000
TABLES = (0x2000, 0x3000, 0x4000)
CR0, CR4_PAE, NXE = 0x8001_0001, 0x20, 0x800
LINEAR = st.sampled_from([slot << 22 | page << 12 | 0x10 for slot in range(4) for page in (0, 1, 5, 1023)])
ENTRY = st.tuples(st.integers(0, (RAM >> 12) - 1), st.integers(0, 7))
ACCESS = st.tuples(LINEAR, st.booleans(), st.booleans(), st.booleans())


class World:
    """Memory with a shadow over it, and the CPU's view of the shadow."""

    def __init__(self) -> None:
        self.memory = GuestMemory(RAM, HOST_PAGES * PAGE)
        self.guest = MemoryRange(self.memory.view, RAM)
        self.flushed = 0
        self.shadow = ShadowMmu(self.memory, self.guest, RAM, HOST_PAGES, self.flush)
        self.shadow.set_root(ROOT)

    def flush(self) -> None:
        self.flushed += 1

    def cpu(self, linear: int, write: bool, user: bool, fetch: bool) -> int:
        """Physical address as the CPU finds it in the shadow. Raises `PageFault`."""
        return translate(
            self.memory.whole, linear, cr0=CR0, cr3=self.shadow.pointer_table, cr4=CR4_PAE, efer=NXE,
            write=write, user=user, fetch=fetch, mark=False,
        ).physical  # fmt: skip

    def access(self, linear: int, write: bool, user: bool, fetch: bool) -> int | None:
        """One access with its fault served, as the machine does it; None if the fault is the guest's."""
        for _ in range(3):
            try:
                return self.cpu(linear, write, user, fetch)
            except PageFault:
                try:
                    self.shadow.fill(linear, write=write, user=user, fetch=fetch)
                except PageFault:
                    return None
        raise AssertionError("the fault comes again and again")


def expected(world: World, linear: int, write: bool, user: bool, fetch: bool) -> int | None:
    try:
        return world.shadow.walk(linear, write=write, user=user, fetch=fetch).physical
    except PageFault:
        return None


@settings(max_examples=150, deadline=None)
@given(
    st.lists(ENTRY, min_size=1, max_size=12),
    st.lists(st.sampled_from(LINEAR.elements), min_size=12, max_size=12),  # type: ignore[attr-defined]
    st.lists(ACCESS, min_size=1, max_size=25),
    st.booleans(),
)
def test_accesses_equal_a_walk(
    entries: list[tuple[int, int]],
    places: list[int],
    accesses: list[tuple[int, bool, bool, bool]],
    large: bool,
) -> None:
    world = World()
    for slot, table in enumerate(TABLES):
        world.memory.store_u32(ROOT + slot * 4, table | 7)
    if large:
        world.memory.store_u32(ROOT + 12, 0x87)
    for (frame, flags), linear in zip(entries, places, strict=False):
        if linear >> 22 < len(TABLES):
            world.memory.store_u32(TABLES[linear >> 22] + (linear >> 12 & 0x3FF) * 4, frame << 12 | flags)
    world.shadow.flush()
    for access in accesses:
        found = world.access(*access)
        assert found == expected(world, *access)


def test_dirty_appears_with_the_first_write_only() -> None:
    world = World()
    world.memory.store_u32(ROOT, TABLES[0] | 7)
    world.memory.store_u32(TABLES[0] + 20, 0x10_0000 | 7)
    assert world.access(0x5000, False, False, False) == 0x10_0000
    assert world.memory.load_u32(TABLES[0] + 20) & 0x60 == 0x20
    assert world.access(0x5000, True, False, False) == 0x10_0000
    assert world.memory.load_u32(TABLES[0] + 20) & 0x60 == 0x60


def test_write_protect_off_does_not_open_the_page_to_users() -> None:
    world = World()
    world.shadow.set_format(pae=False, write_protect=False)
    world.memory.store_u32(ROOT, TABLES[0] | 7)
    world.memory.store_u32(TABLES[0] + 20, 0x10_0000 | 5)
    assert world.access(0x5000, True, False, False) == 0x10_0000
    assert world.access(0x5000, True, True, False) is None
    assert world.access(0x5000, False, True, False) == 0x10_0000


def test_host_pages_survive_flushes_and_guest_mappings() -> None:
    world = World()
    world.shadow.map_host(0xFFFF_F000, RAM + 0x5000, writable=False, executable=False)
    world.memory.store_u32(ROOT + 0xFFC, TABLES[0] | 7)
    world.memory.store_u32(TABLES[0] + 0xFFC, 0x10_0000 | 7)
    world.shadow.flush()
    assert world.cpu(0xFFFF_F008, False, False, False) == RAM + 0x5008
    with pytest.raises(PageFault):
        world.shadow.fill(0xFFFF_F008, write=True, user=False, fetch=False)
    assert world.access(0xFFFF_F008, False, True, False) is None


def test_frames_beyond_memory_never_reach_the_hosts_memory() -> None:
    world = World()
    world.memory.store_u32(ROOT, TABLES[0] | 7)
    for index in range(64):
        world.memory.store_u32(TABLES[0] + index * 4, RAM + index * PAGE | 7)
        physical = world.access(index * PAGE, True, False, False)
        assert physical is not None
        assert physical >= 1 << 32


def test_the_pool_of_tables_may_run_out() -> None:
    """More 2 MiB regions than tables: the oldest translations are forgotten, never wrong."""
    world = World()
    rng = random.Random(7)
    for slot in range(32):
        world.memory.store_u32(ROOT + slot * 4, TABLES[0] | 7)
    for index in range(1024):
        world.memory.store_u32(TABLES[0] + index * 4, rng.randrange(RAM >> 12) << 12 | 7)
    for _ in range(300):
        linear = rng.randrange(32 << 22)
        assert world.access(linear, True, False, False) == expected(world, linear, True, False, False)
