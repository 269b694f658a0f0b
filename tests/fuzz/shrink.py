"""A failing snippet made small: alone in its kernel, then with fewer lines, registers and flags."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from tests.fuzz.build import BuildError, build
from tests.fuzz.campaign import Failure, examine
from tests.fuzz.snippet import Snippet

__all__ = ["shrink"]

_TRIES = 60
"""Kernels that shrinking one snippet may take."""


def _kind(failure: Failure) -> tuple[str, str]:
    """What a failure is about: while shrinking it must stay the same."""
    first = failure.differences[0]
    return first.where.split(" ")[0], first.field


def _fails(snippet: Snippet, width: int, failure: Failure) -> Failure | None:
    """The snippet's failure alone in a kernel, on the same host and of the same kind."""
    try:
        kernel = build((snippet,), width)
    except BuildError:
        return None
    found = examine(kernel, (failure.host,)).failures
    return next((one for one in found if one.host == failure.host and _kind(one) == _kind(failure)), None)


def _smaller(snippet: Snippet) -> Iterator[Snippet]:
    """Each way to leave something out."""
    for at in range(len(snippet.lines)):
        yield snippet.with_lines(snippet.lines[:at] + snippet.lines[at + 1 :])
    if snippet.flags != 2:
        yield replace(snippet, flags=2)
    for name, value in snippet.registers.items():
        if value != "0" and value.isdecimal():  # what points into the data goes on doing so
            yield replace(snippet, registers={**snippet.registers, name: "0"})


def shrink(
    snippet: Snippet, width: int, failure: Failure, progress: Callable[[], None] = lambda: None
) -> tuple[Snippet, Failure]:
    """The smallest snippet found that fails like `failure`, and how; itself if it fails only in company."""
    alone = _fails(snippet, width, failure)
    if alone is None:
        return snippet, failure
    tries = 0
    again = True
    while again:
        again = False
        for candidate in _smaller(snippet):
            tries += 1
            if tries > _TRIES:
                return snippet, alone
            progress()
            found = _fails(candidate, width, failure)
            if found is not None:
                snippet, alone, again = candidate, found, True
                break
    return snippet, alone
