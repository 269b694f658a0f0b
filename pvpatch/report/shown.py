"""Text that others wrote, made fit for a person's screen.

Names of sections, symbols and files, the strings of a manifest and what a guest prints may hold anything:
escape sequences that rewrite the terminal, controls that turn the order of the letters round, line ends that
forge a line. Whatever reports for people quote goes through `shown`, where it enters the report.
"""

from __future__ import annotations

import unicodedata
from typing import Any

__all__ = ["shown", "shown_document"]

_HIDDEN = ("Cc", "Cf", "Cs", "Zl", "Zp")
"""Unicode categories (UAX 44): controls, formats (bidirectional controls are some), lone surrogates (file
names that are no UTF-8), line and paragraph separators."""


def _escape(character: str) -> str:
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def shown(text: object) -> str:
    """`text` as one line without effects: each character that a terminal obeys or hides is an escape."""
    line = str(text)
    if line.isascii() and line.isprintable():
        return line
    return "".join(_escape(one) if unicodedata.category(one) in _HIDDEN else one for one in line)


def shown_document(value: Any) -> Any:
    """A document of a report with every string of it, names of fields included, as `shown`."""
    if isinstance(value, str):
        return shown(value)
    if isinstance(value, dict):
        return {shown(name): shown_document(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [shown_document(item) for item in value]
    return value
