"""Decoding: lengths at every offset, exact sweeps, and the table of sensitive instructions."""

from pvpatch.abi.forms import Match, match_form
from rewriter.decode.classification import InstructionClass, class_by_code, instruction_classes
from rewriter.decode.lengths import LengthMap, instruction_lengths
from rewriter.decode.prefilter import candidates
from rewriter.decode.sweep import sweep

__all__ = [
    "InstructionClass",
    "LengthMap",
    "Match",
    "candidates",
    "class_by_code",
    "instruction_classes",
    "instruction_lengths",
    "match_form",
    "sweep",
]
