"""A xenstore for one domain, over its ring page (xen/include/public/io/xs_wire.h, tools/xenstore).

Holds the paths a toolstack writes for a domain without devices. Requests come from an untrusted guest:
lengths are bounded, unknown requests get ENOSYS, and a broken ring stops being served.
"""

from __future__ import annotations

from collections.abc import Callable

from runtime.backends.xen.frames import PhysicalMemory

__all__ = ["Store"]

RING = 1024
REQUEST_AT, RESPONSE_AT = 0, 1024
REQ_CONS, REQ_PROD, RSP_CONS, RSP_PROD = 2048, 2052, 2056, 2060
HEADER = 16
MAX_PAYLOAD = 4096
(
    CONTROL,
    DIRECTORY,
    READ,
    GET_PERMS,
    WATCH,
    UNWATCH,
    TRANSACTION_START,
    TRANSACTION_END,
    INTRODUCE,
    RELEASE,
    GET_DOMAIN_PATH,
    WRITE,
    MKDIR,
    RM,
    SET_PERMS,
    WATCH_EVENT,
    ERROR,
) = range(17)
MAX_NODES = 4096
MAX_WATCHES = 128


class _StoreError(Exception):
    """A request fails with the name of an errno, which is what the wire carries."""


class Store:
    """The tree, its watches, and the ring that a domain speaks through."""

    def __init__(self, memory: PhysicalMemory, domid: int) -> None:
        self.memory = memory
        self.ring = 0
        self.home = f"/local/domain/{domid}"
        self.domid = domid
        self.notify: Callable[[], None] = lambda: None
        self.nodes: dict[str, bytes] = {"/": b""}
        self.watches: list[tuple[str, str]] = []
        self._incoming = bytearray()
        self._outgoing = bytearray()
        self._next_transaction = 1

    def connect(self, ring: int, notify: Callable[[], None]) -> None:
        """The ring page's machine address, and what tells the guest that it changed."""
        self.ring, self.notify = ring, notify

    def set(self, path: str, value: bytes) -> None:
        """Write a node and its missing parents, as the toolstack does."""
        parts = path.strip("/").split("/")
        for depth in range(1, len(parts)):
            self.nodes.setdefault("/" + "/".join(parts[:depth]), b"")
        self.nodes[path] = value

    # -- ring ----------------------------------------------------------------------------------

    def _index(self, at: int) -> int:
        return int.from_bytes(self.memory.load(self.ring + at, 4), "little")

    def _set_index(self, at: int, value: int) -> None:
        self.memory.store(self.ring + at, (value & 0xFFFFFFFF).to_bytes(4, "little"))

    def serve(self) -> None:
        """Take what the guest wrote, answer it, and tell the guest if anything moved."""
        moved = self._take()
        while len(self._incoming) >= HEADER:
            kind, request, transaction, length = (
                int.from_bytes(self._incoming[i : i + 4], "little") for i in (0, 4, 8, 12)
            )
            if length > MAX_PAYLOAD:
                self._incoming.clear()
                break
            if len(self._incoming) < HEADER + length:
                break
            payload = bytes(self._incoming[HEADER : HEADER + length])
            del self._incoming[: HEADER + length]
            self._answer(kind, request, transaction, payload)
        if self._give() or moved:
            self.notify()

    def _take(self) -> bool:
        consumer, producer = self._index(REQ_CONS), self._index(REQ_PROD)
        count = (producer - consumer) & 0xFFFFFFFF
        if count == 0 or count > RING:
            return False
        for offset in range(count):
            at = self.ring + REQUEST_AT + (consumer + offset) % RING
            self._incoming += self.memory.load(at, 1)
        self._set_index(REQ_CONS, producer)
        return True

    def _give(self) -> bool:
        consumer, producer = self._index(RSP_CONS), self._index(RSP_PROD)
        used = (producer - consumer) & 0xFFFFFFFF
        if used > RING:
            return False
        count = min(RING - used, len(self._outgoing))
        for offset in range(count):
            at = self.ring + RESPONSE_AT + (producer + offset) % RING
            self.memory.store(at, bytes(self._outgoing[offset : offset + 1]))
        del self._outgoing[:count]
        self._set_index(RSP_PROD, producer + count)
        return count > 0

    # -- requests ------------------------------------------------------------------------------

    def _answer(self, kind: int, request: int, transaction: int, payload: bytes) -> None:
        try:
            reply = self._carry_out(kind, payload)
        except _StoreError as error:
            kind, reply = ERROR, str(error).encode() + b"\0"
        self._send(kind, request, transaction, reply)
        if kind == WATCH:
            parts = payload.split(b"\0")
            self._fire_one(parts[0].decode(errors="replace"), parts[1].decode(errors="replace"))

    def _send(self, kind: int, request: int, transaction: int, payload: bytes) -> None:
        for number in (kind, request, transaction, len(payload)):
            self._outgoing += number.to_bytes(4, "little")
        self._outgoing += payload

    def _path(self, raw: bytes) -> str:
        path = raw.decode(errors="replace")
        if not path or len(path) > 3072 or "//" in path or (path != "/" and path.endswith("/")):
            raise _StoreError("EINVAL")
        return path if path.startswith("/") else f"{self.home}/{path}"

    def _carry_out(self, kind: int, payload: bytes) -> bytes:
        parts = payload.split(b"\0")
        if kind == READ:
            return self._known(self._path(parts[0]))
        if kind == DIRECTORY:
            return self._children(self._path(parts[0]))
        if kind in (WRITE, MKDIR, RM):
            return self._change(kind, self._path(parts[0]), payload[len(parts[0]) + 1 :])
        if kind in (WATCH, UNWATCH):
            return self._watch(kind, parts)
        if kind == TRANSACTION_START:
            self._next_transaction += 1
            return str(self._next_transaction).encode() + b"\0"
        if kind in (TRANSACTION_END, SET_PERMS):
            return b"OK\0"
        if kind == GET_DOMAIN_PATH:
            text = parts[0].decode(errors="replace")
            if not text.isdigit():
                raise _StoreError("EINVAL")
            return f"/local/domain/{int(text)}".encode() + b"\0"
        if kind == GET_PERMS:
            self._known(self._path(parts[0]))
            return f"n{self.domid}".encode() + b"\0"
        raise _StoreError("ENOSYS")

    def _known(self, path: str) -> bytes:
        if path not in self.nodes:
            raise _StoreError("ENOENT")
        return self.nodes[path]

    def _children(self, path: str) -> bytes:
        self._known(path)
        prefix = "/" if path == "/" else path + "/"
        found = {n[len(prefix) :].split("/")[0] for n in self.nodes if n.startswith(prefix) and n != path}
        return b"".join(name.encode() + b"\0" for name in sorted(found) if name)

    def _change(self, kind: int, path: str, value: bytes) -> bytes:
        if not path.startswith(self.home + "/"):
            raise _StoreError("EACCES")
        if kind == RM:
            self._known(path)
            for name in [n for n in self.nodes if n == path or n.startswith(path + "/")]:
                del self.nodes[name]
        else:
            if path not in self.nodes and len(self.nodes) >= MAX_NODES:
                raise _StoreError("ENOSPC")
            if kind == WRITE or path not in self.nodes:
                self.set(path, value if kind == WRITE else b"")
        for watched, token in self.watches:
            absolute = watched if watched.startswith("/") else f"{self.home}/{watched}"
            if path == absolute or path.startswith(absolute + "/"):
                relative = path if watched.startswith("/") else path[len(self.home) + 1 :]
                self._fire_one(relative, token)
        return b"OK\0"

    def _watch(self, kind: int, parts: list[bytes]) -> bytes:
        if len(parts) < 2:
            raise _StoreError("EINVAL")
        entry = (parts[0].decode(errors="replace"), parts[1].decode(errors="replace"))
        if kind == WATCH:
            if entry in self.watches:
                raise _StoreError("EEXIST")
            if len(self.watches) >= MAX_WATCHES:
                raise _StoreError("E2BIG")
            self.watches.append(entry)
        elif entry in self.watches:
            self.watches.remove(entry)
        else:
            raise _StoreError("ENOENT")
        return b"OK\0"

    def _fire_one(self, path: str, token: str) -> None:
        self._send(WATCH_EVENT, 0, 0, path.encode() + b"\0" + token.encode() + b"\0")
