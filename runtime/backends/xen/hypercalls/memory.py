"""memory_op: the domain's reservation of machine frames (xen/common/memory.c, arch/x86/mm.c)."""

from __future__ import annotations

from collections.abc import Sequence

from runtime.backends.xen.domain import Domain
from runtime.backends.xen.events import check_domain
from runtime.backends.xen.frames import DOMAIN, XenError
from runtime.backends.xen.hypercalls.dispatch import Continue, handler
from runtime.backends.xen.layout import ERRNO, names, struct

__all__: list[str] = []

COMMANDS = names("memory")
START_EXTENT_SHIFT = 6
COMMAND_MASK = (1 << START_EXTENT_SHIFT) - 1
MAX_EXTENTS = 0xFFFFFFFF >> START_EXTENT_SHIFT
MAX_ORDER = 9
"""The largest extents of a domain without devices, as a power of two pages (CONFIG_DOMU_MAX_ORDER)."""
M2P_EXTENT_BYTES = 2 << 20
M2P_SIZE = {32: 0x0A60_0000, 64: 1 << 38}
M2P_COMMANDS = ("machphys_mfn_list", "machphys_mapping")
RESERVATIONS = ("increase_reservation", "decrease_reservation", "populate_physmap")


@handler("memory_op")
def memory_op(domain: Domain, arguments: Sequence[int]) -> int | Continue:
    """One memory command; the upper bits of the command number an extent to start from."""
    command, address = arguments[0] & 0xFFFFFFFF, arguments[1]
    name = COMMANDS.get(command & COMMAND_MASK, "")
    start = command >> START_EXTENT_SHIFT
    if name in RESERVATIONS:
        return _reservation(domain, command & COMMAND_MASK, start, address)
    if name == "exchange":
        return _exchange(domain, command, address)
    if domain.translated and name in M2P_COMMANDS:
        return -ERRNO.EOPNOTSUPP
    simple = {
        "maximum_ram_page": lambda: domain.frames.frames,
        "current_reservation": lambda: _count(domain, address, domain.current_pages),
        "maximum_reservation": lambda: _count(domain, address, domain.max_pages),
        "maximum_gpfn": lambda: _count(domain, address, _maximum_gpfn(domain)),
        "machphys_mfn_list": lambda: _machphys_list(domain, address),
        "machphys_mapping": lambda: _machphys_mapping(domain, address),
        "memory_map": lambda: -ERRNO.ENOSYS,
        "machine_memory_map": lambda: -ERRNO.EPERM,
        "set_memory_map": lambda: _only_for_toolstack(domain, address),
        "add_to_physmap": lambda: _translated_only(domain, address),
        "remove_from_physmap": lambda: _translated_only(domain, address),
    }.get(name)
    return int(simple()) if simple else -ERRNO.ENOSYS


def _count(domain: Domain, address: int, value: int) -> int:
    check_domain(domain.space.word(address, 2), domain.domid)
    return value


def _maximum_gpfn(domain: Domain) -> int:
    """What the guest itself wrote to shared_info.arch.max_pfn, less one."""
    offset, size = struct("shared_info", domain.width).place("max_pfn")
    return max(1, int.from_bytes(domain.memory.load(domain.shared_info + offset, size), "little")) - 1


def _reservation(domain: Domain, command: int, start: int, address: int) -> int | Continue:
    """How many extents were done; an error in the list ends the work early without an error code."""
    try:
        asked = domain.space.fields(address, struct("memory_reservation", domain.width))
    except XenError:
        return start
    count, order, size = asked["nr_extents"], asked["extent_order"], domain.width // 8
    if count > MAX_EXTENTS or start >= count or domain.translated:
        return start
    try:
        check_domain(asked["domid"], domain.domid)
    except XenError as error:
        return -int(error.errno) if error.errno == ERRNO.EPERM else start
    if order > MAX_ORDER:
        return start
    for done in range(start, count):
        if done > start and domain.exhausted:
            return Continue((done << START_EXTENT_SHIFT | command, address))
        domain.work(1 << order)
        try:
            _one_extent(domain, COMMANDS[command], asked["extent_start"], done, size, order)
        except XenError as error:
            domain.log(str(error))
            return done
    return count


def _one_extent(domain: Domain, name: str, list_at: int, index: int, size: int, order: int) -> None:
    address = list_at + index * size
    if name == "decrease_reservation":
        first = domain.space.word(address, size)
        for mfn in range(first, first + (1 << order)):
            _release(domain, mfn)
        return
    pfn = domain.space.word(address, size) if name == "populate_physmap" else None
    if domain.current_pages + (1 << order) > domain.max_pages:
        raise XenError(ERRNO.ENOMEM, "the domain's reservation is full")
    mfn = domain.frames.allocate(DOMAIN, order)
    if pfn is not None:
        for offset in range(1 << order):
            domain.set_pfn_of(mfn + offset, pfn + offset)
    if list_at:
        domain.space.write(address, mfn.to_bytes(size, "little"))


