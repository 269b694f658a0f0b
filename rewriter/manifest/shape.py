"""What a manifest may be, checked before it is believed: it comes out of a file that anybody can make.

A document is parsed by a general parser, whose memory and recursion depend on what it is given. So its
outline is looked at first, without parsing: how many arrays, objects and members it has for its size.
Afterwards each field must be what its dataclass says.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any

__all__ = ["check_fields", "check_outline", "is_number"]

_STRING = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)
_ARRAYS = 5
"""Changes, additions, sites, containers, notes; nothing in them is an array."""
_OBJECT_SIZE, _MEMBER_SIZE = 40, 8
"""Bytes of text that an object and a member of one take at least, on average: the names of their fields."""
_ALLOWANCE = 64
"""Objects and members besides: a document may be small."""


def check_outline(text: bytes) -> None:
    """ValueError when `text` cannot be a manifest, whatever its strings say."""
    outline = _STRING.sub(b"", text)
    if outline.count(b"[") > _ARRAYS:
        raise ValueError("more arrays than a manifest has")
    if outline.count(b"{") > len(text) // _OBJECT_SIZE + _ALLOWANCE:
        raise ValueError("objects with nothing in them")
    if outline.count(b",") > len(text) // _MEMBER_SIZE + _ALLOWANCE:
        raise ValueError("members with nothing in them")


def is_number(value: object) -> bool:
    """A size or an address: an integer of 64 bits."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 64


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_recipe(value: object) -> bool:
    return value is None or (isinstance(value, dict) and all(map(_is_text, value)))


_FITS: Mapping[str, Callable[[Any], bool]] = {
    "int": is_number,
    "int | None": lambda value: value is None or is_number(value),
    "str": _is_text,
    "Mapping[str, int]": lambda value: isinstance(value, dict) and all(map(is_number, value.values())),
    "Mapping[str, Any] | None": _is_recipe,
}
"""By annotation: is the value one of these?"""


def check_fields(item: Any) -> None:
    """ValueError when a plain field of a dataclass holds what its annotation does not allow."""
    for field in fields(item):
        fits = _FITS.get(str(field.type))
        if fits is not None and not fits(getattr(item, field.name)):
            raise ValueError(f"{field.name} is none")
