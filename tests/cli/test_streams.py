"""Where a machine reads there is one versioned document that its schema accepts, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from rewriter.image import open_image
from rewriter.manifest import read_manifest
from tests.cli.command import SOURCES, inside, process
from tests.samples.images import image

SCHEMAS = SOURCES / "docs" / "schema"
NAMES = ("abi", "backends", "diff", "manifest", "patch", "scan", "stats", "trace")


def schema(name: str) -> dict[str, Any]:
    """The schema of one kind of document."""
    found = json.loads((SCHEMAS / f"{name}-1.json").read_text(encoding="utf-8"))
    assert isinstance(found, dict)
    return found


def check(name: str, document: object) -> None:
    """Say every place where a document breaks its schema."""
    errors = [
        f"{error.json_path}: {error.message[:300]}"
        for error in Draft202012Validator(schema(name)).iter_errors(document)
    ]
    assert not errors, "\n".join(errors[:10])


def test_there_is_a_schema_for_every_document_and_none_besides() -> None:
    assert {path.name for path in SCHEMAS.iterdir()} == {f"{name}-1.json" for name in NAMES}


@pytest.mark.parametrize("name", NAMES)
def test_a_schema_is_one_and_names_its_version(name: str) -> None:
    found = schema(name)
    Draft202012Validator.check_schema(found)
    assert found["$id"] == f"pvpatch/{name}/1"
    assert f'"pvpatch/{name}/1"' in json.dumps(found["oneOf"] if name == "trace" else found["properties"])


@pytest.mark.parametrize("name", NAMES)
def test_the_schemas_are_strict(name: str) -> None:
    """Every object says whether it may hold more than it names."""

    def walk(part: object, where: str) -> None:
        if isinstance(part, dict):
            if "properties" in part and part.get("type") == "object":
                assert "additionalProperties" in part, f"{name} {where}"
            for key, value in part.items():
                walk(value, f"{where}.{key}")
        elif isinstance(part, list):
            for index, value in enumerate(part):
                walk(value, f"{where}[{index}]")

    walk(schema(name), "$")


DOCUMENTS = {
    "scan": ("scan", "{native}", "--json", "-"),
    "patch": ("patch", "{native}", "-o", "/dev/null", "--json", "-"),
    "diff": ("diff", "{native}", "{patched}", "--json", "-"),
    "stats": ("run", "{native}", "--stats", "-"),
    "abi": ("abi", "list", "--json", "-"),
    "backends": ("backends", "--json", "-"),
}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_the_stream_holds_the_document_alone(name: str, native: Path, patched: Path) -> None:
    words = [word.format(native=native, patched=patched) for word in DOCUMENTS[name]]
    ended = inside(*words)
    assert ended.code == 0, ended.err
    document = json.loads(ended.text)
    assert ended.text.startswith("{") and ended.text.endswith("}\n")
    check(name, document)
    again = json.loads(inside(*words).text)
    for each in (document, again):
        each.pop("host_seconds", None)
    assert document == again, "the same question has the same answer"


@pytest.mark.parametrize("name", DOCUMENTS)
def test_a_file_gets_what_the_stream_gets(name: str, native: Path, patched: Path, tmp_path: Path) -> None:
    words = [word.format(native=native, patched=patched) for word in DOCUMENTS[name]]
    stream = json.loads(inside(*words).text)
    ended = inside(*words[:-1], tmp_path / "document")
    assert ended.out, "people still get theirs"
    document = json.loads((tmp_path / "document").read_text(encoding="utf-8"))
    for each in (stream, document):
        each.pop("host_seconds", None)
    assert document == stream


@pytest.mark.parametrize(
    ("name", "backend"),
    [("native-i386", "bare"), ("native-x86_64", "kvm"), ("kvm-x86_64", "kvm"), ("lguest-i386", "lguest")],
)
def test_every_line_of_a_trace(name: str, backend: str) -> None:
    ended = inside("run", image(name), "--backend", backend, "--trace", "-")
    assert ended.code == 0
    lines = [json.loads(line) for line in ended.text.splitlines()]
    assert lines[0] == {"schema": "pvpatch/trace/1"}
    validator = Draft202012Validator(schema("trace"))
    for line in lines[:: max(1, len(lines) // 400)]:
        assert validator.is_valid(line), line
    times = [line["ns"] for line in lines[1:]]
    assert times and times == sorted(times)
    assert "native-i386" not in ended.text, "the console went to standard error"
    assert ended.err.splitlines()[0] == name


@pytest.mark.parametrize(
    ("name", "backend"), [("native-x86_64", "bare"), ("kvm-x86_64", "kvm"), ("lguest-i386", "lguest")]
)
def test_statistics_of_every_backend(name: str, backend: str, tmp_path: Path) -> None:
    ended = inside("run", image(name), "--backend", backend, "--stats", tmp_path / "stats")
    document = json.loads((tmp_path / "stats").read_text(encoding="utf-8"))
    check("stats", document)
    assert document["exit_code"] == ended.code and document["backend"] == backend
    assert document["missed"] == sum(document["missed_by_instruction"].values())


def test_statistics_of_a_patched_guest_split_its_calls(patched: Path) -> None:
    document = json.loads(inside("run", patched, "--stats", "-").text)
    check("stats", document)
    assert document["patched"] is True
    calls = document["calls"]
    assert calls["irq_disable"]["in_guest"] > 0
    assert document["sites_executed"] == sum(sum(call.values()) for call in calls.values())


def test_a_transcript_is_what_the_guest_sent(native: Path, tmp_path: Path) -> None:
    ended = inside("run", native, "--transcript", tmp_path / "transcript")
    assert (tmp_path / "transcript").read_bytes() == ended.out
    stream = inside("run", native, "--transcript", "-")
    assert stream.out == ended.out and stream.err.startswith("native-i386")


def test_a_patched_file_can_go_to_the_stream(native: Path, patched: Path) -> None:
    ended = inside("patch", native, "-o", "-")
    assert ended.code == 0 and ended.out == patched.read_bytes()
    back = inside("revert", patched, "-o", "-")
    assert back.code == 0 and back.out == native.read_bytes()


def test_the_record_in_a_patched_image(patched: Path) -> None:
    check("manifest", json.loads(read_manifest(open_image(patched).payload).to_json()))


def test_diff_with_runs(native: Path, patched: Path) -> None:
    ended = inside("diff", native, patched, "--run", "--json", "-", "--until", "PASS tight.flags_alive")
    document = json.loads(ended.text)
    check("diff", document)
    assert ended.code == 0, document["run"]["differences"]
    assert document["run"]["equal"] and "sites_executed" in document["run"]["counters"]


def test_a_page_in_one_piece(native: Path, patched: Path) -> None:
    page = inside("diff", native, patched, "--html", "-").text
    assert page.lstrip().startswith("<!") and page.rstrip().endswith("</html>")
    assert "http" not in page.replace("http-equiv", ""), "nothing is fetched from elsewhere"


@pytest.mark.parametrize(
    "words", [("scan", "{native}"), ("patch", "{native}", "-o", "{out}")], ids=["scan", "patch"]
)
def test_the_pipe_of_a_real_process(words: tuple[str, ...], native: Path, tmp_path: Path) -> None:
    """Bytes of no colour, no box, no progress: a pipe is for other programs."""
    ended = process(*(word.format(native=native, out=tmp_path / "out") for word in words))
    assert ended.code == 0 and ended.err == ""
    assert b"\x1b" not in ended.out
    assert not any(box in ended.text for box in "│┃━─╭")
