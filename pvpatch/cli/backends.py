"""`pvpatch backends`: which hypervisors can stand behind the ABI here."""

from __future__ import annotations

import json
import sys
from typing import Annotated

import typer
from rich.console import Console

from pvpatch.report.outfile import write_output
from pvpatch.report.tables import WIDE, table
from runtime.backends import Capabilities, all_backends

__all__ = ["BACKENDS_SCHEMA", "backends_command"]

BACKENDS_SCHEMA = "pvpatch/backends/1"


def _privilege(capabilities: Capabilities) -> str:
    return ", ".join(
        f"{'i386' if width == 32 else 'x86_64'} CPL {level}"
        for width, level in sorted(capabilities.privilege.items())
    )


def _document(found: list[Capabilities]) -> dict[str, object]:
    return {
        "schema": BACKENDS_SCHEMA,
        "backends": [
            {
                "name": one.name,
                "id": one.backend_id,
                "privilege": {str(width): level for width, level in sorted(one.privilege.items())},
                "memory": one.memory,
                "time_source": one.time_source,
                "summary": one.summary,
            }
            for one in found
        ],
    }


def backends_command(
    as_json: Annotated[
        str, typer.Option("--json", metavar="FILE", help="write the list as JSON; - is standard output")
    ] = "",
) -> None:
    """List the hypervisor backends: widths and privilege of the guest's kernel, memory, time."""
    found = [backend.capabilities for backend in all_backends().values()]
    if as_json:
        text = json.dumps(_document(found), indent=2) + "\n"
        write_output(as_json, text)
        if as_json == "-":
            return
    if not sys.stdout.isatty():
        for one in found:
            print(f"{one.name}\t{_privilege(one)}\t{one.memory}\t{one.time_source}\t{one.summary}")
        return
    console = Console()
    wide = console.width >= WIDE
    shown = table(
        *("backend", "guest kernel at", "page tables", *(("time",) if wide else ()), "what it is"),
        whole=("backend", "guest kernel at", "page tables"),
    )
    for one in found:
        time = (one.time_source,) if wide else ()
        shown.add_row(one.name, _privilege(one).replace(", ", "\n"), one.memory, *time, one.summary)
    console.print(shown)
