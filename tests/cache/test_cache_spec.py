"""The one-line description of a cache."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from tokzip_core.cache import CacheSpecError, parse_cache_spec
from tokzip_core.cache.spec import LayerSpec


def test_layers_are_read_in_order(tmp_path: Path) -> None:
    spec = parse_cache_spec(f"memory:256MB, disk:{tmp_path}/a:b:1.5GiB")
    assert spec.layers == (
        LayerSpec("memory", 256_000_000),
        LayerSpec("disk", 3 << 29, f"{tmp_path}/a:b"),
    )
    assert pickle.loads(pickle.dumps(spec)) == spec


def test_none_is_no_layer() -> None:
    assert parse_cache_spec("none").layers == ()


def test_a_relative_path_is_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert parse_cache_spec("disk:here:1GB").layers[0].path == str(tmp_path / "here")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "memory",
        "memory:",
        "memory:12",
        "memory:0MB",
        "memory:-1MB",
        "memory:1XB",
        "disk:1GB",
        "disk::1GB",
        "disk:here:",
        "disk:here:10KB",
        "redis://host:1GB",
        "memory:1MB,",
        "memory:1MB,memory:2MB",
        "none,memory:1MB",
    ],
)
def test_nonsense_is_refused_with_what_was_expected(text: str) -> None:
    with pytest.raises(CacheSpecError, match=r"expected|no size|at least|twice"):
        parse_cache_spec(text)


def test_an_opened_stack_keeps_its_names(tmp_path: Path) -> None:
    stack = parse_cache_spec(f"memory:1MB,disk:{tmp_path}/a:2MB,disk:{tmp_path}/b:2MB").open()
    assert stack.names == ["memory", "disk", "disk2"]
    stack.close()
