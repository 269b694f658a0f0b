"""The command line: one module per command, put together here."""

from __future__ import annotations

import sys

import typer

from pvpatch.abi.errors import PvpatchError

__all__ = ["app", "main"]

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


def main() -> None:
    """Run the command line; every PvpatchError becomes one line on stderr and its exit code."""
    try:
        app()
    except PvpatchError as error:
        sys.stderr.write(f"pvpatch: {error}\n")
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.stderr.write("pvpatch: interrupted\n")
        sys.exit(130)