def _release(domain: Domain, mfn: int) -> None:
    """Give a frame back; it stays until its last mapping is gone. Raises XenError(EINVAL) for another's."""
    if not domain.frames.owned(mfn) or domain.frames.released[mfn]:
        raise XenError(ERRNO.EINVAL, f"frame {mfn:#x} is not the domain's")
    domain.frames.released[mfn] = 1
    domain.frames.put(mfn)


def _exchange(domain: Domain, command: int, address: int) -> int | Continue:
    """Swap frames for others of any order up to the domain's limit (memory_exchange)."""
    layout, inner = struct("memory_exchange", domain.width), struct("memory_reservation", domain.width)
    data = domain.space.read(address, layout.size)
    given, wanted = (inner.unpack(data[layout.offsets[side] :]) for side in ("in", "out"))
    done = layout.unpack(data)["nr_exchanged"]
    if max(given["extent_order"], wanted["extent_order"]) > MAX_ORDER:
        raise XenError(ERRNO.EPERM, "extents of that size are for domains with devices")
    if domain.translated:
        raise XenError(ERRNO.EOPNOTSUPP, "frames of a translated domain are fixed")
    pages = given["nr_extents"] << given["extent_order"]
    if (
        done > given["nr_extents"]
        or given["nr_extents"] > MAX_EXTENTS
        or given["domid"] != wanted["domid"]
        or pages != wanted["nr_extents"] << wanted["extent_order"]
    ):
        raise XenError(ERRNO.EINVAL, "the two sides of the exchange do not fit")
    check_domain(given["domid"], domain.domid)
    if given["extent_order"] != wanted["extent_order"]:
        raise XenError(ERRNO.ENOMEM, "no memory to build other extents from")
    for index in range(done, given["nr_extents"]):
        if index > done and domain.exhausted:
            return Continue((command, address))
        domain.work(1 << given["extent_order"])
        _exchange_one(domain, given, wanted, index)
        domain.space.set_field(address, layout, "nr_exchanged", index + 1)
    return 0


def _exchange_one(domain: Domain, given: dict[str, int], wanted: dict[str, int], index: int) -> None:
    """One extent for another: the old frames must be in no use at all (steal_page)."""
    frames, size = domain.frames, domain.width // 8
    order = given["extent_order"]
    old = domain.space.word(given["extent_start"] + index * size, size)
    pfn = domain.space.word(wanted["extent_start"] + index * size, size)
    for mfn in range(old, old + (1 << order)):
        if not frames.owned(mfn) or frames.references[mfn] != 1 or frames.released[mfn]:
            raise XenError(ERRNO.EINVAL, f"frame {mfn:#x} is in use")
    fresh = frames.allocate(DOMAIN, order)
    for offset in range(1 << order):
        _release(domain, old + offset)
        domain.set_pfn_of(fresh + offset, pfn + offset)
    domain.space.write(wanted["extent_start"] + index * size, fresh.to_bytes(size, "little"))


def _machphys_list(domain: Domain, address: int) -> int:
    """struct {max_extents u32, extent_start, nr_extents u32}: where the M2P table's 2 MiB extents lie."""
    size = domain.width // 8
    limit = domain.space.word(address, 4)
    list_at = domain.space.word(address + size, size)
    extents = max(1, -(-domain.frames.frames * size // M2P_EXTENT_BYTES))
    for index in range(min(limit, extents)):
        mfn = (domain.m2p >> 12) + index * 512
        domain.space.write(list_at + index * size, mfn.to_bytes(size, "little"))
    domain.space.write(address + 2 * size, min(limit, extents).to_bytes(4, "little"))
    return 0


def _machphys_mapping(domain: Domain, address: int) -> int:
    """struct {v_start, v_end, max_mfn}: the read-only M2P table in the hole."""
    size = domain.width // 8
    start, length = domain.hole[0], M2P_SIZE[domain.width]
    values = (start, start + length, length // size - 1)
    domain.space.write(address, b"".join(v.to_bytes(size, "little") for v in values))
    return 0


def _only_for_toolstack(domain: Domain, address: int) -> int:
    domain.space.read(address, 2)
    return -ERRNO.EPERM


def _translated_only(domain: Domain, address: int) -> int:
    """add_to_physmap and remove_from_physmap are for translated guests."""
    check_domain(domain.space.word(address, 2), domain.domid)
    return -ERRNO.EACCES
