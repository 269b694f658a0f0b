"""Assembly through keystone, one statement at a time, every result decoded back before it is believed.

Keystone 0.9.2 emits wrong code for some inputs without an error (16-bit `lgdt`, cut far offsets,
absolute addresses made RIP-relative, 64-bit `sysret`). So each statement is decoded by iced-x86 and by
capstone, and both must say what the source said; a difference is an `AsmError`, never a byte in an image.

Syntax: Intel; one statement per line or `;`, `#` starts a comment, `name:` is a label, local to the text.
Labels may be used as branch targets, in sums inside operands (`table-here`) and as `[rip+label]`, which
is that label's place (`[rip+8]` is refused: it could mean two things).
Directives: `.byte a, b`, `.word`, `.long`, `.quad`, `.align n` (filled with nop), and `.rept n` ..
`.endr` with `\\+` as the counter. Forms keystone has no right spelling for are written here as
`retfq`, `sysretd`, `sysretq`, `sysexitd`, `sysexitq`, `ljmp sel, off`, `lcall sel, off` (32 bits).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import capstone
import iced_x86
import keystone

from pvpatch.abi.errors import PvpatchError
from pvpatch.abi.statement import REGISTER, Statement, matches, parse_statement

__all__ = ["AsmError", "Assembly", "Line", "assemble"]

DECIMAL = re.compile(r"(?<![\w.])\d+(?![\w.])")
EXACT: dict[tuple[int, str], bytes] = {
    (64, "retfq"): b"\x48\xcb",
    (64, "sysretq"): b"\x48\x0f\x07",
    (64, "sysretd"): b"\x0f\x07",
    (32, "sysretd"): b"\x0f\x07",
    (64, "sysexitq"): b"\x48\x0f\x35",
    (64, "sysexitd"): b"\x0f\x35",
    (32, "sysexitd"): b"\x0f\x35",
    (64, "endbr64"): b"\xf3\x0f\x1e\xfa",
    (32, "movsd"): b"\xa5",
    (64, "movsd"): b"\xa5",
    (32, "rep movsd"): b"\xf3\xa5",
    (64, "rep movsd"): b"\xf3\xa5",
}
"""Statements that keystone gets wrong or refuses; what they are is checked by the decoders all the same."""

AMBIGUOUS = {"iret": "iretd or iretq", "pushf": "pushfd or pushfq", "popf": "popfd or popfq"}
"""Keystone silently takes the 16-bit form of these."""

SPURIOUS_16 = re.compile(r"(lgdt|lidt|sgdt|sidt)\s|(push|pop)\s+([cdes]s)$")
"""At 32 bits keystone puts an operand-size prefix before these; it is taken off."""

WIDE_ONLY = {"lgdt", "lidt", "sgdt", "sidt", "lcall", "ljmp", "retf", "iretd", "pushfd", "popfd"}
"""Mnemonics of which no backend or slot wants the 16-bit form."""

FAR = {"lcall": 0x9A, "ljmp": 0xEA}
SIZES = {".byte": 1, ".word": 2, ".long": 4, ".quad": 8}
IDENTIFIER = re.compile(r"(?<![\w.@$])[A-Za-z_.$][\w.$]*")
PRODUCT = re.compile(r"(?<![\w)*])(\d+)\s*\*\s*(\d+)(?![\w*])")
SUM = re.compile(r"(?<![\w)*])(-?\d+)((?:\s*[+-]\s*\d+)+)(?![\w*])")
RIP_NUMBER = re.compile(r"\[\s*rip\s*([+-]\s*\d|\])")
MAX_PASSES = 24


class AsmError(PvpatchError):
    """A statement cannot be assembled, or what came out is not what was asked for."""


@dataclass(frozen=True)
class Line:
    """One emitted statement: offset from the start of the code, its text (labels resolved), its bytes."""

    offset: int
    text: str
    code: bytes


@dataclass(frozen=True)
class Assembly:
    """Result of `assemble`: the code, the addresses of the labels, and what each byte came from."""

    address: int
    code: bytes
    labels: Mapping[str, int]
    lines: tuple[Line, ...]


@lru_cache(maxsize=2)
def _assembler(width: int) -> keystone.Ks:
    mode = keystone.KS_MODE_32 if width == 32 else keystone.KS_MODE_64
    return keystone.Ks(keystone.KS_ARCH_X86, mode)


@lru_cache(maxsize=2)
def _disassembler(width: int) -> capstone.Cs:
    mode = capstone.CS_MODE_32 if width == 32 else capstone.CS_MODE_64
    return capstone.Cs(capstone.CS_ARCH_X86, mode)


@lru_cache(maxsize=1)
def _formatter() -> iced_x86.Formatter:
    formatter = iced_x86.Formatter(iced_x86.FormatterSyntax.INTEL)
    formatter.hex_prefix = "0x"
    formatter.hex_suffix = ""
    formatter.rip_relative_addresses = True
    formatter.branch_leading_zeros = False
    formatter.show_branch_size = False
    formatter.memory_size_options = iced_x86.MemorySizeOptions.ALWAYS
    return formatter


def _statements(text: str) -> list[str]:
    lines = [part.strip() for raw in text.splitlines() for part in raw.split("#")[0].split(";")]
    return _expand_repeats([line for line in lines if line])


def _expand_repeats(lines: list[str]) -> list[str]:
    result: list[str] = []
    index = 0
    while index < len(lines):
        if not lines[index].startswith(".rept"):
            result.append(lines[index])
            index += 1
            continue
        try:
            end = lines.index(".endr", index)
        except ValueError:
            raise AsmError("a .rept has no .endr") from None
        for turn in range(int(lines[index].split()[1], 0)):
            result += [line.replace("\\+", str(turn)) for line in lines[index + 1 : end]]
        index = end + 1
    return result


def _resolve(text: str, symbols: Mapping[str, int]) -> str:
    """Put numbers for labels and fold sums of numbers, so that keystone and the check see one value."""

    def number(match: re.Match[str]) -> str:
        return str(symbols[match[0]]) if match[0] in symbols else match[0]

    def fold(match: re.Match[str]) -> str:
        terms = re.findall(r"[+-]?\d+", match[0].replace(" ", ""))
        return str(sum(int(term) for term in terms))

    head, _, tail = text.partition(" ")
    tail = re.sub(r"0x([0-9a-fA-F]+)", lambda match: str(int(match[0], 16)), tail)
    tail = PRODUCT.sub(lambda match: str(int(match[1]) * int(match[2])), IDENTIFIER.sub(number, tail))
    tail = SUM.sub(fold, tail)
    return f"{head} {tail.strip()}" if tail else head


def _data(text: str, directive: str) -> bytes:
    size = SIZES[directive]
    values = [int(item, 0) for item in text[len(directive) :].split(",")]
    return b"".join((value & ((1 << 8 * size) - 1)).to_bytes(size, "little") for value in values)


def _hexadecimal(number: re.Match[str]) -> str:
    """Keystone now and then reads a decimal number as a hexadecimal one; it cannot mistake this."""
    return hex(int(number[0]))


def _encode(text: str, width: int, address: int) -> bytes:
    head = text.split()[0]
    if head in AMBIGUOUS:
        raise AsmError(f"{text!r} does not say its operand size", f"write {AMBIGUOUS[head]}")
    if (width, text) in EXACT:
        return EXACT[width, text]
    if head in FAR and "," in text:
        if width != 32:
            raise AsmError(f"{text!r}: 64-bit code has no immediate far pointer")
        selector, offset = (int(item, 0) for item in text[len(head) :].split(","))
        return bytes([FAR[head]]) + offset.to_bytes(4, "little") + selector.to_bytes(2, "little")
    try:
        code, _ = _assembler(width).asm(DECIMAL.sub(_hexadecimal, text), address, as_bytes=True)
    except keystone.KsError as error:
        raise AsmError(f"cannot assemble {text!r} at {width} bits: {error}") from error
    if not code:
        raise AsmError(f"cannot assemble {text!r} at {width} bits: nothing came out")
    code = bytes(code)
    if width == 32 and code[0] == 0x66 and SPURIOUS_16.match(text):
        code = code[1:]
    return code


def _narrowed(statement: Statement, decoded: iced_x86.Instruction) -> bool:
    """A 16-bit operand that the text does not show: the decoders print it like the full one."""
    size = iced_x86.OpCodeInfo(decoded.code).operand_size
    return statement.mnemonic in WIDE_ONLY and size == 16


def _agrees(statement: Statement, text: str, width: int, tool: str) -> bool:
    try:
        return matches(statement, parse_statement(text), width, decoder=tool)
    except ValueError:
        return False


def _check(statement: Statement, code: bytes, width: int, address: int) -> None:
    """Both decoders must read `code` as exactly the one instruction that the source names."""
    decoder = iced_x86.Decoder(width, code, ip=address)
    decoded = decoder.decode()
    readings = {"iced-x86": (_formatter().format(decoded), decoded.len if decoded else 0)}
    for _, size, mnemonic, operands in _disassembler(width).disasm_lite(code, address):
        readings["capstone"] = (f"{mnemonic} {operands}".strip(), size)
        break
    for tool in ("iced-x86", "capstone"):
        text, size = readings.get(tool, ("nothing", 0))
        if size != len(code) or not _agrees(statement, text, width, tool) or _narrowed(statement, decoded):
            raise AsmError(
                f"{statement.text!r} at {width} bits became {code.hex(' ')}, which {tool} reads as {text!r}",
                "write the instruction in another form or as an exact statement",
            )


@lru_cache(maxsize=16384)
def _instruction(text: str, width: int, address: int) -> bytes:
    rip = re.search(r"\[rip\+?(-?\d+)\]", text.replace(" ", ""))
    if rip:
        length = len(_encode(text, width, address))
        text = re.sub(r"\[\s*rip[^\]]*\]", f"[rip+{int(rip[1]) - address - length}]", text).replace("+-", "-")
    code = _encode(text, width, address)
    try:
        statement = parse_statement(text)
    except ValueError as error:
        raise AsmError(f"cannot check {text!r}: {error}") from error
    _check(statement, code, width, address)
    return code


def _emit(text: str, width: int, address: int) -> bytes:
    head = text.split()[0]
    if head in SIZES:
        return _data(text, head)
    if head == ".align":
        return b"\x90" * (-address % int(text.split()[1], 0))
    if head.startswith("."):
        raise AsmError(f"unknown directive {text!r}")
    # Only branches and RIP-relative operands depend on the address: share the work of all others.
    relative = head[0] == "j" or head in ("call", "loop", "loope", "loopne", "xbegin") or "rip" in text
    return _instruction(text, width, address if relative else 0)


def assemble(text: str, width: int, address: int = 0, symbols: Mapping[str, int] | None = None) -> Assembly:
    """Machine code of `text` at `address`, `symbols` being the addresses of outside labels.

    Raises AsmError for anything that is not certainly what the source says.
    """
    if width not in (32, 64):
        raise AsmError(f"no code of {width} bits")
    items: list[str] = []
    names: dict[str, int] = {}
    for statement in _statements(text):
        label = re.fullmatch(r"([A-Za-z_.$][\w.$]*):\s*(.*)", statement)
        while label:
            if label[1] in names or REGISTER.fullmatch(label[1]):
                raise AsmError(f"label {label[1]!r} is defined twice or names a register")
            names[label[1]] = len(items)
            statement = label[2]
            label = re.fullmatch(r"([A-Za-z_.$][\w.$]*):\s*(.*)", statement)
        if RIP_NUMBER.search(statement):
            raise AsmError(f"{statement!r}: a number is no place", "write [rip+label]")
        if statement:
            items.append(statement)
    sizes = [0] * len(items)
    for attempt in range(MAX_PASSES):
        starts = [address]
        for size in sizes:
            starts.append(starts[-1] + size)
        known = {**(symbols or {}), **{name: starts[index] for name, index in names.items()}}
        texts = [_resolve(item, known) for item in items]
        pieces = []
        at = address
        for item in texts:
            pieces.append(_emit(item, width, at))
            at += len(pieces[-1])
        new = [len(piece) for piece in pieces]
        if new == sizes or not items:
            break
        sizes = new if attempt < MAX_PASSES // 2 else [max(pair) for pair in zip(new, sizes, strict=True)]
    else:
        raise AsmError("branch sizes do not settle")
    lines = tuple(
        Line(start - address, item, piece) for start, item, piece in zip(starts, texts, pieces, strict=False)
    )
    labels = {name: known[name] for name in names}
    return Assembly(address, b"".join(pieces), labels, lines)
