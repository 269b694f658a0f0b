"""`pvpatch run` as a person runs it: exit codes, files complete or absent, Ctrl-C, one line per error."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pvpatch.abi.asm import assemble

RUN = [sys.executable, "-m", "pvpatch", "run"]
BASE = 0x100000


def kernel(path: Path, text: str) -> Path:
    """A multiboot ELF32 kernel with one segment: header, multiboot header, code."""
    header_size = 0x60
    code = assemble(text, 32, BASE + header_size).code
    multiboot = b"".join(value.to_bytes(4, "little") for value in (0x1BADB002, 0, -0x1BADB002 & 0xFFFFFFFF))
    total = header_size + len(code)
    elf = bytearray(b"\x7fELF\x01\x01\x01" + bytes(9))
    for value, size in (
        (2, 2), (3, 2), (1, 4), (BASE + header_size, 4), (52, 4), (0, 4), (0, 4), (52, 2), (32, 2), (1, 2),
        (40, 2), (0, 2), (0, 2),
        (1, 4), (0, 4), (BASE, 4), (BASE, 4), (total, 4), (total, 4), (7, 4), (4096, 4),
    ):  # fmt: skip
        elf += value.to_bytes(size, "little")
    elf += multiboot
    path.write_bytes(bytes(elf.ljust(header_size, b"\0")) + code)
    return path


def run(*arguments: str | Path, timeout: float = 60) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*RUN, *map(str, arguments)], capture_output=True, text=True, timeout=timeout, check=False
    )


PRINT_OK = "mov edx, 0x3f8; mov al, 79; out dx, al; mov al, 75; out dx, al; mov al, 10; out dx, al;"
EXIT_0 = "xor eax, eax; out 0xf4, al; hlt"


def test_console_on_stdout_and_nothing_else_there(tmp_path: Path) -> None:
    done = run(kernel(tmp_path / "k", PRINT_OK + EXIT_0))
    assert (done.returncode, done.stdout) == (0, "OK\n")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("code", "arguments", "expected"),
    [
        (EXIT_0, (), 0),
        ("mov al, 3; out 0xf4, al; hlt", (), 1),
        ("cli; hlt", (), 0),
        (PRINT_OK + "cli; hlt", ("--until", "never"), 1),
        (PRINT_OK + "here: jmp here", ("--until", "OK"), 0),
        ("ud2", (), 4),
        ("here: jmp here", ("--max-time", "0.01"), 5),
        (EXIT_0, ("--backend", "nonesuch"), 2),
        (EXIT_0, ("--memory", "1"), 2),
        (EXIT_0, ("--memory", "99999"), 2),
        (EXIT_0, ("--max-time", "-1"), 2),
        (EXIT_0, ("--initrd", "/nonexistent/initrd"), 2),
        (EXIT_0, ("--protocol", "linux64"), 2),
    ],
)
def test_exit_codes(tmp_path: Path, code: str, arguments: tuple[str, ...], expected: int) -> None:
    done = run(kernel(tmp_path / "k", code), *arguments)
    assert done.returncode == expected, done.stderr
    assert "Traceback" not in done.stderr


def test_a_crash_shows_vector_registers_and_code(tmp_path: Path) -> None:
    done = run(kernel(tmp_path / "k", "mov eax, 0x12345678; ud2"))
    assert done.returncode == 4
    for part in ("#UD", "12345678", "ud2", "triple fault"):
        assert part in done.stderr


def test_not_a_kernel_and_no_file(tmp_path: Path) -> None:
    (tmp_path / "junk").write_bytes(b"junk" * 1000)
    for path in (tmp_path / "junk", tmp_path / "absent"):
        done = run(path)
        assert done.returncode in (2, 3)
        assert done.stderr.count("\n") == 1


def test_stats_on_stdout_moves_the_console_away(tmp_path: Path) -> None:
    done = run(kernel(tmp_path / "k", PRINT_OK + EXIT_0), "--stats", "-")
    assert json.loads(done.stdout)["schema"] == "pvpatch/stats/1"
    assert "OK\n" in done.stderr


def test_files_are_complete(tmp_path: Path) -> None:
    image = kernel(tmp_path / "k", PRINT_OK + EXIT_0)
    names = {name: tmp_path / name for name in ("transcript", "stats", "trace")}
    arguments = [part for name, path in names.items() for part in (f"--{name}", str(path))]
    assert run(image, *arguments).returncode == 0
    assert names["transcript"].read_text() == "OK\n"
    assert json.loads(names["stats"].read_text())["outcome"] == "exited"
    lines = [json.loads(line) for line in names["trace"].read_text().splitlines()]
    assert [line["value"] for line in lines[1:4]] == [79, 75, 10]
    assert not list(tmp_path.glob("*.part"))


def test_a_place_that_cannot_be_written_is_one_line_and_no_run(tmp_path: Path) -> None:
    done = run(kernel(tmp_path / "k", PRINT_OK + EXIT_0), "--stats", tmp_path / "no" / "such" / "dir")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    done = run(kernel(tmp_path / "k", PRINT_OK + EXIT_0), "--stats", tmp_path)
    assert done.returncode == 2


def test_a_failed_run_leaves_no_partial_file(tmp_path: Path) -> None:
    done = run(kernel(tmp_path / "k", EXIT_0), "--stats", tmp_path / "s", "--memory", "1")
    assert done.returncode == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["k"]


def test_ctrl_c_ends_cleanly(tmp_path: Path) -> None:
    image = kernel(tmp_path / "k", PRINT_OK + "cli; here: jmp here")
    process = subprocess.Popen(
        [*RUN, str(image), "--stats", str(tmp_path / "s")], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"OK\n"
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 130
    assert b"Traceback" not in errors
    assert json.loads((tmp_path / "s").read_text())["outcome"] == "interrupted"


def test_a_closed_pipe_is_no_traceback(tmp_path: Path) -> None:
    image = kernel(tmp_path / "k", "mov edx, 0x3f8; mov al, 10; here: out dx, al; jmp here")
    done = subprocess.run(
        f"{sys.executable} -m pvpatch run {image} --max-time 2 | head -1", shell=True,
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert "Traceback" not in done.stderr
