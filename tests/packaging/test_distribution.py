"""The sdist that Beam's `--setup_file` makes, and what an installation from it has."""

from __future__ import annotations

import importlib.metadata
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from apache_beam.runners.portability.stager import Stager
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).parents[2]
PACKAGES = ("tokzip_core", "pipelines")
FILES = ("setup.py", "pyproject.toml", "MANIFEST.in", "LICENSE", "constraints.txt", "README.md")


def sources() -> set[str]:
    return {str(p.relative_to(ROOT)) for name in PACKAGES for p in (ROOT / name).rglob("*.py")}


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made as Beam makes it at submission, from a copy: the build leaves its traces beside setup.py."""
    tree, out = tmp_path_factory.mktemp("tree"), tmp_path_factory.mktemp("sdist")
    for name in FILES:
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, tree)
    for name in PACKAGES:
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    return Path(Stager._build_setup_package(str(tree / "setup.py"), str(out)))


@pytest.fixture(scope="module")
def installed(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which pip installed the sdist, without dependencies and without the network."""
    target = tmp_path_factory.mktemp("installed")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    command += ["--no-build-isolation", "--target", str(target), str(sdist)]
    done = subprocess.run(command, text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    return target


def test_sdist_carries_what_building_from_it_takes(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert names >= {name for name in FILES if (ROOT / name).exists()}
    assert names >= sources()
    assert not [name for name in names if name.startswith(("tests/", "out/", ".venv/"))]


def test_installation_has_every_module_and_the_typing_markers(installed: Path) -> None:
    found = {str(p.relative_to(installed)) for name in PACKAGES for p in (installed / name).rglob("*.py")}
    assert found == sources()
    assert all((installed / name / "py.typed").is_file() for name in PACKAGES)


def test_metadata(installed: Path) -> None:
    (dist,) = importlib.metadata.distributions(name="tokzip", path=[str(installed)])
    version = {}
    exec((ROOT / "tokzip_core/_version.py").read_text(), version)
    assert dist.version == version["__version__"]
    assert SpecifierSet(dist.metadata["Requires-Python"]) == SpecifierSet(">=3.11,<3.14")
    assert "Apache-2.0" in (dist.metadata.get("License-Expression"), dist.metadata.get("License"))
    assert [str(f) for f in dist.files or [] if f.name == "LICENSE"]
    if (ROOT / "README.md").exists():
        assert (dist.read_text("METADATA") or "").endswith((ROOT / "README.md").read_text())
    assert {"demo", "fast", "redis", "s3", "gcp", "bench", "dev"} <= set(dist.metadata.get_all("Provides-Extra"))
    scripts = {e.name: e.value for e in dist.entry_points if e.group == "console_scripts"}
    assert scripts == {"tokzip": "pipelines.cli:main"}


def test_the_console_script_is_installed_beside_this_python(tokzip) -> None:
    assert Path(sys.executable).with_name("tokzip").exists(), "install tokzip first: make install"
    assert "compress" in tokzip("--help").stdout
