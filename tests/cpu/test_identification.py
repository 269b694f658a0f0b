"""What the emulated CPU says of itself."""

from __future__ import annotations

import pytest

from runtime.cpu.cpuid import answer


def test_the_model_promises_no_chip_set() -> None:
    """Family 6 has memory controller's registers at the host bridge: none is here."""
    signature = answer(1, 0, 0)[0]
    assert signature >> 8 & 0xF == 0xF and signature >> 20 & 0xFF == 0


@pytest.mark.parametrize("cr4", [0, 1 << 18])
def test_osxsave_mirrors_cr4(cr4: int) -> None:
    assert answer(1, 0, cr4)[2] >> 27 & 1 == cr4 >> 18
