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
PV_FEATURES = 1 << 5 | 1 << 6 | 1 << 7 | 1 << 13 | 1 << 16
"""mmu_pt_update_preserve_ad, highmem_assist, gnttab_map_avail_bits, memory_op_vnode, not_direct_mapped."""
PAE_PGDIR_ABOVE_4GB = 1 << 4
CONSOLE_CHUNK = 1 << 16


def _text(value: str, size: int) -> bytes:
    return value.encode()[: size - 1].ljust(size, b"\0")


@handler("xen_version")
def xen_version(domain: Domain, arguments: Sequence[int]) -> int:
    """Who is there; what only a privileged domain may know reads as denied."""
    name, address = COMMANDS.get(arguments[0] & 0xFFFFFFFF, ""), arguments[1]
    size = domain.width // 8
    if name == "version":
        return MAJOR << 16 | MINOR
    if name == "pagesize":
        return PAGE_SIZE if not address else -ERRNO.EINVAL
    if name == "get_features":
        return _features(domain, address)
    if name == "build_id":
        return -ERRNO.EPERM
    capabilities = "xen-3.0-x86_64 xen-3.0-x86_32p "
    content = {
        "extraversion": _text(".0-pvpatch", 16),
        "compile_info": _text("<denied>", 64) + _text("<denied>", 16) * 1 + _text("<denied>", 32) * 2,
        "capabilities": _text(capabilities, 1024),
        "changeset": _text("<denied>", 64),
        "platform_parameters": domain.hole[0].to_bytes(size, "little"),
        "guest_handle": domain.domid.to_bytes(16, "little"),
        "commandline": _text("<denied>", 1024),
    }.get(name)
    if content is None:
        return -ERRNO.ENOSYS
    domain.space.write(address, content)
    return 0


def _features(domain: Domain, address: int) -> int:
    """struct {submap_idx u32, submap u32}; there is one submap."""
    if domain.space.word(address, 4):
        raise XenError(ERRNO.EINVAL, "there is only submap 0")
    features = PV_FEATURES
    if domain.width == 64 or domain.vm_assist & 1 << 3:
        features |= PAE_PGDIR_ABOVE_4GB
    domain.space.write(address + 4, features.to_bytes(4, "little"))
    return 0


@handler("console_io")
def console_io(domain: Domain, arguments: Sequence[int]) -> int:
    """The emergency console: only for a domain that the toolstack gave it to."""
    if not domain.privileged_console:
        raise XenError(ERRNO.EPERM, "this domain does not own the hypervisor's console")
    command, count, address = arguments[0] & 0xFFFFFFFF, arguments[1] & 0x7FFFFFFF, arguments[2]
    if command == 0:
        while count:
            chunk = domain.space.read(address, min(count, CONSOLE_CHUNK))
            domain.console_output += chunk
            address, count = address + len(chunk), count - len(chunk)
        return 0
    return 0 if command == 1 else -ERRNO.ENOSYS
