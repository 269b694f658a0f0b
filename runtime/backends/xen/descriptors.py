"""What a guest may put into its descriptor tables (xen/arch/x86/pv/descriptor-tables.c, asm/pv/traps.h).

A pv32 kernel runs at ring 1 and a pv64 kernel at ring 3: no descriptor may give ring 0.
Descriptor bits as in SDM volume 3, section 3.4.5.
"""

from __future__ import annotations

from runtime.backends.xen.frames import XenError
from runtime.backends.xen.layout import ERRNO

__all__ = [
    "checked_descriptor",
    "guest_selector",
    "kernel_rpl",
]

PRESENT = 1 << 47
CODE_OR_DATA = 1 << 44
LONG = 1 << 53
TYPE = 0xF << 40
DPL_SHIFT = 45
CALL_GATE = 0xC << 40


def kernel_rpl(width: int) -> int:
    """The ring of the guest's kernel."""
    return 1 if width == 32 else 3


def guest_selector(selector: int, width: int) -> int:
    """A selector with at least the guest kernel's RPL (fixup_guest_code_selector, ..._stack_selector)."""
    return selector & 0xFFFF | (kernel_rpl(width) if selector & 3 < kernel_rpl(width) else 0)


def checked_descriptor(descriptor: int, width: int) -> int:
    """The descriptor with its DPL raised to the guest's. Raises XenError(EINVAL) for system descriptors.

    A call gate gets DPL 0: its use faults, since hardware must not follow it (Xen emulates it, here the guest
    gets the fault).
    """
    if not descriptor & PRESENT:
        return descriptor
    dpl = descriptor >> DPL_SHIFT & 3
    if dpl < kernel_rpl(width):
        descriptor = descriptor & ~(3 << DPL_SHIFT) | kernel_rpl(width) << DPL_SHIFT
    if descriptor & CODE_OR_DATA and descriptor & LONG and width == 32:
        raise XenError(ERRNO.EINVAL, f"64-bit code segment {descriptor:#018x}")
    if descriptor & CODE_OR_DATA or not descriptor & TYPE:
        return descriptor
    if descriptor & TYPE != CALL_GATE:
        raise XenError(ERRNO.EINVAL, f"system descriptor {descriptor:#018x}")
    if descriptor >> 16 & 0xFFFC and descriptor >> 16 & 3 < kernel_rpl(width):
        raise XenError(ERRNO.EINVAL, f"call gate {descriptor:#018x} to a selector below the guest's ring")
    return descriptor & ~(3 << DPL_SHIFT)
