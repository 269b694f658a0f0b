"""Page tables: entries written through the ROM, the pages that hold them, and what may wait.

An entry call writes the guest's table and drops what the shadow cached of it. With DEFER, or while the
guest is in lazy MMU mode, the write waits in a queue until FlushTLB, InvalPage, SetCR3 or the end of the
mode; descriptor writes and kernel stacks wait likewise in lazy CPU mode.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from runtime.backends.vmi.errors import GuestKilled
from runtime.backends.vmi.interface import VmiInterface
from runtime.cpu.linear import LinearMemory
from runtime.deprivileged.shadow import PAGE, ShadowMmu
from runtime.memory import MemoryRange

__all__ = ["GuestTables", "LinearMapping"]

_QUEUE_LIMIT = 64
"""Queued updates; the next one empties the queue first."""
_MAPPINGS = 4
_LARGEST_TABLE = 1024
_WORD = 0xFFFFFFFF


@dataclass(frozen=True)
class LinearMapping:
    """Linear [start, start + length) is guest-physical `physical` and up (bytes)."""

    start: int
    length: int
    physical: int


class GuestTables:
    """The guest's page tables as the calls change them."""

    def __init__(
        self, known: VmiInterface, guest: MemoryRange, shadow: ShadowMmu, view: LinearMemory
    ) -> None:
        self._known = known
        self._guest = guest
        self._shadow = shadow
        self._view = view
        self._mappings: dict[int, LinearMapping] = {}
        self._queue: list[Callable[[], None]] = []
        self.lazy_mode = 0
        self.pages: dict[int, int] = {}
        """Page frame number -> the level bits it was allocated with."""

    # -- what waits ----------------------------------------------------------------------------------

    def set_lazy_mode(self, mode: int) -> None:
        """SetLazyMode: whatever waited takes effect; an unknown mode is none."""
        self.flush_queue()
        self.lazy_mode = mode if mode in self._known.lazy.values() else 0

    def flush_queue(self) -> None:
        """Everything queued takes effect, in order."""
        waiting, self._queue = self._queue, []
        for update in waiting:
            update()

    def later(self, update: Callable[[], None], *, wait: bool) -> None:
        """Do it now, in its order, or when the queue is emptied."""
        if wait and len(self._queue) < _QUEUE_LIMIT:
            self._queue.append(update)
            return
        self.flush_queue()
        update()

    @property
    def lazy_cpu(self) -> bool:
        """Descriptor writes and kernel stacks may wait."""
        return self.lazy_mode == self._known.lazy["cpu"]

    # -- entries ---------------------------------------------------------------------------------------

    def place(self, linear: int, size: int) -> int:
        """Guest-physical address of an entry: by the announced mappings, else by the guest's tables.

        Raises `PageFault`.
        """
        for mapping in self._mappings.values():
            if mapping.start <= linear and linear + size <= mapping.start + mapping.length:
                return mapping.physical + linear - mapping.start
        return self._view.translate(linear, write=True).physical

    def set_entry(self, value: int, linear: int, flags: int, size: int) -> None:
        """SetPxE, SetPxELong: entries are `size` bytes and aligned. Raises `PageFault`."""
        linear &= ~(size - 1) & _WORD
        place = self.place(linear, size)

        def update() -> None:
            self._guest.store(place, value.to_bytes(size, "little"))
            self._forget(flags)

        defer = bool(flags & self._known.mmu["DEFER"]) or self.lazy_mode == self._known.lazy["mmu"]
        self.later(update, wait=defer)

    def entry_changed(self, flags: int) -> None:
        """UpdatePxE, UpdatePxELong: the guest has written the entry itself."""
        self._forget(flags)

    def _forget(self, flags: int) -> None:
        mmu = self._known.mmu
        if flags & mmu["CURRENT_AS"] and not flags & (mmu["PD"] | mmu["PDP"] | mmu["PML4"]):
            self._shadow.invalidate(flags & ~(PAGE - 1) & _WORD)
        else:
            self._shadow.flush()

    # -- pages -----------------------------------------------------------------------------------------

    def _check_frame(self, frame: int) -> None:
        if not self._guest.contains(frame * PAGE, PAGE):
            raise GuestKilled(f"page frame {frame:#x} is not in its memory")

    def allocate(self, frame: int, flags: int, clone: int, start: int, count: int) -> None:
        """AllocatePage: the frame becomes a page table, perhaps with part of another's entries."""
        self._check_frame(frame)
        if flags & self._known.mmu["CLONE"]:
            self._check_frame(clone)
            if start + count > _LARGEST_TABLE:
                raise GuestKilled(f"entries {start}..{start + count} of page table frame {clone:#x}")
        self.pages[frame] = flags & 0xF

    def release(self, frame: int) -> None:
        """ReleasePage: an ordinary page again; what queued updates say about it happens first."""
        self.flush_queue()
        self.pages.pop(frame, None)

    def set_mapping(self, slot: int, linear: int, pages: int, frame: int) -> None:
        """SetLinearMapping: 0 pages take the slot away.

        Linux names the whole range in which it may have memory, whatever the machine has: the part behind
        the last frame maps nothing.
        """
        if slot >= _MAPPINGS:
            raise GuestKilled(f"linear mapping slot {slot}, there are {_MAPPINGS}")
        self._mappings.pop(slot, None)
        if not pages:
            return
        start, physical = linear & ~(PAGE - 1), frame * PAGE
        if start + pages * PAGE > self._known.virtual_top:
            raise GuestKilled(f"linear mapping of {pages:#x} pages at {linear:#x} to frame {frame:#x}")
        length = min(pages * PAGE, self._guest.size - physical)
        if length > 0:
            self._mappings[slot] = LinearMapping(start, length, physical)
