"""memory_op: the domain's reservation of machine frames (xen/common/memory.c, arch/x86/mm.c)."""

from __future__ import annotations

from collections.abc import Sequence

from runtime.backends.xen.domain import Domain
from runtime.backends.xen.events import DOMID_SELF
from runtime.backends.xen.frames import DOMAIN, XenError
from runtime.backends.xen.hypercalls.dispatch import handler
from runtime.backends.xen.layout import ERRNO, PAGE_SIZE, names, struct

__all__: list[str] = []

COMMANDS = names("memory")
START_EXTENT_SHIFT = 6
MAX_ORDER = 9
E820_RAM = 1


def _own(domain: Domain, domid: int) -> None:
    if domid & 0xFFFF not in (DOMID_SELF, domain.domid):
        raise XenError(ERRNO.ESRCH if domid & 0xFFFF < DOMID_SELF else ERRNO.EPERM, f"domain {domid}")


@handler("memory_op")
def memory_op(domain: Domain, arguments: Sequence[int]) -> int:
    """One memory command; the upper bits of the command number an extent to start from."""
    command = arguments[0] & 0xFFFFFFFF
    name = COMMANDS.get(command & (1 << START_EXTENT_SHIFT) - 1, "")
    start, address = command >> START_EXTENT_SHIFT, arguments[1]
    if name in ("increase_reservation", "decrease_reservation", "populate_physmap"):
        return _reservation(domain, name, start, address)
    simple = {
        "maximum_ram_page": lambda: domain.frames.frames - 1,
        "current_reservation": lambda: _count(domain, address, domain.current_pages),
        "maximum_reservation": lambda: _count(domain, address, domain.max_pages),
        "maximum_gpfn": lambda: _count(domain, address, domain.max_pages - 1),
        "machphys_mfn_list": lambda: _machphys_list(domain, address),
        "machphys_mapping": lambda: _machphys_mapping(domain, address),
        "memory_map": lambda: _memory_map(domain, address),
        "exchange": lambda: _exchange(domain, address),
        "machine_memory_map": lambda: -ERRNO.EPERM,
        "set_memory_map": lambda: -ERRNO.EPERM,
        "add_to_physmap": lambda: _physmap(domain, address),
        "remove_from_physmap": lambda: _physmap(domain, address),
    }.get(name)
    return int(simple()) if simple else -ERRNO.ENOSYS


def _count(domain: Domain, address: int, value: int) -> int:
    _own(domain, domain.space.word(address, 2))
    return value


def _reservation(domain: Domain, name: str, start: int, address: int) -> int:
    """How many extents were done; an error in the list ends the work early without an error code."""
    layout = struct("memory_reservation", domain.width)
    try:
        asked = domain.space.fields(address, layout)
    except XenError:
        return start
    count, order, size = asked["nr_extents"], asked["extent_order"], domain.width // 8
    if start >= count or order > MAX_ORDER or count > (1 << domain.width) >> 2:
        return start
    try:
        _own(domain, asked["domid"])
    except XenError:
        return start
    for done in range(start, count):
        try:
            _one_extent(domain, name, asked["extent_start"] + done * size, size, order)
        except XenError:
            return done
    return count


def _one_extent(domain: Domain, name: str, address: int, size: int, order: int) -> None:
    if name == "decrease_reservation":
        first = domain.space.word(address, size)
        for mfn in range(first, first + (1 << order)):
            _release(domain, mfn)
        return
    if order and name != "populate_physmap":
        raise XenError(ERRNO.ENOMEM, "no contiguous frames")
    if order:
        raise XenError(ERRNO.ENOMEM, "no contiguous frames")
    pfn = domain.space.word(address, size) if name == "populate_physmap" else 0
    if domain.current_pages >= domain.max_pages:
        raise XenError(ERRNO.ENOMEM, "the domain's reservation is full")
    mfn = domain.frames.allocate(DOMAIN)
    domain.set_pfn_of(mfn, pfn)
    domain.space.write(address, mfn.to_bytes(size, "little"))


