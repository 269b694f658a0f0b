"""The native samples on QEMU, which is the reference that their transcripts come from."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from types import ModuleType

import pytest

from tests.samples.images import NAMES, SAMPLES, expected, image

QEMU = {
    "native-i386": "qemu-system-i386",
    "native-x86_64": "qemu-system-x86_64",
    "pc-x86_64": "qemu-system-x86_64",
}
FLAGS = (
    *("-accel", "tcg", "-m", "32", "-no-reboot", "-nic", "none"),
    *("-display", "none", "-vga", "none", "-monitor", "none", "-serial", "stdio"),
)


def _transcript_module() -> ModuleType:
    path = SAMPLES / "qemu_transcript.py"
    spec = importlib.util.spec_from_file_location("qemu_transcript", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", sorted(QEMU))
def test_qemu_gives_the_expected_transcript(name: str) -> None:
    program = QEMU[name]
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not installed")
    done = subprocess.run(
        [program, *FLAGS, "-kernel", str(image(name))],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    module = _transcript_module()
    assert module.corrected(done.stdout, module.known_errors()) == expected(name)


@pytest.mark.parametrize("name", NAMES)
def test_expected_transcript_has_no_failure(name: str) -> None:
    lines = expected(name).splitlines()
    passed = [line for line in lines if line.startswith("PASS ")]
    skipped = [line for line in lines if line.startswith("SKIP ")]
    assert len(set(passed)) == len(passed)
    assert lines[0] == name
    end = f"DONE passed={len(passed)} failed=0"
    assert lines[-1] == (f"{end} skipped={len(skipped)}" if skipped else end)
    assert len(lines) == len(passed) + len(skipped) + 2


def test_only_listed_errors_are_corrected() -> None:
    module = _transcript_module()
    error = next(iter(module.known_errors()))
    measured = f"PASS a\n{error}\nFAIL b: c is 0x1, not 0x2\nDONE passed=1 failed=2\n"
    corrected = module.corrected(measured, module.known_errors()).splitlines()
    assert corrected[1] == "PASS " + error.removeprefix("FAIL ").split(":")[0]
    assert corrected[2:] == ["FAIL b: c is 0x1, not 0x2", "DONE passed=2 failed=1"]
