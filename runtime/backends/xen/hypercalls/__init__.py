"""Hypercalls by group; importing this package fills the dispatch table."""

from runtime.backends.xen.hypercalls import (
    cpu,
    events,
    grants,
    memory,
    mmu,
    scheduling,
    tables,
    unavailable,
    version,
)
from runtime.backends.xen.hypercalls.dispatch import Continue, Leave, call

__all__ = [
    "Continue",
    "Leave",
    "call",
    "cpu",
    "events",
    "grants",
    "memory",
    "mmu",
    "scheduling",
    "tables",
    "unavailable",
    "version",
]
