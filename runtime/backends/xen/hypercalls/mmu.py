"""Page-table hypercalls: mmu_update, mmuext_op, update_va_mapping (xen/arch/x86/mm.c)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from struct import Struct as Packed

from runtime.backends.xen.domain import Domain
from runtime.backends.xen.events import DOMID_SELF
from runtime.backends.xen.frames import XenError
from runtime.backends.xen.hypercalls.dispatch import Continue, handler
from runtime.backends.xen.layout import ERRNO, PAGE_SIZE, Struct, names, struct

__all__: list[str] = []

NORMAL, MACHPHYS, PRESERVE_AD, NO_TRANSLATE = range(4)
COMMAND_BITS = 7
FLUSH_TYPE = 3
FLUSH_TLB, FLUSH_INVLPG = 1, 2
FLUSH_ALL = 4
MMUEXT = names("mmuext")
_UPDATE = Packed("<QQ")
"""struct mmu_update, the same for both widths."""
MAX_LDT_ENTRIES = 8192
PREEMPTED = 1 << 31
DOMID_CONTROL, DOMID_IO = 0, 0x7FF1


def _own_pages(foreign: int) -> None:
    """get_pg_owner: only DOMID_SELF names the domain here, its own number is refused.

    Raises XenError: EPERM for domains that exist, ESRCH otherwise.
    """
    domid = foreign & 0xFFFF
    if domid != DOMID_SELF:
        known = domid in (DOMID_CONTROL, DOMID_IO)
        raise XenError(ERRNO.EPERM if known else ERRNO.ESRCH, f"pages of domain {domid}")


def _run_list(
    domain: Domain, arguments: Sequence[int], layout: Struct, one: Callable[[Domain, bytes], None]
) -> int | Continue:
    """A list of {address, count, done*, foreign domain}: in order, up to the first error; `done` tells how
    many were carried out, whether it can be written or not."""
    address, count, done_at, foreign = arguments[0], arguments[1] & 0xFFFFFFFF, arguments[2], arguments[3]
    done = 0
    if count & PREEMPTED:
        count &= ~PREEMPTED
        done = _word_or_zero(domain, done_at)
    if not domain.space.accessible(address, count * layout.size):
        raise XenError(ERRNO.EFAULT, f"list at {address:#x}")
    _own_pages(foreign)
    result: int | Continue = 0
    index = 0
    for index in range(count):
        if index and domain.exhausted:
            left = (address + index * layout.size, (count - index) | PREEMPTED, done_at, foreign)
            result = Continue(left)
            break
        domain.work()
        try:
            one(domain, domain.space.read(address + index * layout.size, layout.size))
        except XenError as error:
            domain.log(str(error))
            result = -int(error.errno)
            break
    else:
        index = count
    if done_at:
        _write_or_not(domain, done_at, (done + index).to_bytes(4, "little"))
    return result


def _word_or_zero(domain: Domain, address: int) -> int:
    try:
        return domain.space.word(address, 4) if address else 0
    except XenError:
        return 0


def _write_or_not(domain: Domain, address: int, data: bytes) -> None:
    try:
        domain.space.write(address, data)
    except XenError as error:
        domain.log(str(error))


@handler("mmu_update")
def mmu_update(domain: Domain, arguments: Sequence[int]) -> int | Continue:
    """A list of {machine address of entry | command, value}."""
    return _run_list(domain, arguments, struct("mmu_update", domain.width), _one_update)


def _one_update(domain: Domain, request: bytes) -> None:
    pointer, value = _UPDATE.unpack(request)
    command = pointer & COMMAND_BITS
    if command == MACHPHYS:
        mfn = pointer >> 12
        if domain.translated or not domain.frames.owned(mfn):
            raise XenError(ERRNO.EINVAL, f"frame {mfn:#x} has no entry that is the domain's")
        domain.set_pfn_of(mfn, value)
    elif command in (NORMAL, PRESERVE_AD, NO_TRANSLATE):
        domain.tables.write_entry(pointer & ~COMMAND_BITS, value, preserve_ad=command == PRESERVE_AD)
    else:
        raise XenError(ERRNO.ENOSYS, f"page update command {command}")


@handler("update_va_mapping")
def update_va_mapping(domain: Domain, arguments: Sequence[int]) -> int:
    """Write the L1 entry that maps one virtual address, and flush as asked."""
    if domain.width == 32:
        address, value, flags = arguments[0], arguments[1] | arguments[2] << 32, arguments[3]
    else:
        address, value, flags = arguments[0], arguments[1], arguments[2]
    if not domain.space.accessible(address, 1):
        raise XenError(ERRNO.EINVAL, f"{address:#x} is not the guest's to map")
    found = domain.tables.leaf_entry(domain.space.root(), address)
    if found is None:
        raise XenError(ERRNO.EINVAL, f"no L1 table maps {address:#x}")
    domain.tables.write_entry(found, value)
    domain.cpu.flush(address)
    where = flags & ~FLUSH_TYPE
    if flags & FLUSH_TYPE in (FLUSH_TLB, FLUSH_INVLPG) and where not in (0, FLUSH_ALL):
        domain.space.read(where, domain.width // 8)
    return 0


@handler("update_va_mapping_otherdomain")
def update_va_mapping_otherdomain(domain: Domain, arguments: Sequence[int]) -> int:
    """The same with frames of another domain, of which there is none to be had."""
    _own_pages(arguments[4] if domain.width == 32 else arguments[3])
    return update_va_mapping(domain, arguments)


@handler("mmuext_op")
def mmuext_op(domain: Domain, arguments: Sequence[int]) -> int | Continue:
    """A list of extended operations."""
    return _run_list(domain, arguments, struct("mmuext_op", domain.width), _one_operation)


def _one_operation(domain: Domain, request: bytes) -> None:
    fields = struct("mmuext_op", domain.width).unpack(request)
    command, first, second = fields["cmd"], fields["arg1"], fields["arg2"]
    name = MMUEXT.get(command, "")
    if name.startswith("pin_"):
        if command + 1 <= domain.tables.top_level:
            domain.tables.pin(first, command + 1)
    elif name == "unpin_table":
        domain.tables.unpin(first)
        domain.cpu.flush()
    elif name in ("new_baseptr", "new_user_baseptr"):
        _new_base(domain, first, user=name == "new_user_baseptr")
    elif name in ("tlb_flush_local", "tlb_flush_multi", "tlb_flush_all"):
        _check_processors(domain, name, second)
        domain.cpu.flush()
    elif name in ("invlpg_local", "invlpg_multi", "invlpg_all"):
        _check_processors(domain, name, second)
        if domain.space.accessible(first, 1):
            domain.cpu.flush(first)
    elif name in ("flush_cache", "flush_cache_global"):
        raise XenError(ERRNO.EACCES, "cache flushes are for domains with devices")
    elif name == "set_ldt":
        _set_ldt(domain, first, second & 0xFFFFFFFF)
    elif name in ("clear_page", "copy_page"):
        _fill_page(domain, first, second if name == "copy_page" else None)
    elif name in ("mark_super", "unmark_super"):
        raise XenError(ERRNO.EOPNOTSUPP, "superpages are not for this domain")
    else:
        raise XenError(ERRNO.ENOSYS, f"mmuext command {command}")


def _check_processors(domain: Domain, name: str, bitmap: int) -> None:
    """The set of vcpus of a `multi` command, which has to be readable. Raises XenError(EINVAL)."""
    if name.endswith("_multi"):
        try:
            domain.space.read(bitmap, domain.width // 8)
        except XenError as error:
            raise XenError(ERRNO.EINVAL, error.why) from None


def _new_base(domain: Domain, mfn: int, user: bool) -> None:
    if user and domain.width == 32:
        raise XenError(ERRNO.EOPNOTSUPP, "pv32 guests have one page-table base")
    old = domain.user_root if user else domain.kernel_root
    if mfn == old:
        if not user:
            domain.cpu.flush()
        return
    if mfn or not user:
        domain.tables.get_root(mfn)
    if user:
        domain.user_root = mfn
    else:
        domain.drop_ldt()
        domain.kernel_root = mfn
        domain.cpu.set_page_table(mfn * PAGE_SIZE)
    if old:
        domain.tables.put_type(old)


def _set_ldt(domain: Domain, base: int, entries: int) -> None:
    base = base if entries else 0
    if entries > MAX_LDT_ENTRIES or base & (PAGE_SIZE - 1) or not domain.space.accessible(base, entries * 8):
        raise XenError(ERRNO.EINVAL, f"LDT at {base:#x} with {entries} entries")
    if (base, entries) != (domain.ldt_base, domain.ldt_entries):
        domain.drop_ldt()
        domain.ldt_base, domain.ldt_entries = base, entries
        domain.cpu.reload_tables()


def _fill_page(domain: Domain, destination: int, source: int | None) -> None:
    frames = domain.frames
    if source is not None and not frames.owned(source):
        raise XenError(ERRNO.EINVAL, f"frame {source:#x} is not the domain's")
    if not frames.owned(destination):
        raise XenError(ERRNO.EINVAL, f"frame {destination:#x} is not the domain's")
    try:
        frames.get_writable(destination)
    except XenError as error:
        raise XenError(ERRNO.EINVAL, error.why) from None
    data = bytes(PAGE_SIZE) if source is None else domain.memory.load(source * PAGE_SIZE, PAGE_SIZE)
    domain.memory.store(destination * PAGE_SIZE, data)
    frames.put_writable(destination)


@handler("vm_assist")
def vm_assist(domain: Domain, arguments: Sequence[int]) -> int:
    """Enable (0) or disable (1) an assist; 64-bit guests may ask for those of pv32 too (asm/domain.h)."""
    command, kind = arguments[0] & 0xFFFFFFFF, arguments[1] & 0xFFFFFFFF
    valid = {0, 1, 2, 3, 4, 5} if domain.width == 32 else {0, 1, 2, 3, 4, 5, 32}
    if kind not in valid:
        raise XenError(ERRNO.EINVAL, f"vm_assist type {kind}")
    if command == 0:
        domain.vm_assist |= 1 << kind
    elif command == 1:
        domain.vm_assist &= ~(1 << kind)
    else:
        raise XenError(ERRNO.ENOSYS, f"vm_assist command {command}")
    return 0
