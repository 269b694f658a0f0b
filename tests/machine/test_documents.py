"""The machine-readable output of a run against its schemas."""

from __future__ import annotations

import io
import json
from pathlib import Path

import jsonschema
import pytest

from runtime.trace import JsonLinesTracer
from tests.cpu.world import World

SCHEMAS = Path(__file__).parents[2] / "docs" / "schema"


def schema(name: str) -> dict[str, object]:
    loaded: dict[str, object] = json.loads((SCHEMAS / name).read_text(encoding="utf-8"))
    return loaded


@pytest.mark.parametrize("width", [32, 64])
@pytest.mark.parametrize("code", ["ud2", "cli; hlt", "mov al, 7; out 0xf4, al; hlt", "here: jmp here"])
def test_stats_of_every_kind_of_end(width: int, code: str) -> None:
    world = World(width, code, max_time_s=0.001).run()
    jsonschema.validate(json.loads(json.dumps(world.result.stats)), schema("stats-1.json"))


def test_trace_lines_and_their_limit() -> None:
    stream = io.StringIO()
    tracer = JsonLinesTracer(stream, limit=3)
    for value in range(10):
        tracer.record(value, "in", port=0x60, value=value)
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    for line in lines:
        jsonschema.validate(line, schema("trace-1.json"))
    assert [line.get("kind") for line in lines] == [None, "in", "in", "truncated"]
    assert lines[-1]["records"] == 3
