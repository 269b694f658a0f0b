"""grant_table_op for a domain that can grant to itself only (xen/common/grant_table.c)."""

from __future__ import annotations

from collections.abc import Sequence

from runtime.backends.xen.domain import Domain
from runtime.backends.xen.events import DOMID_SELF
from runtime.backends.xen.frames import XenError
from runtime.backends.xen.grants import GRANT_STATUS, PERMIT_ACCESS, READ_ONLY, TYPE_MASK
from runtime.backends.xen.hypercalls.dispatch import handler
from runtime.backends.xen.layout import ERRNO, PAGE_SIZE, names

__all__: list[str] = []

COMMANDS = names("grant")
MAX_OPERATIONS = 4096
COPY_SIZE = {32: 32, 64: 40}


@handler("grant_table_op")
def grant_table_op(domain: Domain, arguments: Sequence[int]) -> int:
    """A command on an array of operations; each has its own GNTST status."""
    name, address, count = (
        COMMANDS.get(arguments[0] & 0xFFFFFFFF, ""),
        arguments[1],
        arguments[2] & 0xFFFFFFFF,
    )
    if count >= 1 << 31:
        raise XenError(ERRNO.EINVAL, f"{count} operations")
    if name in ("setup_table", "query_size"):
        if count != 1:
            raise XenError(ERRNO.EINVAL, f"{name} takes one operation")
        return _setup(domain, address) if name == "setup_table" else _query(domain, address)
    if name in ("map_grant_ref", "unmap_grant_ref", "copy"):
        for index in range(min(count, MAX_OPERATIONS)):
            {"map_grant_ref": _map, "unmap_grant_ref": _unmap, "copy": _copy}[name](domain, address, index)
        return 0
    if name == "set_version":
        return _set_version(domain, address)
    if name == "get_version":
        data = domain.space.read(address, 8)
        if int.from_bytes(data[:2], "little") not in (DOMID_SELF, domain.domid):
            raise XenError(ERRNO.ESRCH, "no such domain")
        domain.space.write(address + 4, (1).to_bytes(4, "little"))
        return 0
    if name in (
        "dump_table",
        "transfer",
        "unmap_and_replace",
        "get_status_frames",
        "swap_grant_ref",
        "cache_flush",
    ):
        if count:
            domain.space.read(address, 1)
        return -ERRNO.EOPNOTSUPP if count else 0
    return -ERRNO.ENOSYS


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


def _map(domain: Domain, base: int, index: int) -> None:
    """struct {host_addr u64, flags u32, ref u32, dom u16, status s16, handle u32, dev_bus_addr u64}.

    Mapping into the page tables of a domain without peers has no use; the checks are Xen's, and a
    mapping that passes them is refused as a virtual address that cannot be used.
    """
    at = base + 32 * index
    data = domain.space.read(at, 32)
    status, _, read_only = _granted(
        domain, int.from_bytes(data[16:18], "little"), int.from_bytes(data[12:16], "little")
    )
    if status == "okay":
        wants_write = not int.from_bytes(data[8:12], "little") & 4
        status = "general_error" if read_only and wants_write else "bad_virt_addr"
    domain.space.write(at + 18, GRANT_STATUS[status].to_bytes(2, "little", signed=True))


def _unmap(domain: Domain, base: int, index: int) -> None:
    """struct {host_addr u64, dev_bus_addr u64, handle u32, status s16}."""
    at = base + 24 * index
    handle = domain.space.word(at + 16, 4)
    status = "okay" if domain.grants.remove(handle) is not None else "bad_handle"
    domain.space.write(at + 20, GRANT_STATUS[status].to_bytes(2, "little", signed=True))


def _copy(domain: Domain, base: int, index: int) -> None:
    """struct gnttab_copy: source, dest {ref or gmfn, domid u16, offset u16}, len u16, flags u16, status."""
    half = 8 if domain.width == 32 else 16
    size = 2 * half + 8
    at = base + size * index
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
    domain.space.write(at + 2 * half + 4, GRANT_STATUS[status].to_bytes(2, "little", signed=True))


def _copy_end(domain: Domain, data: bytes, by_reference: bool, write: bool) -> tuple[int | str, int]:
    """(frame or status, offset) of one side of a copy."""
    size = domain.width // 8
    name = int.from_bytes(data[:4] if by_reference else data[:size], "little")
    domid = int.from_bytes(data[size : size + 2], "little")
    offset = int.from_bytes(data[size + 2 : size + 4], "little")
    if by_reference:
        status, frame, read_only = _granted(domain, domid, name)
        if status == "okay" and write and read_only:
            status = "general_error"
        return (frame if status == "okay" else status), offset
    if not _known(domain, domid):
        return "permission_denied", offset
    if not domain.frames.owned(name):
        return "bad_page", offset
    if write and domain.frames.type_count[name] and domain.frames.kind[name] != 6:
        return "permission_denied", offset
    return name, offset
