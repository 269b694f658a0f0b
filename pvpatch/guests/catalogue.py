"""The guests that `pvpatch guests` knows: data from catalogue.toml."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import cache
from importlib import resources

from pvpatch.abi.errors import UsageError

__all__ = ["Guest", "guest", "guests"]


@dataclass(frozen=True)
class Guest:
    """One kernel (or user-space file) that lives in a Debian package."""

    name: str
    architecture: str
    file: str
    summary: str
    package: str = ""
    depends_of: str = ""
    depends_prefix: str = ""
    depends_suffix: str = ""
    suffix: str = ""
    suite: str = ""
    """Debian suite, if the system's own sources do not have the package."""
    large: bool = False

    @property
    def source(self) -> str:
        """How the package is found, in words."""
        name = self.package or f"dependency of {self.depends_of}"
        suffix = f", {self.suffix} package" if self.suffix else ""
        suffix += f", {self.suite}" if self.suite else ""
        return f"{name}{suffix} ({self.architecture})"


@cache
def guests() -> tuple[Guest, ...]:
    """Every guest of the catalogue, in its order."""
    text = resources.files(__package__).joinpath("catalogue.toml").read_text(encoding="utf-8")
    return tuple(Guest(**entry) for entry in tomllib.loads(text)["guest"])


def guest(name: str) -> Guest:
    """The guest of that name, or UsageError with the names there are."""
    for entry in guests():
        if entry.name == name:
            return entry
    known = ", ".join(entry.name for entry in guests())
    raise UsageError(f"no guest is called '{name}'", hint=f"there are: {known}")
