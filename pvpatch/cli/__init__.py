"""The command line: one module per command, put together here.

Only the module of the command that is asked for is imported: reading ELF files, decoding and emulation each
bring a large library along, and no command needs them all. The list of commands needs none.
"""

from __future__ import annotations

import ast
import gc
import sys
from importlib import import_module
from importlib.resources import files

import typer

from pvpatch.cli.failures import guarded

_GC_THRESHOLD = 200_000
"""Objects between two garbage collections. Imports and images make many objects and few cycles: Python's
default of 700 costs a tenth of a run."""

__all__ = ["COMMANDS", "build", "main"]

COMMANDS = {
    "scan": "scan_command",
    "patch": "patch_command",
    "revert": "revert_command",
    "diff": "diff_command",
    "run": "run_command",
    "abi": "abi_app",
    "backends": "backends_command",
    "guests": "guests_app",
}
"""Command -> the function, or the group of commands, in the module `pvpatch.cli.<command>`."""


def build(wanted: str | None = None) -> typer.Typer:
    """The application with one command, or with all of them."""
    app = _application()
    for name in COMMANDS if wanted is None else (wanted,):
        found = getattr(import_module(f"{__name__}.{name}"), COMMANDS[name])
        if isinstance(found, typer.Typer):
            app.add_typer(found, name=name)
        else:
            app.command(name)(found)
    return app


def overview() -> typer.Typer:
    """The application for words that name no command (help, a typing error): names and summaries."""
    app = _application()
    for name in COMMANDS:
        app.command(name, help=_summary(name))(lambda: None)
    return app


def _summary(name: str) -> str:
    """What the first line of a command's module says behind its name."""
    source = files(__name__).joinpath(f"{name}.py").read_text(encoding="utf-8")
    line = (ast.get_docstring(ast.parse(source)) or name).splitlines()[0]
    text = line.rpartition("`: ")[2]
    return text[:1].upper() + text[1:]


def _application() -> typer.Typer:
    app = typer.Typer(
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode="rich" if sys.stderr.isatty() else None,
        help="One paravirt ABI for every x86 kernel and every hypervisor.",
    )

    @app.callback()
    def group() -> None:
        """One paravirt ABI for every x86 kernel and every hypervisor."""

    return app


def main() -> None:
    """The entry of the `pvpatch` command."""
    gc.set_threshold(_GC_THRESHOLD)
    wanted = sys.argv[1] if len(sys.argv) > 1 else None
    sys.exit(guarded(lambda: (build(wanted) if wanted in COMMANDS else overview())(prog_name="pvpatch")))
