"""Every shipped sample can be scanned, whatever addresses it is linked at."""

from __future__ import annotations

from pathlib import Path

import pytest

from rewriter.image import open_image
from rewriter.scan import scan_image

SAMPLES = sorted((Path(__file__).resolve().parents[2] / "samples").glob("*/*.elf"))


@pytest.mark.parametrize("path", SAMPLES, ids=lambda path: path.stem)
def test_a_sample_is_scanned_and_its_sites_are_real_bytes_of_it(path: Path) -> None:
    image = open_image(path)
    result = scan_image(image)
    assert result.sites
    for site in result.sites:
        assert image.read(site.address, site.length) == site.code


def test_there_are_samples() -> None:
    assert len(SAMPLES) >= 4
