"""Fixtures that every test may use."""

from __future__ import annotations

import gc
import os
import resource
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pvpatch.abi.errors import PvpatchError
from pvpatch.guests import cached, fetch

GuestPath = Callable[[str], Path]
FAT_PROCESS = 700 << 20
"""Resident bytes of a test process from which on finished machines are collected after each test."""


@pytest.fixture(autouse=True)
def _free_machines() -> Iterator[None]:
    """A machine is one big cycle of callbacks around hundreds of MiB: do not wait for the collector."""
    yield
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    if resident > FAT_PROCESS:
        gc.collect()


@pytest.fixture(scope="session")
def guest_path() -> GuestPath:
    """Give the path of a real guest by name: from the cache, or fetched with apt.

    Where apt cannot fetch it the test is skipped with the reason; with CI=true it fails instead, so that
    a silent skip never looks like a pass.
    """
    failures: dict[str, str] = {}

    def path(name: str) -> Path:
        found = cached(name)
        if found is None and name not in failures:
            try:
                found = fetch(name)
            except PvpatchError as error:
                failures[name] = str(error)
        if found is not None:
            return found.path
        reason = f"guest {name} cannot be fetched: {failures[name]}"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)

    return path
