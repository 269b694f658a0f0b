"""Xen: the kernel at ring 1 (pv32) or ring 3 (pv64), direct paging, event channels."""

from __future__ import annotations

from typing import TYPE_CHECKING

from runtime.backends import Capabilities
from runtime.backends.xen.construction import hidden_frames
from runtime.backends.xen.layout import PAGE_SIZE
from runtime.backends.xen.model import XenHypervisor, is_own_guest
from runtime.backends.xen.native.hypervisor import NATIVE_HIDDEN, NativeHypervisor
from runtime.backends.xen.ring1.model import RING1_PAGES, XenRing1

if TYPE_CHECKING:
    from runtime.machine import Machine

__all__ = ["BACKEND", "XenBackend"]


class XenBackend:
    """An unprivileged domain of Xen 4.17."""

    capabilities = Capabilities(
        name="xen",
        backend_id=3,
        privilege={32: 1, 64: 3},
        memory="direct for Xen's own guests, translated (shadow) for patched native ones",
        time_source="vcpu_time_info (ns), set_timer_op (absolute ns)",
        summary="Xen 4.17 PV: hypercalls by int 0x82 or syscall, event channels; a patched native kernel"
        " runs in a translated domain with a PC's ports and the 8259 pair's pin, options that a stock Xen"
        " does not have",
    )

    def hidden_memory(self, memory_size: int) -> int:
        """The M2P table, the hole's page tables, and Xen's heap."""
        frames = max(hidden_frames(memory_size // PAGE_SIZE)[1], RING1_PAGES)
        return max(frames * PAGE_SIZE, NATIVE_HIDDEN)

    def attach(self, machine: Machine) -> XenHypervisor:
        """An unpatched image with a Xen entry is one of Xen's own guests; any other is a native one. The
        domain is built when the image is loaded."""
        if is_own_guest(machine):
            return XenHypervisor(machine)
        return XenRing1(machine) if machine.image.width == 32 else NativeHypervisor(machine)


BACKEND = XenBackend()
