"""Boot protocols: what is in memory and in the registers when the guest begins."""

from __future__ import annotations

import struct
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pvpatch.abi.errors import ImageError, PvpatchError, UsageError
from runtime.boot import BootImage, BootKind, BootRequest, BootSegment, EntryState, load_image
from runtime.boot.layout import CONVENTIONAL_END, MIB
from tests.devices.board import Memory

CODE = b"\x90" * 64
TEXT = BootSegment(0x100000, 0xC0100000, CODE, 0x1000)
PLACES = dict.fromkeys(BootKind, 1048576) | {BootKind.FLAT: 0xC0100010}


def make(kind: BootKind, *segments: BootSegment, width: int = 32, header: bytes = b"") -> BootImage:
    return BootImage("a.out", kind, width, segments or (TEXT,), PLACES, header)


def boot(image: BootImage, mib: int = 8, **request: object) -> tuple[Memory, EntryState]:
    memory = Memory(mib << 20)
    return memory, load_image(image, memory, BootRequest(**request))  # type: ignore[arg-type]


def words(memory: Memory, address: int, count: int) -> tuple[int, ...]:
    return struct.unpack(f"<{count}I", memory.load(address, 4 * count))


def string(memory: Memory, address: int) -> str:
    return memory.load(address, 4096).split(b"\0")[0].decode()


# -- the image -------------------------------------------------------------------------------------


def test_segments_are_copied_and_zero_filled() -> None:
    memory = Memory(8 << 20)
    memory.store(0x100000, b"\xcc" * 0x2000)
    load_image(make(BootKind.FLAT), memory, BootRequest())
    assert memory.load(0x100000, 0x1000) == CODE + bytes(0x1000 - len(CODE))
    assert memory.load(0x101000, 4) == b"\xcc" * 4


BAD_SEGMENTS = {
    "beyond RAM": (BootSegment(0x7FF000, 0, CODE, 0x2000),),
    "wrapping": (BootSegment((1 << 64) - 16, 0, CODE, 0x100),),
    "in the ROM hole": (BootSegment(0xA0000, 0, CODE, 0x100),),
    "across the hole": (BootSegment(0x90000, 0, CODE, 0x100000),),
    "negative": (BootSegment(-4096, 0, CODE, 0x100),),
    "absurd": (BootSegment(0x100000, 0, CODE, 1 << 60),),
    "overlapping": (TEXT, BootSegment(0x100800, 0, CODE, 0x1000)),
    "more data than memory": (BootSegment(0x100000, 0, CODE, 8),),
    "negative length": (BootSegment(0x200000, 0, b"", -4096),),
    "empty": (BootSegment(0x100000, 0, b"", 0),),
}


@pytest.mark.parametrize("segments", BAD_SEGMENTS.values(), ids=BAD_SEGMENTS)
def test_segments_that_cannot_be_placed_are_refused(segments: tuple[BootSegment, ...]) -> None:
    with pytest.raises(ImageError):
        boot(make(BootKind.MULTIBOOT1, *segments))


@pytest.mark.parametrize("kind", [kind for kind in BootKind if kind is not BootKind.XEN_PV])
def test_an_entry_outside_the_image_is_refused(kind: BootKind) -> None:
    with pytest.raises(ImageError, match="entry"):
        boot(replace(make(kind), entries={kind: 0x500000}))
    with pytest.raises(ImageError, match="entry"):
        boot(replace(make(kind), entries={}))


def test_a_hypervisors_own_protocol_has_no_native_loader() -> None:
    with pytest.raises(ImageError, match="xen-pv"):
        boot(make(BootKind.XEN_PV))


@given(
    paddr=st.integers(-(1 << 65), 1 << 65),
    memsz=st.integers(-(1 << 65), 1 << 65),
    entry=st.integers(-(1 << 65), 1 << 65),
    kind=st.sampled_from(BootKind),
)
def test_any_segment_loads_or_is_refused(paddr: int, memsz: int, entry: int, kind: BootKind) -> None:
    image = make(kind, BootSegment(paddr, paddr, b"", memsz))
    memory = Memory(2 << 20)
    try:
        load_image(replace(image, entries={kind: entry}), memory, BootRequest())
    except PvpatchError:
        return
    assert memory.size == 2 << 20


# -- firmware --------------------------------------------------------------------------------------


def test_acpi_tables_lead_from_the_root_pointer_to_s5() -> None:
    memory, _ = boot(make(BootKind.FLAT))
    area = memory.load(0xE0000, 0x20000)
    at = next(i for i in range(0, len(area), 16) if area[i : i + 8] == b"RSD PTR ")
    assert sum(area[at : at + 20]) & 0xFF == 0
    (rsdt,) = struct.unpack_from("<I", area, at + 16)
    (fadt,) = words(memory, rsdt + 36, 1)
    (facs, dsdt) = words(memory, fadt + 36, 2)
    for table, name in ((rsdt, b"RSDT"), (fadt, b"FACP"), (dsdt, b"DSDT")):
        (length,) = words(memory, table + 4, 1)
        body = memory.load(table, length)
        assert body[:4] == name
        assert sum(body) & 0xFF == 0
    assert memory.load(facs, 4) == b"FACS"
    assert facs % 64 == 0
    assert memory.load(fadt + 46, 2) == b"\x09\x00"
    assert words(memory, fadt + 56, 1) == (0x600,)
    assert words(memory, fadt + 64, 1) == (0x604,)
    assert words(memory, fadt + 76, 1) == (0x608,)
    assert memory.load(fadt + 4, 4) == (244).to_bytes(4, "little")
    assert b"\x08_S5_\x12" in memory.load(dsdt, 60)


