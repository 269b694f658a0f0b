"""grant_table_op for a domain that can grant to itself only (xen/common/grant_table.c)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from runtime.backends.xen.domain import Domain
from runtime.backends.xen.events import DOMID_SELF, check_domain
from runtime.backends.xen.frames import PageType, XenError
from runtime.backends.xen.grants import GRANT_STATUS, PERMIT_ACCESS, READ_ONLY, TYPE_MASK, Mapping
from runtime.backends.xen.hypercalls.dispatch import Continue, handler
from runtime.backends.xen.layout import ERRNO, PAGE_SIZE, names
from runtime.backends.xen.paging import ACCESSED, DIRTY, FRAME_MASK, PRESENT, USER, WRITE

__all__: list[str] = []

COMMANDS = names("grant")
NO_DEVICES = (
    "dump_table",
    "transfer",
    "unmap_and_replace",
    "get_status_frames",
    "swap_grant_ref",
    "cache_flush",
)
HOST_MAP, MAP_READ_ONLY, CONTAINS_PTE = 2, 4, 16


@handler("grant_table_op")
def grant_table_op(domain: Domain, arguments: Sequence[int]) -> int | Continue:
    """A command on an array of operations; each has its own GNTST status."""
    command, address, count = arguments[0] & 0xFFFFFFFF, arguments[1], arguments[2] & 0xFFFFFFFF
    name = COMMANDS.get(command, "")
    if count >= 1 << 31:
        raise XenError(ERRNO.EINVAL, f"{count} operations")
    if name in ("setup_table", "query_size"):
        if count != 1:
            raise XenError(ERRNO.EINVAL, f"{name} takes one operation")
        return _setup(domain, address) if name == "setup_table" else _query(domain, address)
    if name in _LISTS:
        return _run_list(domain, command, address, count)
    if name == "set_version":
        return _set_version(domain, address)
    if name == "get_version":
        check_domain(domain.space.word(address, 2), domain.domid)
        domain.space.write(address + 4, (1).to_bytes(4, "little"))
        return 0
    if name in NO_DEVICES:
        if count:
            domain.space.read(address, 1)
        return -ERRNO.EOPNOTSUPP if count else 0
    return -ERRNO.ENOSYS


def _run_list(domain: Domain, command: int, address: int, count: int) -> int | Continue:
    """Every operation of a list, in parts if it is long."""
    operation, sizes = _LISTS[COMMANDS[command]]
    size = sizes[domain.width == 64]
    for index in range(count):
        at = address + index * size
        if index and domain.exhausted:
            return Continue((command, at, count - index))
        domain.work()
        operation(domain, at)
    domain.cpu.flush()
    return 0


def _known(domain: Domain, domid: int) -> bool:
    return domid in (DOMID_SELF, domain.domid)


def _setup(domain: Domain, address: int) -> int:
    """struct {dom u16, nr_frames u32, status s16, frame_list*}."""
    size = domain.width // 8
    data = domain.space.read(address, 16 + size if domain.width == 64 else 16)
    wanted = int.from_bytes(data[4:8], "little")
    list_at = int.from_bytes(data[16 : 16 + size] if domain.width == 64 else data[12:16], "little")
    if not _known(domain, int.from_bytes(data[:2], "little")):
        status = "bad_domain"
    elif not domain.grants.grow(wanted):
        status = "general_error"
    else:
        status = "okay"
        for index, mfn in enumerate(domain.grants.shared[:wanted]):
            domain.space.write(list_at + index * size, mfn.to_bytes(size, "little"))
    domain.space.write(address + 8, GRANT_STATUS[status].to_bytes(2, "little", signed=True))
    return 0


def _query(domain: Domain, address: int) -> int:
    """struct {dom u16, nr_frames u32, max_nr_frames u32, status s16}."""
    known = _known(domain, domain.space.word(address, 2))
    status = GRANT_STATUS["okay" if known else "bad_domain"]
    if known:
        domain.space.write(address + 4, len(domain.grants.shared).to_bytes(4, "little"))
        domain.space.write(address + 8, domain.grants.limit.to_bytes(4, "little"))
    domain.space.write(address + 12, status.to_bytes(2, "little", signed=True))
    return 0


def _set_version(domain: Domain, address: int) -> int:
    version = domain.space.word(address, 4)
    if version not in (1, 2):
        raise XenError(ERRNO.EINVAL, f"grant table version {version}")
    domain.space.write(address, (1).to_bytes(4, "little"))
    return 0 if version == 1 else -ERRNO.ENOSYS


def _granted(domain: Domain, domid: int, reference: int) -> tuple[str, int, bool]:
    """(status, frame, read-only) of a grant that this domain gave to itself."""
    if not _known(domain, domid):
        return "bad_domain", 0, True
    entry = domain.grants.entry(reference)
    if entry is None:
        return "bad_gntref", 0, True
    flags, grantee, frame = entry
    if flags & TYPE_MASK != PERMIT_ACCESS or grantee != domain.domid:
        return "general_error", 0, True
    if not domain.frames.owned(frame):
        return "bad_page", 0, True
    return "okay", frame, bool(flags & READ_ONLY)


def _set_status(domain: Domain, address: int, status: str) -> None:
    domain.space.write(address, GRANT_STATUS[status].to_bytes(2, "little", signed=True))


def _map(domain: Domain, at: int) -> None:
    """struct {host_addr u64, flags u32, ref u32, dom u16, status s16, handle u32, dev_bus_addr u64}."""
    data = domain.space.read(at, 32)
    host, flags, reference = (int.from_bytes(data[a:b], "little") for a, b in ((0, 8), (8, 12), (12, 16)))
    status, frame, granted_read_only = _granted(domain, int.from_bytes(data[16:18], "little"), reference)
    read_only = bool(flags & MAP_READ_ONLY)
    if status == "okay" and not flags & HOST_MAP:
        status = "bad_gntref"
    if status == "okay" and granted_read_only and not read_only:
        status = "general_error"
    entry = _entry_for(domain, host, flags) if status == "okay" else None
    if status == "okay" and entry is None:
        status = "general_error"
    if entry is not None:
        value = frame << 12 | PRESENT | USER | ACCESSED | DIRTY | (0 if read_only else WRITE)
        try:
            domain.tables.write_entry(entry, value)
        except XenError as error:
            domain.log(str(error))
            status = "general_error"
        else:
            handle = domain.grants.add(Mapping(reference, frame, read_only, entry))
            domain.space.write(at + 20, handle.to_bytes(4, "little"))
            domain.space.write(at + 24, (frame * PAGE_SIZE).to_bytes(8, "little"))
    _set_status(domain, at + 18, status)


def _entry_for(domain: Domain, host: int, flags: int) -> int | None:
    """Machine address of the L1 entry to be used: named itself, or by the address that it maps."""
    if not flags & CONTAINS_PTE:
        return (
            domain.tables.leaf_entry(domain.space.root(), host) if domain.space.accessible(host, 1) else None
        )
    mfn = host // PAGE_SIZE
    is_table = domain.frames.owned(mfn) and domain.frames.kind[mfn] == PageType.L1
    return host if is_table and domain.frames.type_count[mfn] and not host & 7 else None


def _unmap(domain: Domain, at: int) -> None:
    """struct {host_addr u64, dev_bus_addr u64, handle u32, status s16}."""
    handle = domain.space.word(at + 16, 4)
    mapping = domain.grants.mappings.get(handle)
    if mapping is None:
        _set_status(domain, at + 20, "bad_handle")
        return
    entry = int.from_bytes(domain.memory.load(mapping.address, 8), "little")
    frame = mapping.address // PAGE_SIZE
    in_place = domain.frames.owned(frame) and domain.frames.kind[frame] == PageType.L1
    if not in_place or not entry & PRESENT or (entry & FRAME_MASK) >> 12 != mapping.mfn:
        _set_status(domain, at + 20, "general_error")
        return
    domain.tables.write_entry(mapping.address, 0)
    domain.grants.remove(handle)
    _set_status(domain, at + 20, "okay")


def _copy(domain: Domain, at: int) -> None:
    """struct gnttab_copy: source, dest {ref or gmfn, domid u16, offset u16}, len u16, flags u16, status."""
    half = 8 if domain.width == 32 else 16
    size = 2 * half + 8
    data = domain.space.read(at, size)
    length = int.from_bytes(data[2 * half : 2 * half + 2], "little")
    flags = int.from_bytes(data[2 * half + 2 : 2 * half + 4], "little")
    source, from_at = _copy_end(domain, data[:half], bool(flags & 1), write=False)
    target, to_at = _copy_end(domain, data[half : 2 * half], bool(flags & 2), write=True)
    if from_at + length > PAGE_SIZE or to_at + length > PAGE_SIZE:
        status = "bad_copy_arg"
    elif isinstance(source, str) or isinstance(target, str):
        status = source if isinstance(source, str) else str(target)
    else:
        status = "okay"
        content = domain.memory.load(source * PAGE_SIZE + from_at, length)
        domain.memory.store(target * PAGE_SIZE + to_at, content)
    _set_status(domain, at + 2 * half + 4, status)


def _copy_end(domain: Domain, data: bytes, by_reference: bool, write: bool) -> tuple[int | str, int]:
    """(frame or status, offset) of one side of a copy."""
    size = domain.width // 8
    name = int.from_bytes(data[:4] if by_reference else data[:size], "little")
    domid = int.from_bytes(data[size : size + 2], "little")
    offset = int.from_bytes(data[size + 2 : size + 4], "little")
    if by_reference:
        status, frame, read_only = _granted(domain, domid, name)
        if status == "okay" and write and (read_only or not domain.frames.can_be(frame, PageType.WRITABLE)):
            status = "general_error"
        return (frame if status == "okay" else status), offset
    if not _known(domain, domid):
        return "permission_denied", offset
    if not domain.frames.owned(name):
        return "bad_page", offset
    if write and not domain.frames.can_be(name, PageType.WRITABLE):
        return "general_error", offset
    return name, offset


_LISTS: dict[str, tuple[Callable[[Domain, int], None], tuple[int, int]]] = {
    "map_grant_ref": (_map, (32, 32)),
    "unmap_grant_ref": (_unmap, (24, 24)),
    "copy": (_copy, (24, 40)),
}
"""What carries an operation out, and the size of its structure (pv32, pv64)."""
