"""The `pvpatch` command, also as `python -m pvpatch`."""

from __future__ import annotations

import contextlib
import gc
import os
import sys

__all__ = ["main"]

YOUNG_OBJECTS = 100_000
"""Objects made between two looks for cyclic garbage, of which a run makes little."""


def main() -> None:
    """Load the commands and run one; loading takes long enough to be interrupted.

    The process ends without taking its objects apart: everything is written by then, and the large
    libraries take an eighth of a second of a short run to unload.
    """
    gc.set_threshold(YOUNG_OBJECTS)
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # numpy's threads would only wait
    try:
        from pvpatch.cli import main as command
    except KeyboardInterrupt:
        sys.stderr.write("pvpatch: interrupted\n")
        sys.exit(130)
    try:
        command()
    except SystemExit as end:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(end.code if isinstance(end.code, int) else int(end.code is not None))


if __name__ == "__main__":
    main()