def _release(domain: Domain, mfn: int) -> None:
    """Give a frame back; it stays until its last mapping is gone. Raises XenError(EINVAL) for another's."""
    if not domain.frames.owned(mfn) or domain.frames.released[mfn]:
        raise XenError(ERRNO.EINVAL, f"frame {mfn:#x} is not the domain's")
    domain.frames.released[mfn] = 1
    domain.frames.put(mfn)


def _exchange(domain: Domain, address: int) -> int:
    """Swap frames for others: single pages only, since contiguous ones are for domains with devices."""
    layout, inner = struct("memory_exchange", domain.width), struct("memory_reservation", domain.width)
    data = domain.space.read(address, layout.size)
    given = inner.unpack(data[layout.offsets["in"] :])
    wanted = inner.unpack(data[layout.offsets["out"] :])
    done = layout.unpack(data)["nr_exchanged"]
    _own(domain, given["domid"])
    if done > given["nr_extents"] or given["domid"] != wanted["domid"]:
        raise XenError(ERRNO.EINVAL, "exchange request")
    if given["extent_order"] or wanted["extent_order"]:
        if given["nr_extents"] << given["extent_order"] != wanted["nr_extents"] << wanted["extent_order"]:
            raise XenError(ERRNO.EINVAL, "sizes of the two sides differ")
        raise XenError(ERRNO.EPERM, "contiguous frames are for domains with devices")
    if given["nr_extents"] != wanted["nr_extents"]:
        raise XenError(ERRNO.EINVAL, "sizes of the two sides differ")
    size = domain.width // 8
    for index in range(done, given["nr_extents"]):
        mfn = domain.space.word(given["extent_start"] + index * size, size)
        pfn = domain.space.word(wanted["extent_start"] + index * size, size)
        if not domain.frames.owned(mfn) or domain.frames.references[mfn] != 1:
            raise XenError(ERRNO.EINVAL, f"frame {mfn:#x} is in use")
        fresh = domain.frames.allocate(DOMAIN)
        _release(domain, mfn)
        domain.set_pfn_of(fresh, pfn)
        domain.space.write(wanted["extent_start"] + index * size, fresh.to_bytes(size, "little"))
        domain.space.set_field(address, layout, "nr_exchanged", index + 1)
    return 0


def _machphys_list(domain: Domain, address: int) -> int:
    """struct {max_extents u32, extent_start, nr_extents u32}: where the M2P table's 2 MiB extents lie."""
    size = domain.width // 8
    limit = domain.space.word(address, 4)
    list_at = domain.space.word(address + size, size)
    extents = max(1, -(-domain.frames.frames * size // (2 << 20)))
    for index in range(min(limit, extents)):
        mfn = (domain.m2p >> 12) + index * 512
        domain.space.write(list_at + index * size, mfn.to_bytes(size, "little"))
    domain.space.write(address + 2 * size, min(limit, extents).to_bytes(4, "little"))
    return 0


def _machphys_mapping(domain: Domain, address: int) -> int:
    """struct {v_start, v_end, max_mfn}: the read-only M2P table in the hole."""
    size = domain.width // 8
    start = domain.hole[0]
    end = start + (1 << 40 if domain.width == 64 else 0x0A80_0000)
    values = (start, end, (end - start) // size - 1)
    domain.space.write(address, b"".join(v.to_bytes(size, "little") for v in values))
    return 0


def _memory_map(domain: Domain, address: int) -> int:
    """struct {nr_entries u32, buffer}: one RAM entry of the pseudo-physical map (E820, 20 bytes each)."""
    size = domain.width // 8
    room = domain.space.word(address, 4)
    buffer = domain.space.word(address + size, size)
    entry = bytes(8) + (domain.max_pages * PAGE_SIZE).to_bytes(8, "little") + E820_RAM.to_bytes(4, "little")
    if room:
        domain.space.write(buffer, entry)
    domain.space.write(address, min(room, 1).to_bytes(4, "little"))
    return 0


def _physmap(domain: Domain, address: int) -> int:
    """add_to_physmap and remove_from_physmap are for translated guests."""
    _own(domain, domain.space.word(address, 2))
    return -ERRNO.EOPNOTSUPP
