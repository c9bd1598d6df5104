"""The one-line description of a cache."""

from __future__ import annotations

import pickle
from itertools import permutations
from pathlib import Path

import pytest
from cache_entries import keys, values
from redis_process import Server

from tokzip_core.cache import CacheSpecError, parse_cache_spec
from tokzip_core.cache.spec import LayerSpec


def test_layers_are_read_in_order(tmp_path: Path) -> None:
    spec = parse_cache_spec(f"memory:256MB, disk:{tmp_path}/a:b:1.5GiB,redis://me:pw@host:6379/0?ttl=60,s3://bucket/a")
    assert spec.layers == (
        LayerSpec("memory", 256_000_000),
        LayerSpec("disk", 3 << 29, f"{tmp_path}/a:b"),
        LayerSpec("redis", place="redis://me:pw@host:6379/0?ttl=60"),
        LayerSpec("folder", place="s3://bucket/a"),
    )
    assert pickle.loads(pickle.dumps(spec)) == spec


def test_none_is_no_layer() -> None:
    assert parse_cache_spec("none").layers == ()
    assert str(parse_cache_spec("none")) == "none"


def test_it_is_shown_without_passwords() -> None:
    spec = parse_cache_spec("memory:1MB,redis://me:secret@host:6379/1?password=secret,folder:sftp://u:secret@h/x")
    assert str(spec) == "memory:1MB,redis://host:6379/1,folder:sftp://h/x"
    assert str(parse_cache_spec("redis://me:p@ss@host:6379/1")) == "redis://host:6379/1"


def test_relative_paths_are_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    spec = parse_cache_spec("disk:here:1GB,folder:there")
    assert [layer.place for layer in spec.layers] == [str(tmp_path / "here"), str(tmp_path / "there")]


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
        "redis:host:6379",
        "redis://",
        "folder:",
        "s3://",
        "memory:1MB,",
        "memory:1MB,memory:2MB",
        "redis://a:1/0,redis://a:1/0",
        "none,memory:1MB",
        "/some/path",
    ],
)
def test_nonsense_is_refused_with_what_was_expected(text: str) -> None:
    with pytest.raises(CacheSpecError, match=r"expected|no size|at least|twice"):
        parse_cache_spec(text)


def test_an_opened_stack_keeps_its_names(tmp_path: Path) -> None:
    stack = parse_cache_spec(f"memory:1MB,disk:{tmp_path}/a:2MB,disk:{tmp_path}/b:2MB").open()
    assert stack.names == ["memory", "disk", "disk2"]
    stack.close()


def test_layers_stack_in_any_order(tmp_path: Path, redis_server: Server) -> None:
    kinds = ["memory:1MB", "disk:{}/d:4MB", redis_server.url, "folder:{}/f"]
    for i, order in enumerate(permutations(kinds)):
        redis_server.client.flushall()
        stack = parse_cache_spec(",".join(order).replace("{}", str(tmp_path / str(i)))).open()
        for depth, layer in enumerate(stack.layers):
            layer.put_many(keys(depth), values(depth))
        stack.put_many(keys(10), values(10))
        got, hits = stack.lookup(keys(10, 3, 99, 0, 2, 1))
        assert got.to_pylist() == [None if n == 99 else values(n)[0].as_py() for n in (10, 3, 99, 0, 2, 1)]
        assert list(hits.values()) == [2, 1, 1, 1]
        assert stack.lookup(keys(0, 1, 2, 3))[1] == dict(zip(stack.names, (4, 0, 0, 0), strict=True)), "copied up"
        assert stack.events() == {}
        stack.close()


def test_a_layer_that_the_system_keeps_from_being_opened_is_gone_and_not_fatal(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("no folder can be here")
    cache = parse_cache_spec(f"memory:1MB,disk:{tmp_path / 'file' / 'c'}:10MB").open()
    assert "the job goes on without it" in caplog.text
    assert cache.names == ["memory", "disk"]
    cache.put_many(keys(1), values(1))
    assert cache.get_many(keys(1)).equals(values(1))
    assert cache.layers[1].counters["failed"] == 1
    cache.close()
