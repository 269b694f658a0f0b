"""Hypercalls that a domain without privileges or devices cannot use, with the error each gives."""

from __future__ import annotations

from collections.abc import Sequence

from runtime.backends.xen.domain import Domain
from runtime.backends.xen.hypercalls.dispatch import handler
from runtime.backends.xen.layout import ERRNO

__all__: list[str] = []

IRQ_STATUS_QUERY, SET_IOPL, SET_IOBITMAP, EOI = 5, 6, 7, 12
PRIVILEGED_PHYSDEV = frozenset({8, 9, 10, 11, 13, 14, 15, 16, 19, 20, 22, 23, 24, 25, 26, 29, 30, 31, 32})
NEEDS_EOI = 1
PIRQS = 16
"""Interrupt numbers that every domain has, bound or not."""
MAX_IOBITMAP_PORTS = 65536
REFUSED = {
    ERRNO.EPERM: ("kexec_op", "mca", "console_io", "hypfs_op"),
    ERRNO.ENOSYS: (
        "xsm_op",
        "xenoprof_op",
        "hvm_op",
        "tmem_op",
        "argo_op",
        "dm_op",
        "arch_1",
        "arch_2",
        "arch_3",
        "arch_4",
        "arch_5",
        "arch_6",
        "paging_domctl_cont",
    ),
    ERRNO.EOPNOTSUPP: ("xenpmu_op",),
}


TOOLSTACK = {
    "platform_op": (0x03000000, 136),
    "sysctl": (0x15, 136),
    "domctl": (0x15, 144),
}
"""Interface version of 4.17 and size of the request: Xen reads both before it asks who is calling."""


def _for_toolstack(name: str, version: int, size: int) -> None:
    @handler(name)
    def refused(domain: Domain, arguments: Sequence[int]) -> int:
        request = domain.space.read(arguments[0], size)
        given = int.from_bytes(request[4:8], "little")
        return -ERRNO.EACCES if given != version else -ERRNO.EPERM


for _name, (_version, _size) in TOOLSTACK.items():
    _for_toolstack(_name, _version, _size)


def _refuse(name: str, error: ERRNO) -> None:
    @handler(name)
    def refused(_domain: Domain, _arguments: Sequence[int]) -> int:
        return -int(error)


for _error, _names in REFUSED.items():
    for _name in _names:
        _refuse(_name, _error)


@handler("physdev_op")
def physdev_op(domain: Domain, arguments: Sequence[int]) -> int:
    """I/O privilege can be asked for; interrupts and PCI devices there are none."""
    command, address = arguments[0] & 0xFFFFFFFF, arguments[1]
    if command == SET_IOPL:
        iopl = domain.space.word(address, 4)
        if iopl > 3:
            return -ERRNO.EINVAL
        domain.iopl = iopl
    elif command == SET_IOBITMAP:
        ports = domain.space.word(address + domain.width // 8, 4)
        return -ERRNO.EINVAL if ports > MAX_IOBITMAP_PORTS else 0
    elif command == IRQ_STATUS_QUERY:
        if domain.space.word(address, 4) >= PIRQS:
            return -ERRNO.EINVAL
        domain.space.write(address + 4, NEEDS_EOI.to_bytes(4, "little"))
    elif command == EOI:
        if domain.space.word(address, 4) or domain.physical_interrupt is None:
            return -ERRNO.EINVAL
        domain.physical_interrupt.end()
    elif command in PRIVILEGED_PHYSDEV:
        domain.space.read(address, 4)
        return -ERRNO.EPERM
    else:
        return -ERRNO.ENOSYS
    return 0


@handler("physdev_op_compat")
def physdev_op_compat(domain: Domain, arguments: Sequence[int]) -> int:
    """The 2005 form: the command stands in front of its argument."""
    command = domain.space.word(arguments[0], 4)
    return physdev_op(domain, (command, arguments[0] + domain.width // 8))
