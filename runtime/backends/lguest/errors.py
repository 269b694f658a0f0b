"""How lguest ends a guest that breaks its rules: `kill_guest`, with the host's words."""

from __future__ import annotations

from pvpatch.abi.errors import GuestCrash

__all__ = ["GuestKilled"]


class GuestKilled(GuestCrash):
    """The host killed the guest: there are no error codes in lguest's interface."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"lguest killed the guest: {reason}", "a bad request ends an lguest guest")
