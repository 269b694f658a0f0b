"""Traps, callbacks, descriptor tables and stacks (xen/arch/x86/pv/{traps,callback,descriptor-tables}.c)."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from runtime.backends.xen.descriptors import checked_descriptor, guest_selector
from runtime.backends.xen.domain import FIRST_RESERVED_GDT_ENTRY, Callback, Domain, Trap
from runtime.backends.xen.frames import PageType, XenError
from runtime.backends.xen.hypercalls.dispatch import Continue, handler
from runtime.backends.xen.layout import ERRNO, PAGE_SIZE, numbers, struct
from runtime.backends.xen.selectors import FLAT

__all__: list[str] = []

CALLBACK = numbers("callback")
NMI_VECTOR = 2
CALLBACK_NAMES = {CALLBACK[name]: name for name in ("event", "failsafe", "syscall", "sysenter", "syscall32")}


def canonical(address: int) -> bool:
    """SDM volume 1, section 3.3.7.1, for 48-bit addresses."""
    return address < 1 << 47 or (1 << 64) - (1 << 47) <= address < 1 << 64


def _check_code_address(domain: Domain, address: int) -> None:
    if domain.width == 64 and not canonical(address):
        raise XenError(ERRNO.EINVAL, f"entry point {address:#x} is not canonical")


@handler("set_trap_table")
def set_trap_table(domain: Domain, arguments: Sequence[int]) -> int | Continue:
    """An array of trap_info ended by address 0; NULL clears the table."""
    address = arguments[0]
    if address == 0:
        domain.traps.clear()
        return 0
    layout = struct("trap_info", domain.width)
    for index in itertools.count():
        at = address + index * layout.size
        if index and domain.exhausted:
            return Continue((at,))
        domain.work()
        entry = domain.space.fields(at, layout)
        if entry["address"] == 0:
            break
        _check_code_address(domain, entry["address"])
        domain.traps[entry["vector"]] = Trap(
            entry["flags"] & 3,
            bool(entry["flags"] & 4),
            guest_selector(entry["cs"], domain.width),
            entry["address"],
        )
    return 0


@handler("set_gdt")
def set_gdt(domain: Domain, arguments: Sequence[int]) -> int:
    """Install up to 14 pages of descriptors; each becomes a segment-descriptor page."""
    address, entries = arguments[0], arguments[1] & 0xFFFFFFFF
    if entries > FIRST_RESERVED_GDT_ENTRY:
        raise XenError(ERRNO.EINVAL, f"{entries} descriptors reach into Xen's part of the GDT")
    size = domain.width // 8
    count = (entries + 511) // 512
    data = domain.space.read(address, count * size) if count else b""
    frames = [int.from_bytes(data[i * size : (i + 1) * size], "little") for i in range(count)]
    taken: list[int] = []
    try:
        for mfn in frames:
            domain.tables.get_type(mfn, PageType.SEGMENT)
            taken.append(mfn)
    except XenError as error:
        for mfn in taken:
            domain.tables.put_type(mfn)
        raise XenError(ERRNO.EINVAL, error.why) from None
    for mfn in domain.gdt_frames:
        domain.tables.put_type(mfn)
    domain.gdt_frames, domain.gdt_entries = frames, entries
    domain.cpu.reload_tables()
    return 0


@handler("update_descriptor")
def update_descriptor(domain: Domain, arguments: Sequence[int]) -> int:
    """Write one descriptor at a machine address, in a descriptor page or a writable one."""
    if domain.width == 32:
        address = arguments[0] | arguments[1] << 32
        descriptor = arguments[2] | arguments[3] << 32
    else:
        address, descriptor = arguments[0], arguments[1]
    if address & 7:
        raise XenError(ERRNO.EINVAL, f"descriptor address {address:#x} is not aligned")
    descriptor = checked_descriptor(descriptor, domain.width)
    mfn = address // PAGE_SIZE
    if not domain.frames.owned(mfn):
        raise XenError(ERRNO.EINVAL, f"frame {mfn:#x} is not the domain's")
    if not (domain.frames.can_be(mfn, PageType.SEGMENT) or domain.frames.can_be(mfn, PageType.WRITABLE)):
        raise XenError(ERRNO.EINVAL, f"frame {mfn:#x} is a page table")
    domain.memory.store(address, descriptor.to_bytes(8, "little"))
    return 0


@handler("stack_switch")
def stack_switch(domain: Domain, arguments: Sequence[int]) -> int:
    """The stack for entries from user mode."""
    domain.kernel_ss = guest_selector(arguments[0] & 0xFFFF, domain.width)
    domain.kernel_sp = arguments[1]
    return 0


def register_callback(domain: Domain, kind: int, callback: Callback) -> int:
    """Install one entry point. The error codes are those of register_guest_callback."""
    if domain.width == 64 and not canonical(callback.address):
        return -ERRNO.EINVAL
    if kind == CALLBACK["nmi"]:
        cs = callback.cs or FLAT[domain.width]["kernel_cs"]
        domain.traps[NMI_VECTOR] = Trap(0, True, cs, callback.address)
        return 0
    if kind == CALLBACK["sysenter_deprecated"]:
        kind = CALLBACK["sysenter"] if domain.width == 32 else kind
    name = CALLBACK_NAMES.get(kind)
    if name is None or (domain.width == 32 and name in ("syscall",)):
        return -ERRNO.ENOSYS
    domain.callbacks[name] = callback
    return 0


@handler("set_callbacks")
def set_callbacks(domain: Domain, arguments: Sequence[int]) -> int:
    """The original form: event and failsafe (pv32, with selectors), and syscall (pv64)."""
    if domain.width == 32:
        pairs = [("event", arguments[0], arguments[1]), ("failsafe", arguments[2], arguments[3])]
        for name, cs, address in pairs:
            register_callback(domain, CALLBACK[name], Callback(guest_selector(cs, 32), address))
    else:
        for name, address in zip(("event", "failsafe", "syscall"), arguments, strict=False):
            register_callback(domain, CALLBACK[name], Callback(0, address))
    return 0


@handler("callback_op")
def callback_op(domain: Domain, arguments: Sequence[int]) -> int:
    """Register (0) or unregister (1) one callback; only the NMI's can be taken away again."""
    command, address = arguments[0], arguments[1]
    if command == 0:
        size = domain.width // 8
        data = domain.space.read(address, 12 if domain.width == 32 else 16)
        kind, flags = int.from_bytes(data[0:2], "little"), int.from_bytes(data[2:4], "little")
        cs = guest_selector(int.from_bytes(data[4:8], "little"), 32) if domain.width == 32 else 0
        target = int.from_bytes(data[8 : 8 + size], "little")
        return register_callback(domain, kind, Callback(cs, target, bool(flags & 1)))
    if command == 1:
        kind = domain.space.word(address, 2)
        if kind == CALLBACK["nmi"]:
            domain.traps.pop(NMI_VECTOR, None)
            return 0
        return -ERRNO.EINVAL if kind in CALLBACK_NAMES else -ERRNO.ENOSYS
    return -ERRNO.ENOSYS


@handler("nmi_op")
def nmi_op(domain: Domain, arguments: Sequence[int]) -> int:
    """Register (0) or unregister (1) the NMI handler: struct xennmi_callback {handler, pad}."""
    command, address = arguments[0], arguments[1]
    if command == 0:
        target = domain.space.word(address, domain.width // 8)
        return register_callback(domain, CALLBACK["nmi"], Callback(0, target))
    if command == 1:
        domain.traps.pop(NMI_VECTOR, None)
        return 0
    return -ERRNO.ENOSYS
