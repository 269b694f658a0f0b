"""Page-table hypercalls: mmu_update, mmuext_op, update_va_mapping (xen/arch/x86/mm.c)."""

from __future__ import annotations

from collections.abc import Sequence

from runtime.backends.xen.domain import Domain
from runtime.backends.xen.events import DOMID_SELF
from runtime.backends.xen.frames import XenError
from runtime.backends.xen.hypercalls.dispatch import handler
from runtime.backends.xen.layout import ERRNO, PAGE_SIZE, names, struct

__all__: list[str] = []

NORMAL, MACHPHYS, PRESERVE_AD, NO_TRANSLATE = range(4)
FLUSH_NONE, FLUSH_TLB, FLUSH_INVLPG = range(3)
MMUEXT = names("mmuext")
MAX_LDT_ENTRIES = 8192
PREEMPTED = 1 << 31


def _own_domain(domain: Domain, foreign: int) -> None:
    """Only the domain itself can be named. Raises XenError: EPERM another domain, ESRCH none there."""
    if foreign & 0xFFFF in (DOMID_SELF, domain.domid):
        return
    raise XenError(ERRNO.ESRCH if foreign & 0xFFFF < DOMID_SELF else ERRNO.EPERM, f"domain {foreign}")


def _report_done(domain: Domain, address: int, done: int) -> None:
    if address:
        domain.space.write(address, done.to_bytes(4, "little"))


@handler("mmu_update")
def mmu_update(domain: Domain, arguments: Sequence[int]) -> int:
    """A list of {machine address of entry | command, value}; stops at the first error."""
    address, count, done_address = arguments[0], arguments[1] & ~PREEMPTED & 0xFFFFFFFF, arguments[2]
    _own_domain(domain, arguments[3] & 0xFFFF)
    layout = struct("mmu_update", domain.width)
    if not domain.space.accessible(address, count * layout.size):
        raise XenError(ERRNO.EFAULT, f"update list at {address:#x}")
    done, error = 0, None
    for done in range(count):
        try:
            data = domain.space.read(address + done * layout.size, layout.size)
            _one_update(domain, int.from_bytes(data[:8], "little"), int.from_bytes(data[8:], "little"))
        except XenError as problem:
            error = problem
            break
    else:
        done = count
    domain.cpu.flush()
    _report_done(domain, done_address, done)
    if error is not None:
        raise error
    return 0


def _one_update(domain: Domain, pointer: int, value: int) -> None:
    command = pointer & 3
    if command == MACHPHYS:
        mfn = pointer >> 12
        if not domain.frames.owned(mfn):
            raise XenError(ERRNO.EINVAL, f"frame {mfn:#x} is not the domain's")
        domain.set_pfn_of(mfn, value)
        return
    domain.tables.write_entry(pointer & ~7, value, preserve_ad=command == PRESERVE_AD)


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
    kind = flags & 3
    if kind == FLUSH_TLB:
        domain.cpu.flush()
    elif kind == FLUSH_INVLPG:
        domain.cpu.flush(address)
    elif kind == 3:
        raise XenError(ERRNO.ENOSYS, f"flush flags {flags:#x}")
    else:
        domain.cpu.flush(address)
    return 0


@handler("update_va_mapping_otherdomain")
def update_va_mapping_otherdomain(domain: Domain, arguments: Sequence[int]) -> int:
    """The same with frames of another domain, of which there is none."""
    _own_domain(domain, arguments[4] if domain.width == 32 else arguments[3])
    return update_va_mapping(domain, arguments)


