"""Bare: no hypervisor. The image's own call page already is this backend's slot code."""

from __future__ import annotations

from typing import TYPE_CHECKING

from runtime.backends import Capabilities, Hypervisor

if TYPE_CHECKING:
    from runtime.machine import Machine

__all__ = ["BACKEND", "BareBackend"]


class BareBackend:
    """Full privilege, guest tables, PIT and TSC."""

    capabilities = Capabilities(
        name="bare",
        backend_id=0,
        privilege={32: 0, 64: 0},
        memory="guest tables",
        time_source="8254 and TSC",
        apics=True,
        summary="no hypervisor: the architecture's own instructions on the emulated PC",
    )

    def hidden_memory(self, memory_size: int) -> int:
        """None."""
        return 0

    def attach(self, machine: Machine) -> Hypervisor:
        """The default hooks are hardware."""
        return Hypervisor(machine)


BACKEND = BareBackend()
