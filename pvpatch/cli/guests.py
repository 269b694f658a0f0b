"""`pvpatch guests`: fetch guest kernels with the machine's own apt."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from pvpatch.abi.errors import ImageError, UsageError
from pvpatch.guests import Guest, build_initramfs, cached, fetch, guest, guests
from pvpatch.guests.initramfs import DEFAULT_SCRIPT
from pvpatch.report.outfile import write_output
from pvpatch.report.tables import WIDE, table

__all__ = ["guests_app"]

guests_app = typer.Typer(no_args_is_help=True, help="Guest kernels, fetched with apt and kept in a cache.")


@guests_app.command("list")
def list_guests() -> None:
    """List the guests that can be fetched, and what is in the cache."""
    if not sys.stdout.isatty():
        for entry in guests():
            print(f"{entry.name}\t{entry.source}\t{_state(entry)}\t{entry.summary}")
        return
    console = Console()
    wide = console.width >= WIDE
    shown = table(
        *("guest", "fetched version", *(("package",) if wide else ()), "what it is"),
        whole=("guest", "fetched version"),
    )
    for entry in guests():
        found = cached(entry.name)
        package = (entry.source,) if wide else ()
        shown.add_row(entry.name, found.version if found is not None else "-", *package, entry.summary)
    console.print(shown)
    hint = "`pvpatch guests fetch NAME` gets one with apt, `pvpatch guests path NAME` says where it lies"
    console.print(f"\n{hint}", highlight=False)


@guests_app.command("fetch")
def fetch_guests(
    names: Annotated[
        list[str], typer.Argument(metavar="NAME...", help="Guest names, or 'all' (without large ones).")
    ],
    refresh: Annotated[bool, typer.Option("--refresh", help="Get new package lists first.")] = False,
) -> None:
    """Fetch guests in the version that apt serves now; prints the path of each."""
    wanted: list[Guest] = []
    for name in names:
        wanted += [entry for entry in guests() if not entry.large] if name == "all" else [guest(name)]
    for entry in dict.fromkeys(wanted):
        if sys.stderr.isatty():
            sys.stderr.write(f"pvpatch: fetching {entry.name} ({entry.source})\n")
        found = fetch(entry.name, refresh=refresh)
        refresh = False
        print(f"{entry.name}\t{found.path}", flush=True)


@guests_app.command("path")
def path_of(name: Annotated[str, typer.Argument(metavar="NAME")]) -> None:
    """Print where the guest fetched last lies."""
    found = cached(name)
    if found is None:
        raise ImageError(f"guest {name} is not in the cache", hint=f"pvpatch guests fetch {name}")
    print(found.path)


@guests_app.command("initramfs")
def initramfs(
    output: Annotated[Path, typer.Option("-o", "--output", metavar="FILE", help="The archive to write.")],
    script: Annotated[
        Path | None, typer.Option("--script", metavar="FILE", help="Shell commands that /init runs.")
    ] = None,
    busybox: Annotated[
        str, typer.Option("--busybox", metavar="GUEST", help="Which busybox: busybox-amd64 or busybox-i386.")
    ] = "busybox-amd64",
) -> None:
    """Write a busybox initramfs; without --script it prints `uname -a` and powers off."""
    try:
        commands = script.read_text(encoding="utf-8") if script is not None else DEFAULT_SCRIPT
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read the script: {error}") from error
    found = cached(busybox) or fetch(busybox)
    write_output(str(output), build_initramfs(found.path, commands))


def _state(entry: Guest) -> str:
    found = cached(entry.name)
    return f"{found.package} {found.version}" if found is not None else "-"