@handler("mmuext_op")
def mmuext_op(domain: Domain, arguments: Sequence[int]) -> int:
    """A list of extended operations; stops at the first error."""
    address, count, done_address = arguments[0], arguments[1] & ~PREEMPTED & 0xFFFFFFFF, arguments[2]
    _own_domain(domain, arguments[3] & 0xFFFF)
    layout = struct("mmuext_op", domain.width)
    if not domain.space.accessible(address, count * layout.size):
        raise XenError(ERRNO.EFAULT, f"operation list at {address:#x}")
    done, error = 0, None
    for done in range(count):
        try:
            operation = domain.space.fields(address + done * layout.size, layout)
            _one_operation(domain, operation["cmd"], operation["arg1"], operation["arg2"])
        except XenError as problem:
            error = problem
            break
    else:
        done = count
    _report_done(domain, done_address, done)
    if error is not None:
        raise error
    return 0


def _one_operation(domain: Domain, command: int, first: int, second: int) -> None:
    name = MMUEXT.get(command, "")
    if name.startswith("pin_"):
        level = command + 1
        if level > domain.tables.top_level:
            raise XenError(ERRNO.EINVAL, f"a pv{domain.width} guest has no L{level} tables")
        domain.tables.pin(first, level)
    elif name == "unpin_table":
        domain.tables.unpin(first)
        domain.cpu.flush()
    elif name in ("new_baseptr", "new_user_baseptr"):
        _new_base(domain, first, user=name == "new_user_baseptr")
    elif name in ("tlb_flush_local", "tlb_flush_multi", "tlb_flush_all"):
        domain.cpu.flush()
    elif name in ("invlpg_local", "invlpg_multi", "invlpg_all"):
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


def _new_base(domain: Domain, mfn: int, user: bool) -> None:
    if user and domain.width == 32:
        raise XenError(ERRNO.EOPNOTSUPP, "pv32 guests have one page-table base")
    old = domain.user_root if user else domain.kernel_root
    if mfn == old:
        return
    if mfn or not user:
        domain.tables.get_root(mfn)
    if user:
        domain.user_root = mfn
    else:
        domain.kernel_root = mfn
        domain.cpu.set_page_table(mfn * PAGE_SIZE)
    if old:
        domain.tables.put_type(old)


def _set_ldt(domain: Domain, base: int, entries: int) -> None:
    if entries > MAX_LDT_ENTRIES or (entries and base & (PAGE_SIZE - 1)):
        raise XenError(ERRNO.EINVAL, f"LDT at {base:#x} with {entries} entries")
    if entries and not domain.space.accessible(base, entries * 8):
        raise XenError(ERRNO.EINVAL, f"LDT at {base:#x} is out of reach")
    domain.ldt_base, domain.ldt_entries = base, entries
    domain.cpu.reload_tables()


def _fill_page(domain: Domain, destination: int, source: int | None) -> None:
    if source is not None and not domain.frames.owned(source):
        raise XenError(ERRNO.EINVAL, f"frame {source:#x} is not the domain's")
    if not domain.frames.owned(destination):
        raise XenError(ERRNO.EINVAL, f"frame {destination:#x} is not the domain's")
    try:
        domain.frames.get_writable(destination)
    except XenError as error:
        raise XenError(ERRNO.EINVAL, error.why) from None
    data = bytes(PAGE_SIZE) if source is None else domain.memory.load(source * PAGE_SIZE, PAGE_SIZE)
    domain.memory.store(destination * PAGE_SIZE, data)
    domain.frames.put_writable(destination)


@handler("vm_assist")
def vm_assist(domain: Domain, arguments: Sequence[int]) -> int:
    """Enable (0) or disable (1) an assist."""
    command, kind = arguments[0] & 0xFFFFFFFF, arguments[1] & 0xFFFFFFFF
    valid = {0, 1, 2, 3, 4, 5} if domain.width == 32 else {2, 4, 5, 32}
    if kind not in valid:
        raise XenError(ERRNO.EINVAL, f"vm_assist type {kind}")
    if command == 0:
        domain.vm_assist |= 1 << kind
    elif command == 1:
        domain.vm_assist &= ~(1 << kind)
    else:
        raise XenError(ERRNO.ENOSYS, f"vm_assist command {command}")
    return 0
