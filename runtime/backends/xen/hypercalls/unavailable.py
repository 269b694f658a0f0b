"""Hypercalls that a domain without privileges or devices cannot use, with the error each gives."""

from __future__ import annotations

from collections.abc import Sequence

from runtime.backends.xen.domain import Domain
from runtime.backends.xen.hypercalls.dispatch import handler
from runtime.backends.xen.layout import ERRNO

__all__: list[str] = []

PHYSDEV_SET_IOPL, PHYSDEV_SET_IOBITMAP = 6, 7
PHYSDEV_KNOWN = frozenset(range(4, 33))
MAX_IOBITMAP_PORTS = 65536


def _refuse(name: str, error: ERRNO) -> None:
    @handler(name)
    def refused(_domain: Domain, _arguments: Sequence[int]) -> int:
        return -int(error)


for _name in ("platform_op", "sysctl", "domctl", "kexec_op", "mca", "xsm_op"):
    _refuse(_name, ERRNO.EPERM)
for _name in (
    "xenoprof_op",
    "hvm_op",
    "tmem_op",
    "argo_op",
    "xenpmu_op",
    "dm_op",
    "hypfs_op",
    "arch_1",
    "arch_2",
    "arch_3",
    "arch_4",
    "arch_5",
    "arch_6",
    "paging_domctl_cont",
):
    _refuse(_name, ERRNO.ENOSYS)


@handler("physdev_op")
def physdev_op(domain: Domain, arguments: Sequence[int]) -> int:
    """I/O privilege can be asked for; interrupts and PCI devices there are none."""
    command, address = arguments[0] & 0xFFFFFFFF, arguments[1]
    if command == PHYSDEV_SET_IOPL:
        iopl = domain.space.word(address, 4)
        if iopl > 3:
            return -ERRNO.EINVAL
        domain.iopl = iopl
        return 0
    if command == PHYSDEV_SET_IOBITMAP:
        ports = domain.space.word(address + domain.width // 8, 4)
        return -ERRNO.EINVAL if ports > MAX_IOBITMAP_PORTS else 0
    if command not in PHYSDEV_KNOWN:
        return -ERRNO.ENOSYS
    domain.space.read(address, 4)
    return -ERRNO.EPERM


@handler("physdev_op_compat")
def physdev_op_compat(domain: Domain, arguments: Sequence[int]) -> int:
    """The 2005 form: the command stands in front of its argument."""
    command = domain.space.word(arguments[0], 4)
    return physdev_op(domain, (command, arguments[0] + (4 if domain.width == 32 else 8)))
