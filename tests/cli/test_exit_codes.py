"""Every exit code of docs/cli.md, each with its one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from runtime.memory.ram import MAX_MEMORY_MIB, MIN_MEMORY_MIB
from tests.cli.command import complaint, inside, process
from tests.image.builders import Load, elf, multiboot1_header

TRIPLE_FAULT = b"\x0f\x0b"  # ud2, with no IDT
ENDLESS = b"\xeb\xfe"  # jmp to itself
SILENT_END = b"\xfa\xf4"  # cli, hlt


def kernel(code: bytes) -> bytes:
    """A multiboot image whose first instructions are `code`."""
    return elf(32, (Load(0x100000, 0x100000, code + bytes(-len(code) % 4) + multiboot1_header()),))


@pytest.fixture
def small(tmp_path: Path) -> dict[str, Path]:
    """Small guests by name."""
    found = {}
    for name, code in (("crash", TRIPLE_FAULT), ("endless", ENDLESS), ("silent", SILENT_END)):
        found[name] = tmp_path / name
        found[name].write_bytes(kernel(code))
    return found


def test_0_the_guest_powered_off_or_the_text_came(native: Path) -> None:
    ended = inside("run", native)
    assert ended.code == 0 and ended.text.splitlines()[0] == "native-i386"
    assert ended.err.startswith("pvpatch: the guest powered off")
    text = inside("run", native, "--until", "PASS flags.direction")
    assert text.code == 0 and text.text.endswith("PASS flags.direction")


def test_0_the_real_command(native: Path) -> None:
    ended = process("run", native)
    assert ended.code == 0 and ended.text.splitlines()[-1].startswith("DONE")


def test_0_a_guest_that_halts_for_ever(small: dict[str, Path]) -> None:
    ended = inside("run", small["silent"])
    assert ended.code == 0 and "halted" in ended.err


def test_1_the_text_never_came(native: Path) -> None:
    ended = inside("run", native, "--until", "no guest says this")
    assert ended.code == 1
    assert "no guest says this" in ended.err and "never" in ended.err, "it says why the answer is no"


def test_1_a_byte_that_nothing_explains(native: Path, patched: Path, tmp_path: Path) -> None:
    assert inside("diff", native, patched).code == 0
    changed = bytearray(patched.read_bytes())
    changed[0x1800] ^= 0x55
    (tmp_path / "changed").write_bytes(changed)
    answer = inside("diff", native, tmp_path / "changed")
    assert answer.code == 1
    assert "UNEXPLAINED" in answer.text and "0x1800" in answer.text


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("nosuch",),
        ("run",),
        ("scan",),
        ("patch",),
        ("patch", "{image}"),
        ("revert", "{image}"),
        ("diff", "{image}"),
        ("scan", "{image}", "--nosuch"),
        ("scan", "{image}", "{image}"),
        ("run", "{image}", "--memory", "many"),
        ("run", "{image}", "--memory", str(MIN_MEMORY_MIB - 1)),
        ("run", "{image}", "--memory", str(MAX_MEMORY_MIB + 1)),
        ("run", "{image}", "--memory", "-5"),
        ("run", "{image}", "--max-time", "0"),
        ("run", "{image}", "--max-time", "-1"),
        ("run", "{image}", "--max-time", "nan"),
        ("run", "{image}", "--max-time", "inf"),
        ("run", "{image}", "--backend", "nosuch"),
        ("run", "{image}", "--protocol", "nosuch"),
        ("run", "{image}", "--protocol", "pvh"),
        ("run", "{image}", "--initrd", "/nosuch/file"),
        ("run", "{image}", "--module", "/nosuch/file and words"),
        ("run", "{image}", "--module", ""),
        ("run", "{image}", "--input", "/nosuch/file"),
        ("run", "{image}", "--stats", "-", "--trace", "-"),
        ("diff", "{image}", "{image}", "--json", "-", "--html", "-"),
        ("diff", "{image}", "{image}", "--run", "--backend", "nosuch"),
        ("diff", "{image}", "{image}", "--run", "--max-time", "inf"),
        ("abi",),
        ("abi", "nosuch"),
        ("guests",),
        ("guests", "fetch"),
        ("guests", "fetch", "nosuch"),
        ("guests", "path", "nosuch"),
    ],
    ids=" ".join,
)
def test_2_wrong_usage(words: tuple[str, ...], native: Path) -> None:
    ended = inside(*(word.replace("{image}", str(native)) for word in words))
    assert ended.code == 2, ended
    assert ended.out == b"" and ended.err.strip(), "what is wrong stands on standard error"


def test_2_a_backend_of_another_width() -> None:
    from tests.samples.images import image

    line = complaint(inside("run", image("native-x86_64"), "--backend", "lguest"))
    assert "lguest" in line and "32-bit" in line and "64-bit" in line


@pytest.mark.parametrize("command", ["scan", "patch", "revert", "run", "diff"])
def test_3_no_kernel_image(command: str, native: Path, tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("no kernel\n")
    words: list[str | Path] = [command, tmp_path / "notes"]
    if command in ("patch", "revert"):
        words += ["-o", tmp_path / "out"]
    elif command == "diff":
        words = ["diff", native, tmp_path / "notes"]
    ended = inside(*words)
    assert ended.code == 3
    assert str(tmp_path / "notes") in complaint(ended)
    assert not (tmp_path / "out").exists()


def test_3_already_patched_and_not_patched(native: Path, patched: Path, tmp_path: Path) -> None:
    again = inside("patch", patched, "-o", tmp_path / "out")
    assert again.code == 3 and "already patched" in complaint(again)
    never = inside("revert", native, "-o", tmp_path / "out")
    assert never.code == 3 and "patched" in complaint(never)
    plain = inside("diff", native, native)
    assert plain.code == 3 and "patched" in complaint(plain)
    assert not (tmp_path / "out").exists()


def test_4_a_crash_shows_vector_registers_code_and_place(small: dict[str, Path]) -> None:
    ended = inside("run", small["crash"])
    assert ended.code == 4
    for shown in ("vector 6 #UD", "rax", "rip", "cr0", "cs", "0x100000", "ud2", "0f0b"):
        assert shown in ended.err, ended.err


def test_4_the_report_names_the_nearest_symbol(tmp_path: Path) -> None:
    code = bytes(4) + TRIPLE_FAULT + bytes(10) + multiboot1_header()
    image = elf(32, (Load(0x100000, 0x100000, code),), entry=0x100004, symbols=(("begin", 0x100000, 16),))
    (tmp_path / "named").write_bytes(image)
    ended = inside("run", tmp_path / "named")
    assert ended.code == 4 and "begin+0x4" in ended.err, ended.err


def test_5_the_limit_of_guest_time(small: dict[str, Path]) -> None:
    ended = inside("run", small["endless"], "--max-time", "0.01")
    assert ended.code == 5 and "limit of guest time" in ended.err


def test_5_comes_before_the_text(small: dict[str, Path]) -> None:
    assert inside("run", small["endless"], "--max-time", "0.01", "--until", "x").code == 5
