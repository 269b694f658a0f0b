"""The machine's own apt, asked with a private state directory so that nothing of the system changes.

Both architectures use private package lists: those of the system may be missing, old, or hold one
architecture only. The sources (and their keys) are the system's.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from pvpatch.abi.errors import PvpatchError

__all__ = ["Apt", "FetchError", "Package"]

LISTS_FRESH_SECONDS = 24 * 3600
COMMAND_SECONDS = 300
DOWNLOAD_SECONDS = 1800
_KEYS = "/usr/share/keyrings/debian-archive-keyring.gpg"
_MIRROR = "http://deb.debian.org/debian"


class FetchError(PvpatchError):
    """A guest could not be fetched: no apt, no network, or the package is not served."""

    exit_code = 3


@dataclass(frozen=True)
class Package:
    """What apt says of the version that it would serve."""

    name: str
    version: str
    architecture: str
    sha256: str
    depends: tuple[str, ...]


class Apt:
    """apt for one Debian architecture, with its state below `state`."""

    def __init__(self, state: Path, architecture: str, suite: str = "") -> None:
        """`suite` names a Debian suite to ask instead of the system's own sources."""
        self._state = state
        self._architecture = architecture
        self._suite = suite
        self._last_error = ""

    def prepare(self, *, force: bool = False) -> None:
        """Get the package lists when there are none, when they are a day old, or when forced.

        A source that fails is not fatal here: what matters is whether the package is found later.
        """
        for tool in ("apt-get", "apt-cache", "dpkg-deb"):
            if shutil.which(tool) is None:
                raise FetchError(
                    f"guests are fetched with apt, and this machine has no {tool}",
                    hint="on a machine without apt, give pvpatch the path of a kernel file instead",
                )
        stamp = self._state / "updated"
        if not force and stamp.exists() and time.time() - stamp.stat().st_mtime < LISTS_FRESH_SECONDS:
            return
        for folder in ("lists/partial", "cache/archives/partial"):
            (self._state / folder).mkdir(parents=True, exist_ok=True)
        (self._state / "status").touch()
        result = self._run("apt-get", "update", seconds=COMMAND_SECONDS)
        if any(self._state.glob("lists/*_Packages*")):
            stamp.touch()
        else:
            raise FetchError(
                f"apt has no package list for {self._architecture}: {_last_line(result.stderr)}",
                hint="is the network there, and does the system have Debian sources?",
            )

    def show(self, name: str) -> Package:
        """The version of a package that apt would install; FetchError when there is none."""
        result = self._run("apt-cache", "show", "--no-all-versions", name, seconds=COMMAND_SECONDS)
        fields: dict[str, str] = {}
        for line in result.stdout.split("\n\n")[0].splitlines():
            key, separator, value = line.partition(": ")
            if separator and not line.startswith(" "):
                fields[key] = value
        if result.returncode != 0 or "Version" not in fields:
            raise FetchError(
                f"apt serves no package {name} for {self._architecture}",
                hint=_last_line(result.stderr) or self._last_error,
            )
        depends = tuple(
            item.split("|")[0].split("(")[0].strip() for item in fields.get("Depends", "").split(",")
        )
        return Package(name, fields["Version"], self._architecture, fields.get("SHA256", ""), depends)

    def download(self, package: Package, folder: Path) -> Path:
        """Download the .deb of exactly that version into a folder and return its path."""
        result = self._run(
            "apt-get",
            "download",
            f"{package.name}={package.version}",
            seconds=DOWNLOAD_SECONDS,
            folder=folder,
        )
        found = sorted(folder.glob("*.deb"))
        if result.returncode != 0 or not found:
            raise FetchError(
                f"apt could not download {package.name} {package.version} ({self._architecture})",
                hint=_last_line(result.stderr),
            )
        return found[0]

    def _run(
        self, tool: str, *words: str, seconds: int, folder: Path | None = None
    ) -> subprocess.CompletedProcess[str]:
        command = [tool, *self._options(), *words]
        environment = dict(os.environ, LC_ALL="C.UTF-8", DEBIAN_FRONTEND="noninteractive")
        try:
            result = subprocess.run(
                command,
                cwd=folder or self._state,
                env=environment,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=seconds,
                stdin=subprocess.DEVNULL,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise FetchError(f"{tool} {words[0]} gave no answer within {seconds} s") from error
        if result.returncode != 0:
            self._last_error = _last_line(result.stderr)
        return result

    def _sources(self) -> Path:
        """A source list of the one suite, checked with the keys that Debian installs."""
        path = self._state / "sources.list"
        if not path.exists():
            path.write_text(f"deb [signed-by={_KEYS}] {_MIRROR} {self._suite} main\n", encoding="ascii")
        return path

    def _options(self) -> list[str]:
        state = self._state
        values = {
            "APT::Architecture": self._architecture,
            "APT::Architectures": self._architecture,
            "Dir::State": state,
            "Dir::State::Lists": state / "lists",
            "Dir::State::status": state / "status",
            "Dir::Cache": state / "cache",
            "Acquire::Languages": "none",
            "Acquire::Retries": "2",
            "APT::Get::List-Cleanup": "true",
        }
        if self._suite:
            values["Dir::Etc::SourceList"] = self._sources()
            values["Dir::Etc::SourceParts"] = "/dev/null"
        if os.geteuid() == 0:
            # The download sandbox user may not enter the cache of root's home; the files are still verified.
            values["APT::Sandbox::User"] = "root"
        return [word for key, value in values.items() for word in ("-o", f"{key}={value}")]


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("W:")]
    return lines[-1] if lines else ""
