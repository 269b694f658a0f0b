"""The committed images are what their sources give."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile

from tests.samples.images import NAMES, SAMPLES, image


def _output(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout


def _toolchain() -> str:
    gcc = _output("gcc", "-dumpfullversion").strip()
    return f"gcc {gcc}\n{_output('ld', '--version').splitlines()[0]}\n"


@pytest.fixture(scope="module")
def rebuilt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All samples, built from their sources into another folder."""
    for tool in ("make", "gcc", "ld"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed")
    out = tmp_path_factory.mktemp("samples")
    done = subprocess.run(
        ["make", "-C", str(SAMPLES), f"OUT={out}"], capture_output=True, text=True, timeout=300, check=False
    )
    if "cannot find" in done.stderr and "-m32" in done.stdout:
        pytest.skip("this gcc cannot build 32-bit code (gcc-multilib)")
    assert done.returncode == 0, done.stdout + done.stderr
    return out


@pytest.mark.parametrize("name", NAMES)
def test_rebuilding_gives_the_same_bytes(name: str, rebuilt: Path) -> None:
    recorded = (SAMPLES / "TOOLCHAIN").read_text(encoding="ascii")
    if _toolchain() != recorded:
        pytest.skip(f"built with another compiler or linker: recorded are {recorded.splitlines()}")
    assert image(name, rebuilt).read_bytes() == image(name).read_bytes()


@pytest.mark.parametrize("name", NAMES)
def test_image_names_no_file_and_no_build(name: str) -> None:
    content = image(name).read_bytes()
    for trace in (b"/tmp", b"/home", b"/work", b"GCC:", b".gnu.build"):
        assert trace not in content


@pytest.mark.parametrize("name", NAMES)
def test_image_is_a_small_kernel(name: str) -> None:
    assert image(name).stat().st_size < 128 * 1024
    with image(name).open("rb") as stream:
        elf = ELFFile(stream)
        loads = list(elf.iter_segments("PT_LOAD"))
        assert min(segment["p_paddr"] for segment in loads) == 0x100000
        assert max(segment["p_paddr"] + segment["p_memsz"] for segment in loads) < 4 << 20


@pytest.mark.parametrize("name", NAMES)
def test_folder_explains_itself(name: str) -> None:
    readme = (SAMPLES / name / "README.md").read_text(encoding="utf-8")
    for source in (SAMPLES / name).glob("*.S"):
        assert source.name in readme or source.name == "boot.S"
    assert (SAMPLES / name / "expected.txt").read_text(encoding="ascii").startswith(f"{name}\n")
