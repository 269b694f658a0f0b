"""Reads slot code files: assembly text cut into slots and routines by marker lines.

    .slot NAME        the code of the ABI call NAME
    .routine NAME     a further routine or data, named by NAME from everywhere in the file
    .define WORD TEXT a statement that is WORD alone stands for TEXT (statements separated by `;`)

`#` starts a comment.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from pvpatch.abi.errors import PvpatchError

__all__ = ["SlotFile", "read_slot_file"]


@dataclass(frozen=True)
class SlotFile:
    """Assembly text by call name and by routine name, in file order."""

    slots: dict[str, str] = field(default_factory=dict)
    routines: dict[str, str] = field(default_factory=dict)


def read_slot_file(*paths: Path) -> SlotFile:
    """Parse files as one, in order. Raises `PvpatchError` naming the line that is wrong."""
    parsed = SlotFile()
    shorthand: dict[str, str] = {}
    for path in paths:
        _read_one(path, parsed, shorthand)
    return parsed


def _read_one(path: Path, parsed: SlotFile, shorthand: dict[str, str]) -> None:
    target: dict[str, str] | None = None
    name = ""
    for number, line in enumerate(path.read_text().splitlines(), 1):
        words = line.split("#")[0].split()
        if words and words[0] in (".slot", ".routine"):
            target = parsed.slots if words[0] == ".slot" else parsed.routines
            if len(words) != 2 or words[1] in parsed.slots or words[1] in parsed.routines:
                raise PvpatchError(f"{path.name}:{number}: '{line.strip()}' needs one new name", exit_code=2)
            name = words[1]
            target[name] = ""
        elif words and words[0] == ".define" and len(words) > 2:
            shorthand[words[1]] = " ".join(words[2:])
        elif target is not None:
            stands_for = shorthand.get(words[0]) if len(words) == 1 else None
            target[name] += f"{stands_for or line}\n"
        elif words:
            raise PvpatchError(f"{path.name}:{number}: code before the first .slot", exit_code=2)
