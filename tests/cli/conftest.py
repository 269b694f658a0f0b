"""Images that the tests of the command line share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.command import inside
from tests.samples.images import image


@pytest.fixture(scope="session")
def native() -> Path:
    """The i386 sample: powers off after a tenth of a second."""
    return image("native-i386")


@pytest.fixture(scope="session")
def patched(native: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The i386 sample, patched by the command."""
    path = tmp_path_factory.mktemp("patched") / "native-i386.patched"
    assert inside("patch", native, "-o", path).code == 0
    return path
