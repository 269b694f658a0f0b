"""Which instruction codes are privileged or sensitive, and the filters that find them fast.

`instructions.toml` names the codes; opcode bytes come from iced's database, so that the list,
the byte filters and the confirmation by iced cannot disagree.
"""

import re
import tomllib
from bisect import bisect_left
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from importlib.resources import files

import numpy as np
from iced_x86 import Code, EncodingKind, OpCodeTableKind

from rewriter.decode.opcode_tables import ByteArray, encodings

FAULTS, SILENT, DEPENDS = "faults", "silent", "depends"


@dataclass(frozen=True)
class InstructionClass:
    """One family of sensitive instructions, as `instructions.toml` describes it."""

    kind: str
    group: str
    effect: str
    """`faults`, `silent` or `depends`: what it does without privilege."""
    condition: str
    codes: tuple[int, ...]

    @property
    def faults_when_deprivileged(self) -> bool:
        """True when the processor itself reports it, so that trapping it is possible."""
        return self.effect == FAULTS


@cache
def code_names() -> dict[str, int]:
    """Name of every instruction code of iced -> its number, sorted by name."""
    return {
        name: vars(Code)[name]
        for name in sorted(vars(Code))
        if name.isupper() and isinstance(vars(Code)[name], int)
    }


def codes_matching(pattern: str) -> list[int]:
    """Numbers of the instruction codes whose name matches a shell pattern."""
    literal = re.split(r"[*?\[]", pattern, maxsplit=1)[0]
    names = _sorted_names()
    found = []
    for name in names[bisect_left(names, literal) :]:
        if not name.startswith(literal):
            break
        if fnmatchcase(name, pattern):
            found.append(code_names()[name])
    return found


@cache
def _sorted_names() -> list[str]:
    return list(code_names())


@cache
def instruction_classes() -> tuple[InstructionClass, ...]:
    """The table, in file order. Raises ValueError when a pattern selects nothing or two kinds overlap."""
    text = files("rewriter.decode").joinpath("instructions.toml").read_text(encoding="utf-8")
    result: list[InstructionClass] = []
    taken: dict[int, str] = {}
    for row in tomllib.loads(text)["instruction"]:
        codes: list[int] = []
        for pattern in row["codes"]:
            found = codes_matching(pattern)
            if not found:
                raise ValueError(f"instructions.toml: {row['kind']}: no instruction code matches {pattern}")
            codes += found
        for code in codes:
            if taken.setdefault(code, row["kind"]) != row["kind"]:
                raise ValueError(f"instructions.toml: {row['kind']} and {taken[code]} share a code")
        result.append(
            InstructionClass(
                row["kind"], row["group"], row["effect"], row.get("condition", ""), tuple(sorted(set(codes)))
            )
        )
    return tuple(result)


@cache
def class_by_code() -> dict[int, InstructionClass]:
    """Instruction code of iced -> its class."""
    return {code: entry for entry in instruction_classes() for code in entry.codes}


@dataclass(frozen=True)
class CandidateFilter:
    """Byte filters for one width: a set bit means "a sensitive instruction may start like this"."""

    first: ByteArray
    """By opcode byte: 1 a candidate that `pair` refines, 2 the escape 0F."""
    second: ByteArray
    """By the byte after 0F: 1 a candidate that `escaped_pair` refines, 2 the escapes 0F38 and 0F3A."""
    pair: ByteArray
    """By opcode and following byte."""
    escaped_pair: ByteArray
    """By the byte after 0F and the one following it."""


@cache
def candidate_filter(width: int) -> CandidateFilter:
    """The filter for `width`-bit code, the union over all prefixes."""
    pair = np.zeros((256, 256), np.uint8)
    escaped = np.zeros((256, 256), np.uint8)
    second = np.zeros(256, np.uint8)
    wanted = class_by_code()
    for entry in encodings():
        if entry.code not in wanted or width not in entry.modes or entry.kind != EncodingKind.LEGACY:
            continue
        following = list(range(256)) if entry.modrm is None else sorted(entry.modrm)
        for opcode in entry.opcodes:
            if entry.table == OpCodeTableKind.NORMAL:
                pair[following, opcode] = 1
            elif entry.table == OpCodeTableKind.T0F:
                escaped[following, opcode] = 1
                second[opcode] = 1
            else:
                escape = 0x38 if entry.table == OpCodeTableKind.T0F38 else 0x3A
                escaped[opcode, escape] = 1
                second[escape] = 2
    first = pair.max(axis=0).astype(np.uint8)
    first[0x0F] = 2
    return CandidateFilter(first, second, pair.reshape(-1), escaped.reshape(-1))
