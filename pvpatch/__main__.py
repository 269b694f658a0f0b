"""The `pvpatch` command, also as `python -m pvpatch`."""

from __future__ import annotations

import sys

__all__ = ["main"]


def main() -> None:
    """Load the commands and run one; loading takes long enough to be interrupted."""
    try:
        from pvpatch.cli import main as command
    except KeyboardInterrupt:
        sys.stderr.write("pvpatch: interrupted\n")
        sys.exit(130)
    command()


if __name__ == "__main__":
    main()
