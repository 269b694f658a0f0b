"""The FIFO form of event channels (xen/common/event_fifo.c, include/public/event_channel.h).

Each port has a word in pages of the guest's own: PENDING, MASKED, LINKED and the next port of its queue. The
vcpu's control block has the head of the queue of each of 16 priorities, and which of them are not empty.
"""

from __future__ import annotations

from collections.abc import Callable

from runtime.backends.xen.frames import FrameTable, PhysicalMemory, XenError
from runtime.backends.xen.layout import ERRNO, PAGE_SIZE

__all__ = ["CONTROL_BLOCK_SIZE", "LINK_BITS", "Fifo"]

PENDING, MASKED, LINKED, BUSY = 1 << 31, 1 << 30, 1 << 29, 1 << 28
LINK_BITS = 17
LINK = (1 << LINK_BITS) - 1
WORDS_PER_PAGE = PAGE_SIZE // 4
MAX_PAGES = (1 << LINK_BITS) // WORDS_PER_PAGE
PRIORITIES = 16
DEFAULT_PRIORITY, LOWEST_PRIORITY = 7, 15
READY, HEADS = 0, 8
CONTROL_BLOCK_SIZE = HEADS + 4 * PRIORITIES


class Fifo:
    """Event words and queues of a domain with one vcpu."""

    def __init__(self, memory: PhysicalMemory, frames: FrameTable, mark_upcall: Callable[[], None]) -> None:
        self._memory = memory
        self._frames = frames
        self._mark_upcall = mark_upcall
        self._control = 0
        """Machine address of the control block, 0 for none."""
        self._pages: list[int] = []
        """Frames of the event array."""
        self._tails = [0] * PRIORITIES
        self._priority: dict[int, int] = {}
        self._last_queue: dict[int, int] = {}
        """On which queue a port was last; 0 for one that never was on any."""
        self._early: set[int] = set()
        """Ports that became pending before they had a word."""

    # -- the guest's pages -------------------------------------------------------------------------

    @property
    def held(self) -> list[int]:
        """Frames that are kept as writable pages."""
        control = [self._control // PAGE_SIZE] if self._control else []
        return control + self._pages

    def _hold(self, mfn: int) -> None:
        """map_guest_page. Raises XenError(EINVAL) for a frame that is not the domain's or not writable."""
        self._frames.get(mfn)
        try:
            self._frames.get_writable(mfn)
        except XenError as error:
            self._frames.put(mfn)
            raise XenError(ERRNO.EINVAL, error.why) from None

    def release(self) -> None:
        """Give the pages back: the domain returns to the two-level form."""
        for mfn in self.held:
            self._frames.put_writable(mfn)
            self._frames.put(mfn)
        self._control, self._pages = 0, []

    def set_control_block(self, mfn: int, offset: int) -> None:
        """Where the vcpu's control block is. Raises XenError(EINVAL) for a second one or a bad frame."""
        if self._control:
            raise XenError(ERRNO.EINVAL, "the vcpu has a control block")
        self._hold(mfn)
        self._control = mfn * PAGE_SIZE + offset

    def expand(self, mfn: int) -> None:
        """One more page of event words. Raises XenError: ENOSPC at the limit, EINVAL for a bad frame."""
        if len(self._pages) >= MAX_PAGES:
            raise XenError(ERRNO.ENOSPC, "the event array is complete")
        self._hold(mfn)
        first = len(self._pages) * WORDS_PER_PAGE
        self._pages.append(mfn)
        for port in sorted(p for p in self._early if first <= p < first + WORDS_PER_PAGE):
            self._early.discard(port)
            self.set_pending(port)

    def _word_address(self, port: int) -> int | None:
        page, index = divmod(port, WORDS_PER_PAGE)
        return self._pages[page] * PAGE_SIZE + 4 * index if page < len(self._pages) else None

    def _load(self, address: int) -> int:
        return int.from_bytes(self._memory.load(address, 4), "little")

    def _store(self, address: int, value: int) -> None:
        self._memory.store(address, value.to_bytes(4, "little"))

    def _word(self, port: int) -> int:
        """A port's word; 0 where it has none."""
        address = self._word_address(port)
        return self._load(address) if address is not None else 0

    # -- one port ----------------------------------------------------------------------------------

    def saved(self, port: int) -> None:
        """The port was pending when the form changed: it will be when it gets a word."""
        self._early.add(port)

    def opened(self, port: int) -> None:
        """A port in use starts at the default priority."""
        self._priority.pop(port, None)

    def set_priority(self, port: int, priority: int) -> None:
        """Which queue the port joins from now on. Raises XenError(EINVAL) for one that there is not."""
        if priority > LOWEST_PRIORITY:
            raise XenError(ERRNO.EINVAL, f"priority {priority}")
        self._priority[port] = priority

    def set_pending(self, port: int) -> bool:
        """Mark a port pending; an unmasked one joins its queue. True where it was pending already."""
        address = self._word_address(port)
        if address is None:
            self._early.add(port)
            return True
        word = self._load(address)
        was_pending = bool(word & PENDING)
        word |= PENDING
        self._store(address, word)
        if self._control and not word & (MASKED | LINKED):
            self._store(address, word | LINKED)
            self._enqueue(port)
        return was_pending

    def _enqueue(self, port: int) -> None:
        """Behind the tail of its queue if that is still linked; else the queue is empty and gets a head."""
        priority = self._priority.get(port, DEFAULT_PRIORITY)
        last = self._last_queue.get(port, 0)
        if self._tails[last] == port:
            self._tails[last] = 0
        self._last_queue[port] = priority
        tail, self._tails[priority] = self._tails[priority], port
        if tail and self._link(tail, port):
            return
        self._store(self._control + HEADS + 4 * priority, port)
        ready = self._load(self._control + READY)
        if not ready & 1 << priority:
            self._store(self._control + READY, ready | 1 << priority)
            self._mark_upcall()

    def _link(self, tail: int, port: int) -> bool:
        address = self._word_address(tail)
        word = self._word(tail)
        if address is None or not word & LINKED:
            return False
        self._store(address, word & ~(BUSY | LINK) | port)
        return True

    def clear_pending(self, port: int) -> None:
        """The port is not pending any more; the guest takes it off its queue itself."""
        self._early.discard(port)
        address = self._word_address(port)
        if address is not None:
            self._store(address, self._load(address) & ~PENDING)

    def unmask(self, port: int) -> None:
        """Clear the mask; a pending port joins its queue."""
        address = self._word_address(port)
        if address is None:
            return
        word = self._load(address) & ~MASKED
        self._store(address, word)
        if word & PENDING:
            self.set_pending(port)

    def pending(self, port: int) -> bool:
        """Is the port pending (whatever its mask)?"""
        return bool(self._word(port) & PENDING)

    def busy(self, port: int) -> bool:
        """A closed port that is still on a queue is not used again."""
        return bool(self._word(port) & LINKED)

    def select_all(self) -> None:
        """The guest looks at its control block: nothing to do."""
