"""Page tables and translations."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from runtime.backends.vmi.calls import Handler
    from runtime.backends.vmi.model import VmiModel

__all__ = ["memory_handlers"]

_FLUSH_LOCAL, _FLUSH_GLOBAL = 1, 2


def memory_handlers(model: VmiModel) -> dict[str, Handler]:
    """Call name -> handler."""
    tables, shadow = model.guest_tables, model.shadow

    def set_long(low: int, high: int, linear: int, flags: int) -> None:
        tables.set_entry(high << 32 | low, linear, flags, 8)

    def flush(flags: int) -> None:
        tables.flush_queue()
        if flags & (_FLUSH_LOCAL | _FLUSH_GLOBAL):
            shadow.flush()

    def invalidate(linear: int) -> None:
        tables.flush_queue()
        shadow.invalidate(linear)

    return {
        "SetPxE": lambda value, linear, flags: tables.set_entry(value, linear, flags, 4),
        "SetPxELong": set_long,
        "UpdatePxE": lambda linear, flags: tables.entry_changed(flags),
        "UpdatePxELong": lambda linear, flags: tables.entry_changed(flags),
        "MachineToPhysical": lambda frame: frame,
        "PhysicalToMachine": lambda frame: frame,
        "AllocatePage": tables.allocate,
        "ReleasePage": lambda frame, flags: tables.release(frame),
        "InvalPage": invalidate,
        "FlushTLB": flush,
        "SetLinearMapping": tables.set_mapping,
        "SetLazyMode": tables.set_lazy_mode,
    }
