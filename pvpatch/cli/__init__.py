"""The command line: one module per command, put together here."""

from __future__ import annotations

import os
import sys

import typer

from pvpatch.abi.errors import PvpatchError
from pvpatch.cli.abi import abi_app
from pvpatch.cli.backends import backends_command
from pvpatch.cli.guests import guests_app
from pvpatch.cli.run import run_command
from pvpatch.cli.scan import scan_command

__all__ = ["app", "main"]

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="One paravirt ABI for every x86 kernel and every hypervisor.",
)
app.command("scan")(scan_command)
app.command("run")(run_command)
app.command("backends")(backends_command)
app.add_typer(abi_app, name="abi")
app.add_typer(guests_app, name="guests")


def main() -> None:
    """Run the command line; every expected failure becomes one line on standard error and its exit code."""
    try:
        app()
    except PvpatchError as error:
        sys.stderr.write(f"pvpatch: {error}\n")
        sys.exit(error.exit_code)
    except BrokenPipeError:
        # The reader of a pipe went away: what is left to say has nobody to hear it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
