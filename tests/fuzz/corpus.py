"""Snippets as files: those that failed are kept, and the committed ones are tests."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

from tests.fuzz.snippet import Snippet

__all__ = ["CORPUS", "load", "saved"]

CORPUS = Path(__file__).parent / "corpus"


def load(path: Path) -> tuple[int, Snippet]:
    """Width and snippet of a file."""
    document = tomllib.loads(path.read_text(encoding="utf-8"))
    snippet = Snippet(
        lines=tuple(document["lines"].strip().split("\n")),
        registers=document.get("registers", {}),
        flags=document.get("flags", 2),
        armed=document.get("armed", False),
        tags=frozenset(document.get("tags", ())),
    )
    return document["width"], snippet


def saved(snippet: Snippet, width: int, comment: str) -> str:
    """The text of a file."""
    registers = {name: value for name, value in snippet.registers.items() if value != "0"}
    return "\n".join(
        (
            *(f"# {line}" for line in comment.splitlines()),
            f"width = {width}",
            f"tags = {json.dumps(sorted(snippet.tags))}",
            f"flags = {snippet.flags:#x}",
            *(["armed = true"] if snippet.armed else []),
            "lines = '''",
            *snippet.lines,
            "'''",
            "",
            "[registers]",
            *(f"{name} = {json.dumps(value)}" for name, value in registers.items()),
            "",
        )
    )
