"""The command line: one module per command, put together here."""

from __future__ import annotations

import sys

import typer

from pvpatch.cli.abi import abi_app
from pvpatch.cli.backends import backends_command
from pvpatch.cli.diff import diff_command
from pvpatch.cli.failures import guarded
from pvpatch.cli.guests import guests_app
from pvpatch.cli.patch import patch_command
from pvpatch.cli.revert import revert_command
from pvpatch.cli.run import run_command
from pvpatch.cli.scan import scan_command

__all__ = ["app", "main"]

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich" if sys.stderr.isatty() else None,
    help="One paravirt ABI for every x86 kernel and every hypervisor.",
)
app.command("scan")(scan_command)
app.command("patch")(patch_command)
app.command("revert")(revert_command)
app.command("diff")(diff_command)
app.command("run")(run_command)
app.command("backends")(backends_command)
app.add_typer(abi_app, name="abi")
app.add_typer(guests_app, name="guests")


def main() -> None:
    """The entry of the `pvpatch` command."""
    sys.exit(guarded(lambda: app(prog_name="pvpatch")))
