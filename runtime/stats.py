"""Counters of a run, and the document made of them (docs/schema/stats-1.json)."""

from __future__ import annotations

from collections import Counter
from typing import Any

__all__ = ["STATS_SCHEMA", "Stats"]

STATS_SCHEMA = "pvpatch/stats/1"


class Stats:
    """Plain counters; the machine and the backends add to them."""

    def __init__(self) -> None:
        self.exits: Counter[str] = Counter()
        """Exits to the hypervisor or the devices, by kind."""
        self.exceptions: Counter[int] = Counter()
        self.interrupts: Counter[int] = Counter()
        self.missed: Counter[str] = Counter()
        """Privileged or sensitive operations that reached the hypervisor from an unpatched site."""
        self.missed_sites: dict[int, str] = {}
        """Linear address of each such site to its mnemonic, in order of first arrival."""

    def miss(self, mnemonic: str, address: int) -> None:
        """Count one operation that no patch intercepted."""
        self.missed[mnemonic] += 1
        if len(self.missed_sites) < _SITES_KEPT:
            self.missed_sites.setdefault(address, mnemonic)

    def take_back(self, vector: int) -> None:
        """An exception that was counted is none of the guest's after all."""
        self.exceptions[vector] -= 1
        if not self.exceptions[vector]:
            del self.exceptions[vector]

    def document(
        self, run: dict[str, Any], calls: dict[str, dict[str, int]], own: dict[str, int]
    ) -> dict[str, Any]:
        """The versioned document. `run` holds the general figures, `calls` the ABI calls by name."""
        return {
            "schema": STATS_SCHEMA,
            **run,
            "exits": dict(sorted(self.exits.items())),
            "calls": calls,
            "sites_executed": sum(entry["in_guest"] + entry["exit"] for entry in calls.values()),
            "missed": sum(self.missed.values()),
            "missed_by_instruction": dict(sorted(self.missed.items())),
            "missed_sites": [
                {"address": address, "instruction": name} for address, name in self.missed_sites.items()
            ],
            "exceptions": {str(vector): self.exceptions[vector] for vector in sorted(self.exceptions)},
            "interrupts": {str(vector): self.interrupts[vector] for vector in sorted(self.interrupts)},
            "backend_counters": dict(sorted(own.items())),
        }


_SITES_KEPT = 1000
