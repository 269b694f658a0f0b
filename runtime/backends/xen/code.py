"""Code of a guest with direct paging, read for the watcher: translations kept until a table changes."""

from __future__ import annotations

from runtime.backends.xen.domain import Domain
from runtime.backends.xen.layout import PAGE_SIZE

__all__ = ["CodePages"]


class CodePages:
    """Machine pages behind linear pages of code.

    Every change of a page table goes through Xen: pages are forgotten on every flush, and not kept while a
    change waits for one.
    """

    def __init__(self) -> None:
        self._domain: Domain | None = None
        self._pages: dict[int, int] = {}

    def serve(self, domain: Domain) -> None:
        """Read this domain's code from now on."""
        self._domain = domain

    def forget(self) -> None:
        """A page table or the root has changed."""
        self._pages.clear()

    def try_read(self, linear: int, length: int) -> bytes:
        """As much as is mapped of `length` bytes."""
        found = b""
        if self._domain is not None and self._domain.tables.stale:
            self._pages.clear()
        while length > 0:
            offset = linear % PAGE_SIZE
            size = min(length, PAGE_SIZE - offset)
            page = self._pages.get(linear - offset)
            if page is None:
                page = self._look_up(linear - offset)
                if page is None:
                    break
            found += self._load(page + offset, size)
            linear, length = linear + size, length - size
        return found

    def _load(self, address: int, size: int) -> bytes:
        assert self._domain is not None
        return self._domain.memory.load(address, size)

    def _look_up(self, linear: int) -> int | None:
        domain = self._domain
        if domain is None:
            return None
        found = domain.tables.walk(domain.space.root(), linear)
        if found is None:
            return None
        self._pages[linear] = found.address
        return found.address
