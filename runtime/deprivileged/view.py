"""Guest memory by linear address, as a hypervisor with shadow tables reads and writes it."""

from __future__ import annotations

from runtime.cpu.linear import LinearMemory
from runtime.cpu.vcpu import VCpu
from runtime.deprivileged.shadow import PAGE, ShadowMmu
from runtime.memory import MemoryRange, PageFault, Translation

__all__ = ["ShadowView"]

_OPEN_BUS = 1 << 40
_WRITE, _USER = 2, 4


class ShadowView(LinearMemory):
    """Linear memory through the guest's own tables.

    The hypervisor's pages may be read, and written only where they lie in memory that is the guest's
    (`guest`). Frames that the guest may not have answer like an empty bus.
    """

    def __init__(self, cpu: VCpu, shadow: ShadowMmu, guest: MemoryRange) -> None:
        super().__init__(cpu)
        self._shadow = shadow
        self._guest = guest

    def translate(
        self, linear: int, *, write: bool = False, user: bool = False, fetch: bool = False, mark: bool = True
    ) -> Translation:
        """Where `linear` leads. Raises `PageFault` with the guest's error code."""
        if self._shadow.is_host(linear):
            physical = self._shadow.host_physical(linear)
            if physical is None or user or (write and not self._guest.contains(physical)):
                present = int(physical is not None)
                raise PageFault(linear, present | (_WRITE if write else 0) | (_USER if user else 0))
            return Translation(physical, PAGE, writable=write, user=False, executable=True)
        found = self._shadow.walk(linear, write=write, user=user, fetch=fetch)
        if not self._guest.contains(found.physical):
            return found._replace(physical=_OPEN_BUS | found.physical)
        return found
