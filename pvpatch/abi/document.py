"""The ABI as one versioned JSON document, and as rows for a table: what `pvpatch abi list` shows."""

from __future__ import annotations

from typing import Any

from pvpatch.abi.errors import UsageError
from pvpatch.abi.layout import CELL, HEADER, LOCATOR, ORIGIN, Structure, vcpu_page
from pvpatch.abi.mappings import MappingRow, load_mappings
from pvpatch.abi.spec import Argument, Call, Form, load_spec

__all__ = ["ROW_HEAD", "SCHEMA", "call_rows", "document"]

SCHEMA = "pvpatch/abi/1"
ROW_HEAD = ("number", "name", "group", "kind", "arguments", "results", "flags", "replaces")


def _argument(item: Argument) -> dict[str, Any]:
    row: dict[str, Any] = {"name": item.name, "register": item.reg, "bits": item.bits, "unit": item.unit}
    if item.pair:
        row["pair"] = item.pair
    return row


def _form(form: Form) -> dict[str, Any]:
    return {
        "instruction": form.insn,
        "next": form.next,
        "operands": list(form.ops),
        "widths": list(form.widths),
        "operand_size": list(form.opsize),
        "repeat": form.rep,
        "arguments": dict(form.args),
        "results": dict(form.results),
        "also": dict(form.also),
        "pops": form.pops,
        "pops_plus": form.pops_plus,
    }


def _call(call: Call) -> dict[str, Any]:
    return {
        "number": call.number,
        "name": call.name,
        "group": call.group,
        "kind": call.kind,
        "since": f"{call.since[0]}.{call.since[1]}",
        "why": call.why,
        "arguments": [_argument(item) for item in call.args],
        "results": [_argument(item) for item in call.results],
        "stack_words": call.stack,
        "stack_in": list(call.stack_in),
        "flags": call.flags,
        "faults": list(call.faults),
        "feature": call.feature,
        "widths": sorted(width for width, _ in call.bare),
        "replaces": [_form(form) for form in call.replaces],
    }


def _structure(structure: Structure) -> dict[str, Any]:
    fields = [
        {"name": f.name, "offset": f.offset, "size": f.size, "count": f.count, "meaning": f.why}
        for f in structure.fields
    ]
    return {"name": structure.name, "size": structure.size, "fields": fields}


def _row(row: MappingRow) -> dict[str, Any]:
    return {
        "number": row.number,
        "name": row.name,
        "calls": list(row.calls),
        "reason": row.reason,
        "note": row.note,
    }


def document() -> dict[str, Any]:
    """The whole specification as JSON-ready data; schema docs/schema/abi-1.json."""
    spec = load_spec()
    mappings = {
        mapping.interface: {table.name: [_row(row) for row in table.rows] for table in mapping.tables}
        for mapping in load_mappings()
    }
    return {
        "schema": SCHEMA,
        "version": f"{spec.major}.{spec.minor}",
        "page": {"size": spec.page_size, "header_size": spec.header_size, "slot_size": spec.slot_size},
        "features": [{"bit": f.bit, "name": f.name, "meaning": f.why} for f in spec.features],
        "errors": dict(spec.errors),
        "calls": [_call(call) for call in spec.calls],
        "kept": [
            {"instruction": k.insn, "widths": list(k.widths), "rest": k.rest, "reason": k.reason}
            for k in spec.kept
        ],
        "structures": [_structure(item) for item in (HEADER, LOCATOR, CELL, ORIGIN, vcpu_page())],
        "mappings": mappings,
    }


def _place(item: Argument) -> str:
    return f"{item.name}={item.pair + ':' if item.pair else ''}{item.reg}"


def call_rows(group: str = "") -> list[tuple[str, ...]]:
    """One row of text per call, under ROW_HEAD; UsageError if there is no such group."""
    spec = load_spec()
    names = [item.name for item in spec.groups]
    if group and group not in names:
        raise UsageError(f"no group is named {group!r}", f"there are {', '.join(names)}")
    return [
        (
            str(call.number),
            call.name,
            call.group,
            call.kind,
            " ".join(_place(item) for item in call.args) or "-",
            " ".join(_place(item) for item in call.results) or "-",
            call.flags,
            " ".join(dict.fromkeys(form.insn for form in call.replaces)) or "-",
        )
        for call in (spec.in_group(group) if group else spec.calls)
    ]
