"""What the packages import is declared, what is declared is pinned, and the core stays plain."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
ROOMS = ("tokzip_core", "pipelines")
MODULES = sorted(p for room in ROOMS for p in (ROOT / room).rglob("*.py"))


@pytest.fixture(scope="module")
def declared() -> dict[str, list[Requirement]]:
    """What setup.py passes to setuptools: requirements by extra, "" for those of every installation."""
    with mock.patch("setuptools.setup") as setup:
        exec(compile((ROOT / "setup.py").read_text(), "setup.py", "exec"), {"__file__": str(ROOT / "setup.py")})
    arguments = setup.call_args.kwargs
    groups = {"": arguments["install_requires"], **arguments["extras_require"]}
    return {extra: [Requirement(line) for line in lines] for extra, lines in groups.items()}


@pytest.fixture(scope="module")
def pins() -> dict[str, str]:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    return dict(re.fullmatch(r"([a-z0-9-]+)==(\S+)", line).groups() for line in lines)


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """The top-level packages a module imports, each with whether importing the module imports it."""
    tree = ast.parse(path.read_text())
    inner = {id(n) for f in ast.walk(tree) if isinstance(f, ast.FunctionDef) for n in ast.walk(f)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name.partition(".")[0], id(node) not in inner) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield str(node.module).partition(".")[0], id(node) not in inner


def test_every_import_is_declared(declared: dict[str, list[Requirement]]) -> None:
    providers = importlib.metadata.packages_distributions()
    always = {canonicalize_name(r.name) for r in declared[""]}
    optional = {canonicalize_name(r.name) for group in declared.values() for r in group}
    missing = [
        f"{path.relative_to(ROOT)}: {name}"
        for path in MODULES
        for name, at_import in imports(path)
        if name not in sys.stdlib_module_names
        and name not in ROOMS
        and not {canonicalize_name(d) for d in providers.get(name, [name])} & (always if at_import else optional)
    ]
    assert not missing


def test_the_core_imports_neither_beam_nor_torch_nor_pipelines() -> None:
    forbidden = {"apache_beam", "torch", "transformers", "pipelines"}
    core = [path for path in MODULES if path.is_relative_to(ROOT / "tokzip_core")]
    found = {f"{path.relative_to(ROOT)}: {n}" for path in core for n, _ in imports(path) if n in forbidden}
    assert core
    assert not found


def test_everything_declared_is_pinned_within_its_bounds(
    declared: dict[str, list[Requirement]], pins: dict[str, str]
) -> None:
    for requirement in (r for group in declared.values() for r in group):
        pin = pins[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(pin), f"{requirement} against the pin {pin}"


def test_what_is_installed_is_what_is_pinned(declared: dict[str, list[Requirement]], pins: dict[str, str]) -> None:
    """The figures and results of this run are those of the pinned versions."""
    for requirement in (r for extra in ("", "demo", "fast", "dev") for r in declared[extra]):
        installed = importlib.metadata.version(requirement.name)
        assert installed.partition("+")[0] == pins[canonicalize_name(requirement.name)], requirement.name
