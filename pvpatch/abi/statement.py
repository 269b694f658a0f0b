"""Instructions as text, made comparable: what a source line says against what a decoder reads.

One parser reads the source, iced-x86's text and capstone's text; `matches` compares the results with
the few differences in spelling that the three have. Anything else that differs is a difference.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

__all__ = ["REGISTER", "Operand", "Statement", "matches", "parse_statement"]

PREFIXES = {"rep", "repe", "repz", "repne", "repnz", "lock"}
SIZE_BITS = {"byte": 8, "word": 16, "dword": 32, "fword": 48, "qword": 64, "xmmword": 128, "oword": 128}
ALIASES = {
    "je": "jz", "jne": "jnz", "jc": "jb", "jnae": "jb", "jnc": "jae", "jnb": "jae", "jnbe": "ja",
    "jna": "jbe",
    "jnle": "jg", "jnl": "jge", "jng": "jle", "jnge": "jl", "jpe": "jp", "jpo": "jnp",
    "sete": "setz", "setne": "setnz", "setc": "setb", "setnc": "setae", "cmove": "cmovz", "cmovne": "cmovnz",
    "cmovc": "cmovb", "cmovnc": "cmovae", "sal": "shl", "retn": "ret", "int1": "icebp", "retfd": "retf",
    "movabs": "mov", "repz": "rep", "repe": "rep", "repnz": "repne",
    "pushal": "pushad", "popal": "popad", "loopz": "loope", "loopnz": "loopne", "lodsl": "lodsd",
}  # fmt: skip
READ_AS = {
    "iced-x86": {"sysretd": "sysret", "sysexitd": "sysexit"},
    "capstone": {"sysretd": "sysret", "sysexitd": "sysexit", "sysexitq": "sysexitq"},
}
NO_OPERANDS = re.compile(
    r"(ins|outs|movs|stos|lods|scas|cmps)[bwdq]|monitor|mwait|xgetbv|xsetbv|invlpga|vmrun|vmload|vmsave"
)
SIZE_WORD = re.compile(r"(byte|word|dword|fword|qword|xmmword|oword|tbyte|short|near|far)\b\s*(ptr\b)?\s*")
REGISTER = re.compile(
    r"[er]?[abcd]x|[abcd][lh]|[er]?(si|di|bp|sp)|(si|di|bp|sp)l|r([89]|1[0-5])[dwb]?|[cdefgs]s|[cdt]r\d+"
    r"|[er]?ip|st\d?|[xyz]?mm\d+|bnd\d|k\d"
)


@dataclass(frozen=True)
class Operand:
    """One operand: a register, a number, a far pointer (selector, offset) or a memory reference."""

    kind: str
    register: str = ""
    value: int = 0
    selector: int = 0
    segment: str = ""
    terms: tuple[tuple[str, int], ...] = ()
    size: int = 0


@dataclass(frozen=True)
class Statement:
    """One instruction as its text says: prefixes, mnemonic, operands."""

    text: str
    prefixes: tuple[str, ...]
    mnemonic: str
    operands: tuple[Operand, ...]


def _number(text: str) -> int:
    text = text.replace(" ", "").replace("+-", "-")
    sign = -1 if text.startswith("-") else 1
    text = text.lstrip("+-")
    if text.endswith("h"):
        return sign * int(text[:-1], 16)
    return sign * int(text, 0)


def _memory(text: str, size: int) -> Operand:
    segment, _, inside = text.partition("[")
    segment = segment.strip().rstrip(":").strip()
    if not inside.rstrip().endswith("]") or inside.count("]") != 1:
        raise ValueError(f"{text!r} is no memory operand")
    inside = inside.rstrip("] ")
    if ":" in inside:
        segment, _, inside = inside.partition(":")
    terms: list[tuple[str, int]] = []
    value = 0
    for sign, term in re.findall(r"([+-]?)\s*([^+-]+)", inside):
        name, _, scale = term.strip().partition("*")
        name = name.strip()
        if scale and not REGISTER.fullmatch(name):
            name, scale = scale.strip(), name
        if REGISTER.fullmatch(name):
            terms.append((name, int(scale) if scale else 1))
        else:
            value += _number(sign + name)
    return Operand("memory", value=value, segment=segment.strip(), terms=tuple(sorted(terms)), size=size)


def _operand(text: str) -> Operand:
    text = text.strip().lower()
    size = 0
    while words := SIZE_WORD.match(text):
        size = SIZE_BITS.get(words[1], size)
        text = text[words.end() :]
    text = text.removeprefix("ptr ").strip()
    if "[" in text:
        return _memory(text, size)
    if re.fullmatch(r"[cdefgs]s:.+", text):
        segment, _, address = text.partition(":")
        return Operand("memory", value=_number(address), segment=segment, size=size)
    if REGISTER.fullmatch(text):
        return Operand("register", register=text)
    if ":" in text:
        selector, _, offset = text.partition(":")
        return Operand("far", selector=_number(selector), value=_number(offset))
    return Operand("number", value=_number(text), size=size)


RESPELL = (
    (re.compile(r"^data64 ret far"), "retfq"),
    (re.compile(r"^ret far"), "retf"),
    (re.compile(r"^(call|jmp) far (0x[0-9a-f]+|\d+),\s*(0x[0-9a-f]+|\d+)$"), r"l\1 \3, \2"),
    (re.compile(r"^(call|jmp) far "), r"l\1 "),
    (re.compile(r"^(call|jmp) ptr "), r"l\1 "),
)
"""How iced-x86 (the first four) and capstone (the last) spell far transfers, and the house spelling."""


def _respell(text: str) -> str:
    for pattern, spelling in RESPELL:
        text = pattern.sub(spelling, text)
    return text


def parse_statement(text: str) -> Statement:
    """Parts of one instruction's text (any of the three spellings); ValueError if it is not understood."""
    words = _respell(text.strip().lower()).split(None, 1)
    prefixes: list[str] = []
    while len(words) == 2 and words[0] in PREFIXES:
        prefixes.append(ALIASES.get(words[0], words[0]))
        words = words[1].split(None, 1)
    mnemonic = words[0]
    rest = words[1] if len(words) == 2 else ""
    parts = [part for part in rest.split(",") if part.strip()]
    if mnemonic in ("lcall", "ljmp") and len(parts) == 2:
        operands: tuple[Operand, ...] = (Operand("far", selector=_number(parts[0]), value=_number(parts[1])),)
    elif NO_OPERANDS.fullmatch(mnemonic):
        operands = ()
    else:
        operands = tuple(_operand(part) for part in parts)
    return Statement(text, tuple(prefixes), ALIASES.get(mnemonic, mnemonic), operands)


