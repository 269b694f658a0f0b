"""Patched images, each made once per test process."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from rewriter.emit.produce import Produced, patch_image
from rewriter.image import Image, open_image

SAMPLES = Path(__file__).resolve().parents[2] / "samples"
SAMPLE_NAMES = ("native-i386", "native-x86_64", "pc-x86_64")
GUEST_NAMES = ("gnumach-i386", "gnumach-amd64", "memtest-ia32", "memtest-x64")

Patches = Callable[[str], tuple[Image, Produced]]


@cache
def _patch(path: Path) -> tuple[Image, Produced]:
    image = open_image(path)
    return image, patch_image(image)


@pytest.fixture(scope="session")
def patch_of(guest_path: Callable[[str], Path]) -> Patches:
    """Image and patch of a sample or a guest, by name."""

    def patch(name: str) -> tuple[Image, Produced]:
        return _patch(SAMPLES / name / f"{name}.elf" if name in SAMPLE_NAMES else guest_path(name))

    return patch


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Tests that take ``subject`` run on the samples and on the real images."""
    if "subject" in metafunc.fixturenames:
        guests = [pytest.param(name, marks=pytest.mark.guest) for name in GUEST_NAMES]
        metafunc.parametrize("subject", [*SAMPLE_NAMES, *guests])
