"""The tables of docs/one-abi.md are those of the mapping data."""

from __future__ import annotations

from pathlib import Path

from pvpatch.abi.comparison import comparison
from pvpatch.abi.mappings import load_mappings
from pvpatch.abi.spec import load_spec

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "one-abi-tables.md"


def test_the_committed_tables_are_current() -> None:
    assert DOCUMENT.read_text(encoding="utf-8") == comparison(), "run `make docs`"


def test_every_call_and_every_name_stands_in_the_tables() -> None:
    text = comparison()
    assert all(f"| `{call.name}` |" in text for call in load_spec().calls)
    for mapping in load_mappings():
        for table in mapping.tables:
            for row in table.rows:
                assert row.name in text, f"{mapping.interface} {row.name}"