def _register_bits(name: str, width: int) -> int:
    if name.startswith("r"):
        return {"d": 32, "w": 16, "b": 8}.get(name[-1], 64) if name[1].isdigit() else 64
    if name.startswith("e") and name != "es":
        return 32
    if re.fullmatch(r"[abcd][lh]|(si|di|bp|sp)l", name):
        return 8
    return 16 if re.fullmatch(r"[abcd]x|si|di|bp|sp", name) else width


def _family(name: str) -> str:
    """The register without its width, for operands of which only 16 bits are read whatever is written."""
    return re.sub(r"^[er]|[dw]$", "", name) if _register_bits(name, 0) else name


def _same_operand(asked: Operand, read: Operand, bits: int, width: int) -> bool:
    if asked.kind != read.kind:
        return False
    if asked.kind == "register":
        return asked.register == read.register
    if asked.kind == "far":
        return (asked.selector, asked.value) == (read.selector, read.value)
    if asked.kind == "number":
        return (asked.value - read.value) % (1 << bits) == 0
    if (asked.value - read.value) % (1 << width):
        return False
    implied = {"", "ds", "ss"} if width == 32 else {"", "ds", "ss", "es", "cs"}
    same_segment = asked.segment == read.segment or (not asked.segment and read.segment in implied)
    same_size = not asked.size or not read.size or asked.size == read.size
    return same_segment and same_size and asked.terms == read.terms


def _reads_selector(asked: Statement) -> bool:
    """Whether the last operand is read as 16 bits only, so that decoders name it by any of its widths."""
    if asked.mnemonic in ("lar", "lsl", "verr", "verw", "lldt", "ltr", "lmsw"):
        return True
    return asked.mnemonic == "mov" and re.fullmatch(r"[cdefgs]s", asked.operands[0].register) is not None


def matches(asked: Statement, read: Statement, width: int, decoder: str) -> bool:
    """Whether what `decoder` read is what the source asked for, spelling apart."""
    wanted = READ_AS.get(decoder, {}).get(asked.mnemonic, asked.mnemonic)
    if wanted != read.mnemonic or asked.prefixes != read.prefixes:
        return False
    if len(asked.operands) != len(read.operands):
        return False
    bits = width
    for operand in asked.operands:
        if operand.kind == "register":
            bits = _register_bits(operand.register, width)
            break
        if operand.kind == "memory" and operand.size:
            bits = min(operand.size, 64)
            break
    if asked.mnemonic in ("in", "out", "int"):
        bits = 8
    pairs = list(zip(asked.operands, read.operands, strict=True))
    if _reads_selector(asked) and pairs[-1][0].kind == pairs[-1][1].kind == "register":
        one, two = pairs.pop()
        if _family(one.register) != _family(two.register):
            return False
    if all(_same_operand(one, two, bits, width) for one, two in pairs):
        return True
    if asked.mnemonic in ("xchg", "test"):  # commutative: the decoders choose an order
        swapped = zip(asked.operands, reversed(read.operands), strict=True)
        return all(_same_operand(one, two, bits, width) for one, two in swapped)
    return False
