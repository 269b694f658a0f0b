"""grant_table_op for a domain that can grant to itself only (xen/common and arch/x86/pv/grant_table.c)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from runtime.backends.xen.domain import Domain
from runtime.backends.xen.events import DOMID_SELF, check_domain
from runtime.backends.xen.frames import PageType, XenError
from runtime.backends.xen.grants import (
    DEVICE_MAP,
    GRANT_STATUS,
    HOST_MAP,
    MAP_READ_ONLY,
    MAX_MAPPINGS,
    PERMIT_ACCESS,
    READ_ONLY,
    SUB_PAGE,
    TRANSITIVE,
    Entry,
    Mapping,
)
from runtime.backends.xen.hypercalls.dispatch import Continue, handler
from runtime.backends.xen.layout import ERRNO, PAGE_SIZE, names
from runtime.backends.xen.paging import ACCESSED, DIRTY, FRAME_MASK, NX, PRESENT, USER, WRITE

__all__: list[str] = []

COMMANDS = names("grant")
NOT_OFFERED = ("transfer", "cache_flush")
APPLICATION_MAP, CONTAINS_PTE = 8, 16
AVAILABLE_FROM, AVAILABLE_TO = 16, 9
"""Where the guest's three bits for an entry are in a mapping's flags, and in the entry."""


class _GrantError(Exception):
    """An operation fails with a GNTST name."""


@handler("grant_table_op")
def grant_table_op(domain: Domain, arguments: Sequence[int]) -> int | Continue:
    """A command on an array of operations; each has its own GNTST status."""
    command, address, count = arguments[0] & 0xFFFFFFFF, arguments[1], arguments[2] & 0xFFFFFFFF
    name = COMMANDS.get(command, "")
    if count >= 1 << 31:
        raise XenError(ERRNO.EINVAL, f"{count} operations")
    if name in _LISTS:
        return _run_list(domain, command, address, count)
    if name in _SINGLE:
        if count != 1 and name in _ONE_ONLY:
            raise XenError(ERRNO.EINVAL, f"{name} takes one operation")
        return _SINGLE[name](domain, address)
    if name in NOT_OFFERED:
        if count:
            domain.space.read(address, 1)
        return -ERRNO.EOPNOTSUPP if count else 0
    return -ERRNO.ENOSYS


def _run_list(domain: Domain, command: int, address: int, count: int) -> int | Continue:
    """Every operation of a list, in parts if it is long."""
    operation, sizes, status_at = _LISTS[COMMANDS[command]]
    wide = domain.width == 64
    size = sizes[wide]
    for index in range(count):
        at = address + index * size
        if index and domain.exhausted:
            return Continue((command, at, count - index))
        domain.work()
        try:
            operation(domain, at, domain.space.read(at, size))
            status = "okay"
        except _GrantError as error:
            status = str(error)
        _set_status(domain, at + status_at[wide], status)
    domain.cpu.flush()
    return 0


def _number(data: bytes, at: int, size: int) -> int:
    return int.from_bytes(data[at : at + size], "little")


def _known(domain: Domain, domid: int) -> bool:
    return domid in (DOMID_SELF, domain.domid)


def _set_status(domain: Domain, address: int, status: str) -> None:
    domain.space.write(address, GRANT_STATUS[status].to_bytes(2, "little", signed=True))


# -- the table itself --------------------------------------------------------------------------------


def _setup(domain: Domain, address: int) -> int:
    """struct {dom u16, nr_frames u32, status s16, frame_list*}."""
    size = domain.width // 8
    data = domain.space.read(address, 16 + size if domain.width == 64 else 16)
    wanted, list_at = _number(data, 4, 4), _number(data, 16 if size == 8 else 12, size)
    if not _known(domain, _number(data, 0, 2)):
        status = "bad_domain"
    elif not domain.grants.grow(wanted):
        status = "general_error"
    else:
        status = "okay"
        for index, mfn in enumerate(domain.grants.shared[:wanted]):
            domain.space.write(list_at + index * size, mfn.to_bytes(size, "little"))
    _set_status(domain, address + 8, status)
    return 0


def _query(domain: Domain, address: int) -> int:
    """struct {dom u16, nr_frames u32, max_nr_frames u32, status s16}."""
    known = _known(domain, domain.space.word(address, 2))
    if known:
        domain.space.write(address + 4, len(domain.grants.shared).to_bytes(4, "little"))
        domain.space.write(address + 8, domain.grants.limit.to_bytes(4, "little"))
    _set_status(domain, address + 12, "okay" if known else "bad_domain")
    return 0


def _status_frames(domain: Domain, address: int) -> int:
    """struct {nr_frames u32, dom u16, status s16, u64 frame_list*}: none in version 1."""
    size = domain.width // 8
    data = domain.space.read(address, 8 + size)
    wanted, list_at = _number(data, 0, 4), _number(data, 8, size)
    status = "okay"
    if not _known(domain, _number(data, 4, 2)):
        status = "bad_domain"
    elif wanted > len(domain.grants.status):
        status = "general_error"
    else:
        for index, mfn in enumerate(domain.grants.status[:wanted]):
            domain.space.write(list_at + 8 * index, mfn.to_bytes(8, "little"))
    _set_status(domain, address + 6, status)
    return 0


def _set_version(domain: Domain, address: int) -> int:
    """struct {version u32}, which tells the version afterwards."""
    version, grants = domain.space.word(address, 4), domain.grants
    result = 0
    if version not in (1, 2):
        result = -ERRNO.EINVAL
    elif version != grants.version and not grants.change_version(version):
        result = -ERRNO.EBUSY
    domain.space.write(address, grants.version.to_bytes(4, "little"))
    return result


def _get_version(domain: Domain, address: int) -> int:
    """struct {dom u16, version u32}."""
    check_domain(domain.space.word(address, 2), domain.domid)
    domain.space.write(address + 4, domain.grants.version.to_bytes(4, "little"))
    return 0


def _swap(domain: Domain, _at: int, data: bytes) -> None:
    """struct {ref_a u32, ref_b u32, status s16}."""
    status = domain.grants.swap(_number(data, 0, 4), _number(data, 4, 4))
    if status != "okay":
        raise _GrantError(status)


# -- what was granted --------------------------------------------------------------------------------


def _granted(domain: Domain, domid: int, reference: int, read_only: bool, whole: bool) -> Entry:
    """A grant that this domain gave to itself, for reading or for writing too; `whole` asks for a frame. The
    giver is named by its number.

    Raises _GrantError with the status that Xen gives.
    """
    if domid != domain.domid:
        raise _GrantError("bad_domain")
    entry = domain.grants.entry(reference)
    if entry is None:
        raise _GrantError("bad_gntref")
    if domain.grants.pinned(reference, writing=not read_only):
        return entry
    second = domain.grants.version == 2
    kinds = (PERMIT_ACCESS, TRANSITIVE) if second else (PERMIT_ACCESS,)
    if entry.kind not in kinds or (whole and entry.flags & SUB_PAGE):
        raise _GrantError("general_error")
    if entry.domid != domain.domid or (entry.flags & READ_ONLY and not read_only):
        raise _GrantError("general_error")
    return entry


def _map(domain: Domain, at: int, data: bytes) -> None:
    """struct {host_addr u64, flags u32, ref u32, dom u16, status s16, handle u32, dev_bus_addr u64}."""
    host, flags, reference, domid = (
        _number(data, at, size) for at, size in ((0, 8), (8, 4), (12, 4), (16, 2))
    )
    if not flags & (DEVICE_MAP | HOST_MAP):
        raise _GrantError("bad_gntref")
    read_only = bool(flags & MAP_READ_ONLY)
    entry = _granted(domain, domid, reference, read_only, whole=True)
    frames, mfn = domain.frames, entry.frame
    if not frames.owned(mfn):
        raise _GrantError("bad_page")
    if len(domain.grants.mappings) >= MAX_MAPPINGS:
        raise _GrantError("no_device_space")
    if flags & DEVICE_MAP:
        _hold(domain, mfn, read_only)
    try:
        if flags & HOST_MAP:
            _enter(domain, host, flags, mfn)
    except _GrantError:
        if flags & DEVICE_MAP:
            _let_go(domain, mfn, read_only)
        raise
    handle = domain.grants.add(Mapping(reference, mfn, flags))
    domain.space.write(at + 20, handle.to_bytes(4, "little"))
    domain.space.write(at + 24, (mfn * PAGE_SIZE).to_bytes(8, "little"))


def _hold(domain: Domain, mfn: int, read_only: bool) -> None:
    """A device has the frame: it stays, and stays writable. Raises _GrantError."""
    domain.frames.get(mfn)
    if not read_only:
        try:
            domain.frames.get_writable(mfn)
        except XenError:
            domain.frames.put(mfn)
            raise _GrantError("general_error") from None


def _let_go(domain: Domain, mfn: int, read_only: bool) -> None:
    if not read_only:
        domain.frames.put_writable(mfn)
    domain.frames.put(mfn)


def _enter(domain: Domain, host: int, flags: int, mfn: int) -> None:
    """create_grant_pv_mapping. Raises _GrantError."""
    place = _entry_for(domain, host, flags)
    available = (flags >> AVAILABLE_FROM & 7) << AVAILABLE_TO
    value = mfn << 12 | PRESENT | ACCESSED | DIRTY | NX | available
    value |= USER if flags & APPLICATION_MAP else 0
    value |= 0 if flags & MAP_READ_ONLY else WRITE
    try:
        domain.tables.write_entry(place, value)
    except XenError as error:
        domain.log(str(error))
        raise _GrantError("general_error") from None


def _entry_for(domain: Domain, host: int, flags: int) -> int:
    """Machine address of the L1 entry to be used: named itself, or by the address that it maps.

    Raises _GrantError where it is none.
    """
    if not flags & CONTAINS_PTE:
        place = domain.tables.leaf_entry(domain.space.root(), host) if _reachable(domain, host) else None
    else:
        mfn = host // PAGE_SIZE
        is_table = domain.frames.owned(mfn) and domain.frames.kind[mfn] == PageType.L1
        place = host if is_table and domain.frames.type_count[mfn] and not host & 7 else None
    if place is None:
        raise _GrantError("general_error")
    return place


def _reachable(domain: Domain, address: int) -> bool:
    return address >> domain.width == 0 and domain.space.accessible(address, 1)


def _unmap(domain: Domain, _at: int, data: bytes) -> None:
    """struct {host_addr u64, dev_bus_addr u64, handle u32, status s16}."""
    _undo(domain, _number(data, 16, 4), _number(data, 0, 8), bus=_number(data, 8, 8))


def _unmap_and_replace(domain: Domain, _at: int, data: bytes) -> None:
    """struct {host_addr u64, new_addr u64, handle u32, status s16}."""
    _undo(domain, _number(data, 16, 4), _number(data, 0, 8), new=_number(data, 8, 8))


def _undo(domain: Domain, handle: int, host: int, bus: int = 0, new: int = 0) -> None:
    """unmap_common: take away the host's mapping at `host`, the device's at `bus`, each unless it is 0.

    Raises _GrantError.
    """
    mapping = domain.grants.mappings.get(handle)
    if mapping is None:
        raise _GrantError("bad_handle")
    if bus and bus != mapping.mfn * PAGE_SIZE:
        raise _GrantError("bad_dev_addr")
    if host and mapping.flags & HOST_MAP:
        _leave(domain, mapping, host, new)
        mapping.flags &= ~HOST_MAP
    if bus and mapping.flags & DEVICE_MAP:
        _let_go(domain, mapping.mfn, mapping.read_only)
        mapping.flags &= ~DEVICE_MAP
    domain.grants.settle(handle)


def _leave(domain: Domain, mapping: Mapping, host: int, new: int) -> None:
    """replace_grant_pv_mapping: the entry for `host` goes, or becomes the one that maps `new`."""
    tables, words = domain.tables, domain.memory.words
    if new and mapping.flags & CONTAINS_PTE:
        raise _GrantError("general_error")
    source = _entry_for(domain, new, 0) if new else None
    place = _entry_for(domain, host, mapping.flags)
    value = words[place >> 3]
    rights = PRESENT | (0 if mapping.read_only else WRITE)
    if (value & FRAME_MASK) >> 12 != mapping.mfn or value & (PRESENT | WRITE) != rights:
        if source is not None:
            tables.write_entry(source, 0)  # it has been taken away already
        raise _GrantError("general_error")
    if source is None:
        tables.write_entry(place, 0)
    else:
        tables.move_entry(source, place)


# -- copies ------------------------------------------------------------------------------------------


def _copy(domain: Domain, _at: int, data: bytes) -> None:
    """struct gnttab_copy: source, dest {ref or gmfn, domid u16, offset u16}, len u16, flags u16, status."""
    half = 8 if domain.width == 32 else 16
    length, flags = _number(data, 2 * half, 2), _number(data, 2 * half + 2, 2)
    ends = (data[:half], data[half : 2 * half])
    word = domain.width // 8
    offsets = [_number(end, word + 2, 2) for end in ends]
    if any(offset + length > PAGE_SIZE for offset in offsets):
        raise _GrantError("bad_copy_arg")
    frames = [_copy_end(domain, end, bool(flags & 1 << n), n == 1, length) for n, end in enumerate(ends)]
    content = domain.memory.load(frames[0] * PAGE_SIZE + offsets[0], length)
    domain.memory.store(frames[1] * PAGE_SIZE + offsets[1], content)


def _copy_end(domain: Domain, data: bytes, by_reference: bool, write: bool, length: int) -> int:
    """The frame of one side of a copy. Raises _GrantError."""
    size = domain.width // 8
    name = _number(data, 0, 4 if by_reference else size)
    domid, offset = _number(data, size, 2), _number(data, size + 2, 2)
    if by_reference:
        entry = _granted(domain, domain.domid if domid == DOMID_SELF else domid, name, not write, whole=False)
        if entry.through is not None:
            entry = _granted(domain, *entry.through, not write, whole=False)
            if entry.through is not None:
                raise _GrantError("general_error")
        if offset < entry.start or offset + length > entry.start + entry.length:
            raise _GrantError("general_error")
        name = entry.frame
        if not domain.frames.owned(name):
            raise _GrantError("bad_page")
    elif not _known(domain, domid):
        raise _GrantError("permission_denied")
    elif not domain.frames.owned(name):
        raise _GrantError("bad_page")
    if write and not domain.frames.can_be(name, PageType.WRITABLE):
        raise _GrantError("general_error")
    return name


_SINGLE: dict[str, Callable[[Domain, int], int]] = {
    "setup_table": _setup,
    "query_size": _query,
    "set_version": _set_version,
    "get_version": _get_version,
    "get_status_frames": _status_frames,
}
_ONE_ONLY = ("setup_table", "query_size", "get_status_frames")
_LISTS: dict[str, tuple[Callable[[Domain, int, bytes], None], tuple[int, int], tuple[int, int]]] = {
    "map_grant_ref": (_map, (32, 32), (18, 18)),
    "unmap_grant_ref": (_unmap, (24, 24), (20, 20)),
    "unmap_and_replace": (_unmap_and_replace, (24, 24), (20, 20)),
    "copy": (_copy, (24, 40), (20, 36)),
    "swap_grant_ref": (_swap, (12, 12), (8, 8)),
}
"""What carries an operation out, the size of its structure, and where its status is (pv32, pv64)."""
