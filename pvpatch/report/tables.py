"""The look of every table on a terminal: a title, a rule under the heads, no cages around cells."""

from __future__ import annotations

from rich import box
from rich.table import Table

__all__ = ["WIDE", "table"]

WIDE = 110
"""Columns of a terminal from which on tables show what a narrow one leaves out."""


def table(
    *columns: str, title: str = "", numbers: tuple[str, ...] = (), whole: tuple[str, ...] = ()
) -> Table:
    """A table whose `numbers` stand at the right and whose `whole` columns are never broken."""
    made = Table(
        box=box.SIMPLE_HEAD,
        title=title or None,
        title_justify="left",
        title_style="bold",
        header_style="bold",
        pad_edge=False,
        show_edge=False,
    )
    for column in columns:
        made.add_column(
            column,
            justify="right" if column in numbers else "left",
            no_wrap=column in whole or column in numbers,
            overflow="fold",
        )
    return made
