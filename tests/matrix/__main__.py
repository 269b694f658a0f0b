"""`make matrix`: run it and write docs/matrix.md. Exit code 1 when a cell fails."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console

from runtime.backends import all_backends
from tests.matrix.cells import Cell, cell, guests, image_of, patch, run

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "matrix.md"
HEAD = """# The matrix

Written by `make matrix`. Each row is one image, patched once; each column runs that same file. A cell passes
when the guest comes to its expected end, its console equals that of the unpatched image on `bare` (apart from
the kinds of text in `pvpatch/transcript_rules.toml`), and no privileged or sensitive operation was missed.
A cell shows guest seconds / host seconds / exits.

Column `xen` is a *translated* domain that is given a PC's ports and the 8259 pair's pin, options that a stock
Xen does not have (docs/xen.md); `lguest` and `vmi` have options of their own (docs/backends.md, docs/vmi.md).
"""


def _rows(console: Console, folder: Path) -> list[Cell]:
    backends = {name: backend.capabilities for name, backend in all_backends().items()}
    cells: list[Cell] = []
    for guest in guests():
        image = image_of(guest)
        reference = run(guest, image, "bare", folder)
        if reference.exit_code:
            console.print(f"{guest.name}: unpatched on bare ends with {reference.message}")
        try:
            patched = patch(image, folder, guest.name)
        except subprocess.CalledProcessError as error:
            console.print(f"{guest.name}: {error.stderr.decode().strip()}")
            cells.append(Cell(guest.name, "patch", False, "cannot be patched", 0, 0, 0, 0))
            continue
        for name, capabilities in backends.items():
            if guest.width not in capabilities.privilege:
                continue
            result = cell(guest, reference, patched, name, folder)
            console.print(f"{guest.name:16} {name:8} {'pass' if result.passed else 'FAIL'} {result.reason}")
            cells.append(result)
    return cells


def _document(cells: list[Cell]) -> str:
    order = sorted({one.backend for one in cells}, key=["bare", "kvm", "xen", "lguest", "vmi"].index)
    lines = [HEAD, "| guest | " + " | ".join(order) + " |", "|---|" + "---|" * len(order)]
    reasons: list[str] = []
    for name in dict.fromkeys(one.guest for one in cells):
        row = [name]
        for backend in order:
            found = next((one for one in cells if (one.guest, one.backend) == (name, backend)), None)
            if found is None:
                row.append("")
            elif found.passed:
                row.append(f"pass {found.guest_seconds:.1f} / {found.host_seconds:.1f} / {found.exits}")
            else:
                reasons.append(f"- {name} on {backend}: {found.reason}")
                row.append("fails, see below")
        lines.append("| " + " | ".join(row) + " |")
    return "\n".join([*lines, "", *reasons]).rstrip() + "\n"


def main() -> int:
    """Run every cell."""
    console = Console(highlight=False, soft_wrap=True)
    with tempfile.TemporaryDirectory() as folder:
        cells = _rows(console, Path(folder))
    DOCUMENT.write_text(_document(cells))
    failed = sum(not one.passed for one in cells)
    console.print(f"{len(cells) - failed} of {len(cells)} cells pass; table in docs/matrix.md")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
