"""A second opinion on every site: capstone, with its known gaps as data.

A scan trusts iced-x86. capstone is an independent decoder; where both agree on length and name a
site is beyond doubt. `capstone_gaps.toml` lists every difference that is understood.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

import capstone

__all__ = ["Verdict", "has_length", "second_opinion"]

_MODES = {16: capstone.CS_MODE_16, 32: capstone.CS_MODE_32, 64: capstone.CS_MODE_64}
_REPEATS = ("rep ", "repe ", "repne ", "repz ", "repnz ", "lock ", "bnd ")


@dataclass(frozen=True, slots=True)
class Verdict:
    """`agrees`, or a difference; `reason` says why a difference is understood (empty: it is not)."""

    agrees: bool
    capstone: str
    """Name that capstone gives, empty when it decodes nothing there."""
    reason: str = ""

    @property
    def explained(self) -> bool:
        """True unless somebody has to look at it."""
        return self.agrees or bool(self.reason)


@cache
def _decoder(width: int) -> capstone.Cs:
    return capstone.Cs(capstone.CS_ARCH_X86, _MODES[width])


@cache
def _table(name: str) -> dict[tuple[str, str], str]:
    text = files("rewriter.decode").joinpath("capstone_gaps.toml").read_text(encoding="utf-8")
    rows = tomllib.loads(text)[name]
    return {(row["iced"], other): row["reason"] for row in rows for other in row["capstone"]}


def has_length(code: bytes, width: int) -> bool:
    """Whether capstone reads all of `code` as one instruction."""
    decoded = next(_decoder(width).disasm_lite(code, 0, 1), None)
    return decoded is not None and decoded[1] == len(code)


def second_opinion(code: bytes, width: int, mnemonic: str) -> Verdict:
    """What capstone says of one instruction that iced calls `mnemonic`."""
    decoded = next(_decoder(width).disasm_lite(code, 0, 1), None)
    if decoded is None:
        return Verdict(False, "", _table("gap").get((mnemonic, ""), ""))
    _, length, name, _ = decoded
    plain = name
    for prefix in _REPEATS:
        plain = plain.removeprefix(prefix)
    if length != len(code):
        return Verdict(False, plain)
    if plain == mnemonic or (mnemonic, plain) in _table("name"):
        return Verdict(True, plain)
    return Verdict(False, plain, _table("gap").get((mnemonic, plain), ""))
