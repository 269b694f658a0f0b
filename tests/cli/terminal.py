"""A command on a terminal: a pseudo-terminal of a given width, everything that it shows, and its keys."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import termios
import time
from pathlib import Path

from tests.cli.command import COMMAND, SECONDS, environment

__all__ = ["Terminal", "lines", "plain"]

_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b[()][A-Z0-9]")


def plain(text: str) -> str:
    """What a person reads: no escape sequences, no carriage returns."""
    return _ESCAPES.sub("", text).replace("\r", "")


def lines(text: str) -> list[str]:
    """The lines that remain to be seen: a carriage return starts a line anew."""
    return [line.rstrip("\r").split("\r")[-1] for line in _ESCAPES.sub("", text).split("\n")]


class Terminal:
    """Runs `pvpatch` with all three streams on one pseudo-terminal; Ctrl-C is a key like on any other."""

    def __init__(self, *arguments: str | Path, columns: int = 80, cwd: Path | None = None) -> None:
        self._keys, inner = pty.openpty()
        fcntl.ioctl(inner, termios.TIOCSWINSZ, struct.pack("4H", 40, columns, 0, 0))
        self._process = subprocess.Popen(
            [*COMMAND, *map(str, arguments)],
            stdin=inner,
            stdout=inner,
            stderr=inner,
            cwd=cwd,
            env={**environment(), "TERM": "xterm-256color"},
            preexec_fn=self._own_session,
        )
        os.close(inner)
        self.shown = ""

    @staticmethod
    def _own_session() -> None:
        os.setsid()
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    def _read(self, seconds: float) -> bool:
        """Take what appears within `seconds`; False at the end."""
        ready, _, _ = select.select([self._keys], [], [], seconds)
        if ready:
            with contextlib.suppress(OSError):  # EIO: the other side is closed
                data = os.read(self._keys, 65536)
                self.shown += data.decode("utf-8", "replace")
                return bool(data)
            return False
        return True

    def wait_for(self, text: str) -> None:
        """Until `text` has been shown."""
        end = time.monotonic() + SECONDS
        while text not in plain(self.shown):
            assert self._read(1) and time.monotonic() < end, f"no {text!r} in {self.shown!r}"

    def type(self, keys: bytes) -> None:
        """Press keys."""
        os.write(self._keys, keys)

    def end(self) -> int:
        """The exit code, when everything was shown."""
        end = time.monotonic() + SECONDS
        while self._read(1):
            assert time.monotonic() < end, self.shown
        os.close(self._keys)
        code = self._process.wait(SECONDS)
        assert "Traceback" not in self.shown, self.shown
        return code
