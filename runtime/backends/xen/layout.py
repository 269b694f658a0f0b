"""Xen's numbers and structure layouts, read from interface.toml: the one place that knows an offset.

`Struct` answers where a field of a structure lies for one guest width; nothing here touches memory.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from enum import IntEnum
from functools import cache, cached_property
from importlib.resources import files
from typing import Any

__all__ = ["ERRNO", "PAGE_SIZE", "Struct", "interface", "names", "numbers", "struct"]

PAGE_SIZE = 4096


@cache
def interface() -> dict[str, Any]:
    """The parsed interface.toml."""
    return tomllib.loads(files(__package__).joinpath("interface.toml").read_text())


def numbers(table: str) -> dict[str, int]:
    """Name -> number of one table, such as `hypercall` or `mmuext`."""
    return dict(interface()[table])


def names(table: str) -> dict[int, str]:
    """Number -> name of one table."""
    return {number: name for name, number in interface()[table].items()}


class ERRNO(IntEnum):
    """Error codes of Xen's interface (xen/include/public/errno.h); hypercalls return them negative."""

    EPERM = 1
    ENOENT = 2
    ESRCH = 3
    E2BIG = 7
    EAGAIN = 11
    ENOMEM = 12
    EACCES = 13
    EFAULT = 14
    EBUSY = 16
    EEXIST = 17
    EXDEV = 18
    ENODEV = 19
    EINVAL = 22
    ENOSPC = 28
    ENOSYS = 38
    EOPNOTSUPP = 95
    ETIME = 62


@dataclass(frozen=True)
class Struct:
    """One structure at one guest width (32 or 64): size and field places in bytes."""

    name: str
    size: int
    offsets: dict[str, int]
    sizes: dict[str, int]

    def place(self, field: str) -> tuple[int, int]:
        """(offset, size) of a field in bytes."""
        return self.offsets[field], self.sizes[field]

    def unpack(self, data: bytes) -> dict[str, int]:
        """Every field of at most 8 bytes as an unsigned integer."""
        number = int.from_bytes
        return {field: number(data[at:end], "little") for field, at, end in self._integers}

    @cached_property
    def _integers(self) -> tuple[tuple[str, int, int], ...]:
        """Name, begin and end of the fields of at most 8 bytes."""
        sizes = self.sizes
        return tuple(
            (field, at, at + sizes[field]) for field, at in self.offsets.items() if sizes[field] <= 8
        )

    def pack(self, **values: int) -> bytearray:
        """A zeroed structure with these integer fields set."""
        data = bytearray(self.size)
        for field, value in values.items():
            at, size = self.place(field)
            data[at : at + size] = (value & ((1 << (8 * size)) - 1)).to_bytes(size, "little")
        return data


@cache
def struct(name: str, width: int) -> Struct:
    """The layout of `name` for a guest of `width` bits.

    Raises KeyError for an unknown name: that is a programming error, never the guest's.
    """
    which = 0 if width == 32 else 1

    def pick(value: int | list[int]) -> int:
        return value[which] if isinstance(value, list) else value

    raw = interface()["struct"][name]
    fields = {key: value for key, value in raw.items() if key != "size"}
    return Struct(
        name,
        pick(raw["size"]),
        {key: pick(value["offset"]) for key, value in fields.items()},
        {key: pick(value["bytes"]) for key, value in fields.items()},
    )
