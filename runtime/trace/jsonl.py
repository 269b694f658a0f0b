"""The trace writer. Bounded, deterministic: times are virtual, the order is the guest's."""

from __future__ import annotations

import json
from typing import IO, Protocol

__all__ = ["TRACE_LIMIT", "TRACE_SCHEMA", "JsonLinesTracer", "Tracer"]

TRACE_SCHEMA = "pvpatch/trace/1"
TRACE_LIMIT = 1_000_000
"""Records after which a trace ends with one that says so."""


class Tracer(Protocol):
    """What the machine reports to."""

    def record(self, time_ns: int, kind: str, **values: int | str) -> None:
        """One event at virtual time `time_ns`."""


class JsonLinesTracer:
    """Writes the first line with the schema, then one line per record, up to `limit`."""

    def __init__(self, stream: IO[str], limit: int = TRACE_LIMIT) -> None:
        self._stream = stream
        self._left = limit
        self._limit = limit
        stream.write(json.dumps({"schema": TRACE_SCHEMA}) + "\n")

    def record(self, time_ns: int, kind: str, **values: int | str) -> None:
        """One line; silently nothing once the limit was noted."""
        if self._left <= 0:
            return
        self._left -= 1
        line = {"ns": time_ns, "kind": kind, **values} if self._left else {
            "ns": time_ns, "kind": "truncated", "records": self._limit
        }  # fmt: skip
        self._stream.write(json.dumps(line) + "\n")
