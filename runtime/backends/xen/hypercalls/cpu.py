"""Registers that only Xen can write for the guest: debug registers, segment bases, TS (xen/arch/x86/pv)."""

from __future__ import annotations

from collections.abc import Sequence

from runtime.backends.xen.domain import Domain
from runtime.backends.xen.frames import XenError
from runtime.backends.xen.hypercalls.dispatch import handler
from runtime.backends.xen.hypercalls.tables import canonical
from runtime.backends.xen.layout import ERRNO

__all__: list[str] = []

CR4_DE = 8
DR6 = 6
DR6_FIXED = 0xFFFF0FF0
DR7_FIXED = 0x400


@handler("fpu_taskswitch")
def fpu_taskswitch(domain: Domain, arguments: Sequence[int]) -> int:
    """Set or clear CR0.TS, for lazy switching of FPU state."""
    domain.cpu.set_task_switched(bool(arguments[0] & 0xFFFFFFFF))
    return 0


@handler("set_debugreg")
def set_debugreg(domain: Domain, arguments: Sequence[int]) -> int:
    """Write DR0-3, DR6, DR7. -EPERM for a breakpoint in the hole, -ENODEV for a missing register."""
    number, value = arguments[0] & 0xFFFFFFFF, arguments[1]
    if number in (4, 5):
        if domain.virtual_cr4 & CR4_DE:
            raise XenError(ERRNO.ENODEV, "DR4 and DR5 are not there while CR4.DE is set")
        number += 2
    if number < 4:
        if not domain.space.accessible(value, domain.width // 8):
            raise XenError(ERRNO.EPERM, f"breakpoint at {value:#x}")
    elif number == 6:
        value = value & ~0xFFFF1FF0 & 0xFFFFFFFF | DR6_FIXED
    elif number == 7:
        value = value & ~0xD400 & 0xFFFFFFFF | DR7_FIXED
        for index in range(4):
            if value >> (2 * index) & 3 and value >> (16 + 4 * index) & 3 == 2:
                raise XenError(ERRNO.EPERM, "I/O breakpoints are not for guests")
    else:
        raise XenError(ERRNO.ENODEV, f"no DR{number}")
    domain.debug_registers[number] = value
    if number != DR6:
        domain.cpu.set_breakpoints(domain.debug_registers)
    return 0


@handler("get_debugreg")
def get_debugreg(domain: Domain, arguments: Sequence[int]) -> int:
    """Read a debug register, -ENODEV where it is not there."""
    number = arguments[0] & 0xFFFFFFFF
    if number in (4, 5) and not domain.virtual_cr4 & CR4_DE:
        number += 2
    if number in (4, 5) or number > 7:
        raise XenError(ERRNO.ENODEV, f"no DR{number}")
    return domain.debug_registers[number]


@handler("set_segment_base")
def set_segment_base(domain: Domain, arguments: Sequence[int]) -> int:
    """pv64: 0 FS, 1 user GS, 2 kernel GS, 3 selector for user GS."""
    which, base = arguments[0] & 0xFFFFFFFF, arguments[1]
    if domain.width == 32:
        raise XenError(ERRNO.ENOSYS, "pv32 guests have descriptors for this")
    if which < 3 and not canonical(base):
        raise XenError(ERRNO.EINVAL, f"base {base:#x} is not canonical")
    if which == 0:
        domain.fs_base = base
        domain.cpu.set_segment_base("fs", base)
    elif which == 1:
        domain.gs_user = base
    elif which == 2:
        domain.gs_kernel = base
        domain.cpu.set_segment_base("gs", base)
    elif which == 3:
        domain.gs_user = domain.descriptor_base(base & 0xFFFF)
    else:
        raise XenError(ERRNO.EINVAL, f"segment base {which}")
    return 0