def test_bios_data_area() -> None:
    memory, _ = boot(make(BootKind.FLAT))
    assert memory.load(0x400, 2) == b"\xf8\x03"
    assert memory.load(0x40E, 2) == b"\xc0\x9f"
    assert memory.load(0x413, 2) == (639).to_bytes(2, "little")


# -- multiboot -------------------------------------------------------------------------------------


def test_multiboot1_information() -> None:
    memory, state = boot(
        make(BootKind.MULTIBOOT1), cmdline="console=com0", modules=(("m one", b"A" * 5000), ("two", b"B"))
    )
    assert (state.rip, state.registers["rax"], state.long_mode) == (0x100000, 0x2BADB002, False)
    info = words(memory, state.registers["rbx"], 22)
    assert info[0] == 0x24D
    assert info[1:3] == (639, 7 * 1024)
    assert string(memory, info[4]) == "kernel console=com0"
    assert string(memory, info[16]) == "pvpatch"
    assert info[5] == 2
    first, second = words(memory, info[6], 4), words(memory, info[6] + 16, 4)
    assert first[0] % 4096 == 0 and first[0] >= 0x101000
    assert memory.load(first[0], first[1] - first[0]) == b"A" * 5000
    assert memory.load(second[0], second[1] - second[0]) == b"B"
    assert string(memory, first[2]) == "m one"
    parts = memory.load(info[12], info[11])
    entries = [struct.unpack_from("<IQQI", parts, at) for at in range(0, len(parts), 24)]
    assert entries == [
        (20, 0, CONVENTIONAL_END, 1),
        (20, CONVENTIONAL_END, 0x400, 2),
        (20, 0xF0000, 0x10000, 2),
        (20, MIB, 7 * MIB, 1),
    ]


def test_a_ramdisk_is_the_first_multiboot_module() -> None:
    memory, state = boot(make(BootKind.MULTIBOOT1), initrd=b"RAMDISK")
    info = words(memory, state.registers["rbx"], 22)
    start, end = words(memory, info[6], 2)
    assert memory.load(start, end - start) == b"RAMDISK"


