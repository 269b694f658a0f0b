"""`pvpatch backends`: which hypervisors can stand behind the ABI here."""

from __future__ import annotations

import json
import sys
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from pvpatch.report.outfile import write_output
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
    table = Table("backend", "guest kernel at", "memory", "time behind the ABI", "what it is")
    for one in found:
        table.add_row(one.name, _privilege(one).replace(", ", "\n"), one.memory, one.time_source, one.summary)
    Console().print(table)
