"""`make oracle`: run the three hosts, compare verdict by verdict, write docs/oracle.md."""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

from rich.console import Console

from tests.oracle.hosts import dom0, domu, model, verdicts

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "oracle.md"
HEAD = """# The Xen model against real Xen

Written by `make oracle`: the sample `samples/xen-x86_64` on this project's model, and on Debian's Xen 4.17
under QEMU, once as first domain and once as an unprivileged guest created by `xl`. A number is the result of
the hypercall. Where the two kinds of domain differ, the model is the unprivileged one.
"""


def _document(rows: dict[str, tuple[str, str, str]]) -> str:
    lines = [HEAD, "| check | model | Xen, guest | Xen, first domain | |", "|---|---|---|---|---|"]
    for name, (ours, guest, first) in rows.items():
        mark = "" if ours == guest else "**differs**"
        lines.append(f"| {name} | {ours} | {guest} | {first} | {mark} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    """Exit code 1 when the model's verdict differs from real Xen's for a guest."""
    console = Console(highlight=False, soft_wrap=True)
    if not shutil.which("qemu-system-x86_64"):
        console.print("qemu-system-x86_64 is needed (Debian package qemu-system-x86)")
        return 1
    results: list[dict[str, str]] = []
    with tempfile.TemporaryDirectory() as folder:
        for title, host in (("the model", model), ("Xen, as a guest", domu), ("Xen, as first domain", dom0)):
            found = verdicts(host(Path(folder)))
            failing = sum(verdict.startswith("FAIL") for verdict in found.values())
            console.print(f"{title}: {len(found)} checks, {failing} fail")
            results.append(found)
    ours, guest, first = results
    names = list(dict.fromkeys([*guest, *ours, *first]))
    rows = {name: (ours.get(name, "-"), guest.get(name, "-"), first.get(name, "-")) for name in names}
    DOCUMENT.write_text(_document(rows))
    differing = [name for name, (a, b, _) in rows.items() if a != b]
    for name in differing:
        console.print(f"differs: {name}: model {rows[name][0]}, Xen {rows[name][1]}")
    console.print(f"{len(rows) - len(differing)} of {len(rows)} verdicts equal; table in docs/oracle.md")
    return 1 if differing or not guest else 0


if __name__ == "__main__":
    sys.exit(main())
