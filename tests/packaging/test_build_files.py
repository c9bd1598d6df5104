"""Makefile, Dockerfile, .ci/run: what they name exists, versions agree, a second `make` installs nothing."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCKERFILE = re.sub(r"\\\n", " ", (ROOT / "Dockerfile").read_text())
BEAM = re.search(r"^apache-beam==(.+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)[1]

INSTALLS = "-m pip "


def instructions(name: str) -> list[list[str]]:
    return [shlex.split(arguments) for arguments in re.findall(rf"^{name} (.+)$", DOCKERFILE, re.MULTILINE)]


def make(folder: Path, *arguments: str) -> str:
    """What `make` would do, without the settings of the `make` that may be running this test."""
    environment = {k: v for k, v in os.environ.items() if k not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")}
    command = ["make", "--dry-run", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, text=True, capture_output=True, check=True).stdout


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout as `make` sees it, with nothing installed."""
    for name in ("Makefile", "setup.py", "constraints.txt"):
        shutil.copyfile(ROOT / name, tmp_path / name)
        os.utime(tmp_path / name, (1, 1))
    return tmp_path


@pytest.mark.parametrize("target", ["run", "test"])
def test_each_target_installs_first_and_only_once(checkout: Path, target: str) -> None:
    assert INSTALLS in make(checkout, target)
    (checkout / ".venv").mkdir()
    (checkout / ".venv/.installed").touch()
    again = make(checkout, target)
    assert INSTALLS not in again
    assert "venv .venv" not in again
    assert "python -m" in again


@pytest.mark.parametrize("changed", ["setup.py", "constraints.txt"])
def test_a_changed_requirement_installs_again(checkout: Path, changed: str) -> None:
    (checkout / ".venv").mkdir()
    (checkout / ".venv/.installed").touch()
    os.utime(checkout / ".venv/.installed", (2, 2))
    assert INSTALLS not in make(checkout, "test")
    (checkout / changed).touch()
    assert INSTALLS in make(checkout, "test")


def test_prism_is_built_at_the_pinned_version(checkout: Path) -> None:
    assert f"cmd/prism@v{BEAM}" in make(checkout, "prism")


def test_the_image_is_beams_of_the_pinned_version() -> None:
    assert instructions("FROM") == [[f"apache/beam_python3.11_sdk:{BEAM}"]]
    assert not instructions("ENTRYPOINT"), "Beam's boot program must stay the entry point"


def test_the_image_copies_what_is_there_and_what_is_sent() -> None:
    sent = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = {source for sources in instructions("COPY") for source in sources[:-1]}
    assert copied == sent
    assert not [source for source in copied if not (ROOT / source).exists()]


def test_the_image_installs_what_is_pinned() -> None:
    (install,) = [words for words in instructions("RUN") if words[:2] == ["pip", "install"]]
    assert install[install.index("--constraint") + 1] == "constraints.txt"
    (extras,) = [word[2:-1].split(",") for word in install if word.startswith(".[")]
    declared = re.findall(r'^    "(\w+)": \[', (ROOT / "setup.py").read_text(), re.MULTILINE)
    assert set(extras) <= set(declared)


@pytest.mark.slow
def test_the_image_compiles_the_kernels_once_for_all_workers(tmp_path: Path) -> None:
    """The image's last program, run twice with its settings: the second run finds the first one's kernels."""
    ((_, _, _, *program),) = [words for words in instructions("RUN") if "python" in words]
    settings = dict(word.split("=", 1) for word in instructions("ENV")[0]) | {"NUMBA_CACHE_DIR": str(tmp_path)}
    run = [sys.executable, *program[1 : program.index("&&")]]
    compiled = []
    for _ in range(2):
        subprocess.run(run, cwd=ROOT, env=os.environ | settings, check=True)
        compiled.append({path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.nb[ci]")})
    assert compiled[0]
    assert compiled[1] == compiled[0]


def test_ci_is_a_program_that_runs_all_tests(checkout: Path) -> None:
    script = ROOT / ".ci/run"
    assert os.access(script, os.X_OK)
    subprocess.run(["bash", "-n", str(script)], check=True)
    assert script.read_text().splitlines()[-1] == "make test-all"
    steps = make(checkout, "test-all")
    assert "cmd/prism@" in steps
    assert "python -m pytest" in steps