def test_multiboot2_tags() -> None:
    memory, state = boot(make(BootKind.MULTIBOOT2), cmdline="quiet", modules=(("mod", b"xyz"),))
    assert state.registers["rax"] == 0x36D76289
    base = state.registers["rbx"]
    assert base % 8 == 0
    total, _ = words(memory, base, 2)
    tags, at = {}, base + 8
    while at < base + total:
        kind, size = words(memory, at, 2)
        tags[kind] = memory.load(at + 8, size - 8)
        at += -(-size // 8) * 8
    assert at == base + total
    assert set(tags) == {0, 1, 2, 3, 4, 6, 14, 15}
    assert tags[1] == b"quiet\0"
    start, end = struct.unpack_from("<II", tags[3])
    assert memory.load(start, end - start) == b"xyz"
    assert tags[14][:8] == b"RSD PTR " and len(tags[14]) == 20
    assert tags[15][:20] == tags[14] and sum(tags[15]) & 0xFF == 0


# -- Linux -----------------------------------------------------------------------------------------


def setup_header(version: int = 0x020C, cmdline_size: int = 255, initrd_max: int = 0x7FFFFF) -> bytes:
    header = bytearray(0x280 - 0x1F1)
    struct.pack_into("<H4sH", header, 0x200 - 0x1F1, 0x66EB, b"HdrS", version)
    struct.pack_into("<I", header, 0x22C - 0x1F1, initrd_max)
    struct.pack_into("<I", header, 0x238 - 0x1F1, cmdline_size)
    return bytes(header)


def zero_page(memory: Memory, state: EntryState) -> bytes:
    return memory.load(state.registers["rsi"], 4096)


@pytest.mark.parametrize("kind", [BootKind.LINUX32, BootKind.LINUX64])
@pytest.mark.parametrize("header", [b"", setup_header()], ids=["vmlinux", "bzImage"])
def test_linux_boot_params(kind: BootKind, header: bytes) -> None:
    ramdisk = b"070701" * 1000
    memory, state = boot(make(kind, header=header), mib=32, cmdline="console=ttyS0", initrd=ramdisk)
    page = zero_page(memory, state)
    assert page[0x202:0x206] == b"HdrS"
    assert (page[0x210], page[0x211] & 1) == (0xFF, 1)
    cmdline, initrd_max = struct.unpack_from("<II", page, 0x228)
    assert string(memory, cmdline) == "console=ttyS0"
    address, size = struct.unpack_from("<II", page, 0x218)
    assert memory.load(address, size) == ramdisk
    assert address % 4096 == 0 and address + size - 1 <= initrd_max
    assert page[0x1E8] == 4
    last = struct.unpack_from("<QQI", page, 0x2D0 + 60)
    assert last == (MIB, 31 * MIB, 1)
    assert struct.unpack_from("<Q", page, 0x70) == (0xF0000,)
    assert page[0x1EF] == 0


def test_linux32_entry_is_flat_with_the_protocols_selectors() -> None:
    memory, state = boot(make(BootKind.LINUX32))
    assert not state.long_mode
    assert (state.code.selector, state.data.selector, state.cr0 & 0x80000001) == (0x10, 0x18, 1)
    base, limit = state.gdt
    code, data = struct.unpack("<QQ", memory.load(base + 0x10, 16))
    assert (code, data, limit) == (0x00CF9B000000FFFF, 0x00CF93000000FFFF, 31)


def test_linux64_entry_has_an_identity_map() -> None:
    memory, state = boot(make(BootKind.LINUX64, width=64))
    assert state.long_mode and state.cr0 & 0x80000001 == 0x80000001 and state.cr4 & 0x20
    for address in (0, 0x100000, 0x3FFFFFFF, 0x40000000, 0xFFFFFFFF):
        table = state.cr3
        for shift in (39, 30):
            (entry,) = struct.unpack("<Q", memory.load(table + 8 * (address >> shift & 511), 8))
            assert entry & 1
            table = entry & ~0xFFF
        (entry,) = struct.unpack("<Q", memory.load(table + 8 * (address >> 21 & 511), 8))
        assert entry & 0x81 == 0x81
        assert entry & ~0x1FFFFF == address & ~0x1FFFFF


BAD_HEADERS = {
    "zeros": b"\0" * 8,
    "truncated": setup_header()[:0x10],
    "no signature": setup_header().replace(b"HdrS", b"hdrs"),
    "too old": setup_header(version=0x0201),
}


@pytest.mark.parametrize("header", BAD_HEADERS.values(), ids=BAD_HEADERS)
def test_a_damaged_setup_header_is_refused(header: bytes) -> None:
    with pytest.raises(ImageError):
        boot(make(BootKind.LINUX32, header=header))


def test_what_does_not_fit_is_refused() -> None:
    kind = BootKind.LINUX32
    with pytest.raises(UsageError, match="command line"):
        boot(make(kind, header=setup_header(cmdline_size=10)), cmdline="x" * 11)
    with pytest.raises(UsageError, match="ramdisk"):
        boot(make(kind, header=setup_header(initrd_max=100)), initrd=b"x" * 200)
    with pytest.raises(UsageError, match="fit"):
        boot(make(kind), initrd=bytes(8 << 20))
    with pytest.raises(UsageError, match="modules"):
        boot(make(kind), modules=(("", b"x"),))
    with pytest.raises(UsageError, match="fit"):
        boot(make(BootKind.MULTIBOOT1), initrd=bytes(8 << 20))


# -- PVH and flat ----------------------------------------------------------------------------------


def test_pvh_start_info() -> None:
    memory, state = boot(make(BootKind.PVH), cmdline="quiet", initrd=b"INITRD", modules=(("name", b"m"),))
    base = state.registers["rbx"]
    magic, version, flags, count = words(memory, base, 4)
    assert (magic, version, flags, count) == (0x336EC578, 1, 0, 2)
    modules, cmdline, rsdp, parts = struct.unpack("<4Q", memory.load(base + 16, 32))
    assert string(memory, cmdline) == "quiet"
    assert memory.load(rsdp, 8) == b"RSD PTR "
    assert words(memory, base + 48, 2) == (4, 0)
    first = struct.unpack("<4Q", memory.load(modules, 32))
    assert memory.load(first[0], first[1]) == b"INITRD"
    second = struct.unpack("<4Q", memory.load(modules + 32, 32))
    assert string(memory, second[2]) == "name"
    assert struct.unpack("<QQII", memory.load(parts + 72, 24)) == (MIB, 7 * MIB, 1, 0)


@pytest.mark.parametrize("width", [32, 64])
def test_flat_entry_is_physical(width: int) -> None:
    _, state = boot(make(BootKind.FLAT, width=width))
    assert state.rip == 0x100010
    assert state.long_mode is (width == 64)


@pytest.mark.parametrize("kind", [kind for kind in BootKind if kind is not BootKind.XEN_PV])
def test_structures_never_overlap_a_low_image(kind: BootKind) -> None:
    """An image that takes all of conventional memory but a little still finds its own bytes."""
    low = BootSegment(0x8000, 0x8000, b"\xab" * 0x80000, 0x80000)
    image = replace(make(kind, low, TEXT), entries=PLACES)
    memory, _ = boot(image, cmdline="x" * 200, initrd=b"y" * 5000 if kind is not BootKind.FLAT else b"")
    assert memory.load(0x8000, 0x80000) == low.data
    assert memory.load(0x100000, 64) == CODE
