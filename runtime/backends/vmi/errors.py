"""How VMI ends a guest that breaks its rules: the calls have no error codes."""

from __future__ import annotations

from pvpatch.abi.errors import GuestCrash

__all__ = ["GuestKilled"]


class GuestKilled(GuestCrash):
    """The hypervisor killed the guest, and says why."""

    def __init__(self, reason: str) -> None:
        hint = "VMI's calls have no error codes: a bad request ends the guest"
        super().__init__(f"vmi killed the guest: {reason}", hint)
