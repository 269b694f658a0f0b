"""The console ring page of a domain (xen/include/public/io/console.h): in[1024], out[2048], four indices."""

from __future__ import annotations

from collections.abc import Callable

from runtime.backends.xen.frames import PhysicalMemory

__all__ = ["ConsoleRing"]

IN_SIZE, OUT_SIZE = 1024, 2048
OUT_AT = IN_SIZE
IN_CONS, IN_PROD, OUT_CONS, OUT_PROD = 3072, 3076, 3080, 3084


class ConsoleRing:
    """The back end: takes what the guest prints, gives what a person types."""

    def __init__(self, memory: PhysicalMemory, sink: Callable[[bytes], None]) -> None:
        self.memory = memory
        self.ring = 0
        self.sink = sink
        self.notify: Callable[[], None] = lambda: None
        self._typed = bytearray()

    def connect(self, ring: int, notify: Callable[[], None]) -> None:
        """The ring page's machine address, and what tells the guest that it changed."""
        self.ring, self.notify = ring, notify

    def _index(self, at: int) -> int:
        return int.from_bytes(self.memory.load(self.ring + at, 4), "little")

    def _set_index(self, at: int, value: int) -> None:
        self.memory.store(self.ring + at, (value & 0xFFFFFFFF).to_bytes(4, "little"))

    def serve(self) -> None:
        """Drain the out ring and refill the in ring; a guest with impossible indices is not served."""
        moved = self._drain()
        moved = self._refill() or moved
        if moved:
            self.notify()

    def _drain(self) -> bool:
        consumer, producer = self._index(OUT_CONS), self._index(OUT_PROD)
        count = (producer - consumer) & 0xFFFFFFFF
        if not 0 < count <= OUT_SIZE:
            return False
        start = consumer % OUT_SIZE
        data = self.memory.load(self.ring + OUT_AT + start, min(count, OUT_SIZE - start))
        data += self.memory.load(self.ring + OUT_AT, count - len(data))
        self._set_index(OUT_CONS, producer)
        self.sink(data)
        return True

    def _refill(self) -> bool:
        consumer, producer = self._index(IN_CONS), self._index(IN_PROD)
        used = (producer - consumer) & 0xFFFFFFFF
        if used > IN_SIZE or not self._typed:
            return False
        count = min(IN_SIZE - used, len(self._typed))
        for offset in range(count):
            self.memory.store(
                self.ring + (producer + offset) % IN_SIZE, bytes(self._typed[offset : offset + 1])
            )
        del self._typed[:count]
        self._set_index(IN_PROD, producer + count)
        return count > 0

    def type(self, data: bytes) -> None:
        """Bytes from a person's keyboard."""
        self._typed += data
        self.serve()
