"""The first cases of the campaign; `make campaign BUDGET=SECONDS` goes on."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.campaign.__main__ import KINDS, run_case

SEED, CASES = 1, 4


@pytest.mark.parametrize("number", range(CASES))
@pytest.mark.parametrize("kind", KINDS)
def test_a_case(kind: str, number: int, tmp_path: Path) -> None:
    run_case(f"{kind}-{SEED}-{number}", tmp_path)
