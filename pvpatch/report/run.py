"""What `pvpatch run` tells a person: one closing line, and the report of a crash."""

from __future__ import annotations

import iced_x86

from pvpatch.report.shown import shown
from runtime.cpu.flags import EXCEPTION_NAMES
from runtime.outcome import CrashReport, Outcome, RunResult

__all__ = ["render_crash", "render_end"]

_GENERAL = (
    ("rax", "rbx", "rcx", "rdx"),
    ("rsi", "rdi", "rbp", "rsp"),
    ("r8", "r9", "r10", "r11"),
    ("r12", "r13", "r14", "r15"),
)
_CONTROL = (
    ("rip", "rflags", "cpl", "efer"),
    ("cr0", "cr2", "cr3", "cr4"),
    ("cs", "ss", "ds", "es", "fs", "gs"),
)
_INSTRUCTIONS_SHOWN = 4


def render_end(result: RunResult, until: str = "") -> str:
    """One line: what ended the run, when, and at what cost; and that `until` was waited for in vain."""
    detail = f" ({shown(result.detail)})" if result.detail and result.outcome is not Outcome.UNTIL else ""
    missing = f", the console never showed {until!r}" if until and result.outcome is not Outcome.UNTIL else ""
    return (
        f"pvpatch: {result.outcome.value}{detail}{missing};"
        f" {result.guest_ns / 1e9:.3f} s of guest time on {result.backend} in {result.host_seconds:.1f} s\n"
    )


def render_crash(crash: CrashReport) -> str:
    """Vector, registers, code and the nearest symbol."""
    digits = 16 if crash.width == 64 else 8
    lines = [f"guest crashed: {shown(crash.reason)}"]
    if crash.vector is not None:
        name = EXCEPTION_NAMES.get(crash.vector, "")
        code = f", error code {crash.error_code:#x}" if crash.error_code else ""
        lines.append(f"  vector {crash.vector} {name}{code}".rstrip())
    place = f" ({shown(crash.symbol)})" if crash.symbol else ""
    lines.append(f"  at {crash.code_address:#x}{place}, {crash.width}-bit code")
    groups = (*(_GENERAL if crash.width == 64 else _GENERAL[:2]), *_CONTROL)
    for group in groups:
        lines.append(
            "  " + "  ".join(f"{name:>6} {crash.registers[name]:0{_digits(name, digits)}x}" for name in group)
        )
    lines += _disassembly(crash)
    if crash.stack:
        lines.append("  stack " + " ".join(f"{word:0{digits}x}" for word in crash.stack))
    return "\n".join(lines) + "\n"


def _digits(name: str, digits: int) -> int:
    return 4 if name in ("cs", "ss", "ds", "es", "fs", "gs") else 1 if name == "cpl" else digits


def _disassembly(crash: CrashReport) -> list[str]:
    """The first instructions at the place of the crash."""
    if not crash.code:
        return ["  no code is mapped there"]
    formatter = iced_x86.Formatter(iced_x86.FormatterSyntax.INTEL)
    lines = []
    decoder = iced_x86.Decoder(crash.width, crash.code, ip=crash.code_address)
    for count, instruction in enumerate(decoder):
        if count == _INSTRUCTIONS_SHOWN:
            break
        start = instruction.ip - crash.code_address
        raw = crash.code[start : start + instruction.len].hex()
        lines.append(f"  {instruction.ip:#x}: {raw:<20} {formatter.format(instruction)}")
    return lines
