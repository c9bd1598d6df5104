"""In CI a skipped test fails the run; elsewhere it does not."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
SKIPPED = "import pytest\n\ndef test_one():\n    pass\n\ndef test_two():\n    pytest.skip('no such thing here')\n"


def run_pytest(folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """pytest with this project's conftest as a plugin, over a folder outside the project."""
    inherited = {k: v for k, v in os.environ.items() if k != "CI" and not k.startswith("PYTEST")}
    env = inherited | {"PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent)])} | environment
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "conftest",
        "-p",
        "no:cacheprovider",
        "--rootdir",
        str(folder),
    ]
    return subprocess.run([*command, str(folder)], cwd=folder, env=env, text=True, capture_output=True, check=False)


@pytest.mark.parametrize(("environment", "code"), [({}, 0), ({"CI": "true"}, 1)])
def test_a_skip_fails_the_run_in_ci_only(tmp_path: Path, environment: dict[str, str], code: int) -> None:
    (tmp_path / "test_it.py").write_text(SKIPPED)
    done = run_pytest(tmp_path, **environment)
    assert done.returncode == code, done.stdout + done.stderr
    assert "1 passed, 1 skipped" in done.stdout
    assert ("SKIPPED IN CI" in done.stdout) == bool(code)


def test_a_run_without_skips_passes_in_ci(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text("def test_one():\n    pass\n")
    assert run_pytest(tmp_path, CI="true").returncode == 0
