"""xen_version and console_io (xen/common/kernel.c, drivers/char/console.c)."""

from __future__ import annotations

from collections.abc import Sequence

from runtime.backends.xen.domain import Domain
from runtime.backends.xen.frames import XenError
from runtime.backends.xen.hypercalls.dispatch import handler
from runtime.backends.xen.layout import ERRNO, PAGE_SIZE, names

__all__ = ["MAJOR", "MINOR"]

MAJOR, MINOR = 4, 17
COMMANDS = names("version")
FEATURES = 1 << 5 | 1 << 6 | 1 << 7 | 1 << 13 | 1 << 16
"""mmu_pt_update_preserve_ad, highmem_assist, gnttab_map_avail_bits, memory_op_vnode, not_direct_mapped."""
PAE_PGDIR_ABOVE_4GB = 1 << 4
PAE_EXTENDED_CR3 = 1 << 3
CAPABILITIES = "xen-3.0-x86_64 xen-3.0-x86_32p "
DENIED = "<denied>"
"""What an unprivileged domain reads of the command line."""


def _text(value: str, size: int) -> bytes:
    return value.encode()[: size - 1].ljust(size, b"\0")


@handler("xen_version")
def xen_version(domain: Domain, arguments: Sequence[int]) -> int:
    """Who is there; what only a privileged domain may know reads as denied."""
    name, address = COMMANDS.get(arguments[0] & 0xFFFFFFFF, ""), arguments[1]
    if name == "version":
        return MAJOR << 16 | MINOR
    if name == "pagesize":
        return PAGE_SIZE if not address else -ERRNO.EINVAL
    if name == "get_features":
        return _features(domain, address)
    if name == "build_id":
        return -ERRNO.EPERM
    content = {
        "extraversion": _text(".0-pvpatch", 16),
        "compile_info": _text("model", 64) + _text("pvpatch", 16) + _text("virtual", 32) + _text("", 32),
        "capabilities": _text(CAPABILITIES, 1024),
        "changeset": _text("none: a model", 64),
        "platform_parameters": domain.hole[0].to_bytes(domain.width // 8, "little"),
        "guest_handle": domain.domid.to_bytes(16, "little"),
        "commandline": _text(DENIED, 1024),
    }.get(name)
    if content is None:
        return -ERRNO.ENOSYS
    domain.space.write(address, content)
    return 0


def _features(domain: Domain, address: int) -> int:
    """struct {submap_idx u32, submap u32}; there is one submap."""
    if domain.space.word(address, 4):
        raise XenError(ERRNO.EINVAL, "there is only submap 0")
    features = FEATURES
    if domain.vm_assist & PAE_EXTENDED_CR3:
        features |= PAE_PGDIR_ABOVE_4GB
    domain.space.write(address + 4, features.to_bytes(4, "little"))
    return 0
