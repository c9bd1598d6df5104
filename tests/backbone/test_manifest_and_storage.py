"""The manifest, and files published whole or not at all, on disks and in stores."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from pipelines import storage
from pipelines.manifest import DatasetMismatchError, Entry, Manifest
from pipelines.storage import InputError

SETTINGS = {"stage": "compress", "tokenizer": "t1", "carry": ""}


def entry(name: str = "x/a.parquet") -> Entry:
    return Entry(name, {"url": "/in/a.parquet"}, {}, {"path": name}, None, {"rows_in": 1}, {})


@pytest.fixture(params=["disk", "memory"])
def home(request: pytest.FixtureRequest, tmp_path: Path) -> Manifest:
    if request.param == "disk":
        return Manifest(str(tmp_path / "out"))
    fsspec.filesystem("memory").store.clear()
    return Manifest(storage.absolute("memory://bucket/out"))


def test_entries_come_back_by_name(home: Manifest) -> None:
    assert home.entries() == []
    assert home.names() == []
    assert home.get("x/a.parquet") is None
    for name in ("x/b.parquet", "x/a.parquet"):
        home.commit(entry(name))
    assert home.names() == ["x/a.parquet", "x/b.parquet"]
    assert home.entries() == [entry("x/a.parquet"), entry("x/b.parquet")]
    assert home.get("x/a.parquet") == entry("x/a.parquet")
    home.remove(entry("x/a.parquet"))
    assert home.names() == ["x/b.parquet"]


FOREIGN = [b"", b"{", b"[]", b"null", b'"x"', b"{}", b'{"name": 1, "other": 2}', b"\xff\xff", b"[" * 10]


@pytest.mark.parametrize("data", FOREIGN)
def test_a_foreign_json_among_the_entries_is_an_error_that_names_it(tmp_path: Path, data: bytes) -> None:
    home = Manifest(str(tmp_path))
    home.commit(entry())
    path = tmp_path / "_tokzip" / "manifest" / "other.json"
    path.write_bytes(data)
    for read in (home.entries, lambda: home.get("other")):
        with pytest.raises(InputError, match=str(path)):
            read()


def test_an_entry_of_another_format_is_refused(tmp_path: Path) -> None:
    home = Manifest(str(tmp_path))
    home.commit(entry())
    path = tmp_path / "_tokzip" / "manifest" / "x" / "a.parquet.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 2}))
    with pytest.raises(InputError, match="manifest format 2; this version of tokzip reads 1"):
        home.entries()


@pytest.mark.parametrize("data", [b"", b"[]", b"{"])
def test_a_damaged_dataset_json_is_an_error_that_names_it(tmp_path: Path, data: bytes) -> None:
    home = Manifest(str(tmp_path))
    home.claim(SETTINGS, [])
    (tmp_path / "_tokzip" / "dataset.json").write_bytes(data)
    with pytest.raises(InputError, match=r"_tokzip/dataset\.json"):
        home.claim(SETTINGS, [])


def test_a_data_set_keeps_its_settings(home: Manifest) -> None:
    home.claim(SETTINGS, [])
    home.commit(entry())
    home.claim(SETTINGS, [])
    for changed, named in (
        ({"tokenizer": "t2"}, "tokenizer = t1, .* tokenizer = t2"),
        ({"new": "1"}, "new = None, .* 1"),
    ):
        with pytest.raises(DatasetMismatchError, match=named):
            home.claim({**SETTINGS, **changed}, [])
    home.claim(SETTINGS, [])


def test_what_a_failed_run_left_is_replaced(home: Manifest) -> None:
    home.claim(SETTINGS, [])
    storage.publish_bytes(b"old", home.output, home.place("codebook.tzc"))
    home.claim(SETTINGS, ["codebook.tzc"])
    assert storage.exists(home.place("codebook.tzc"))
    home.claim({**SETTINGS, "tokenizer": "t2"}, ["codebook.tzc"])
    assert not storage.exists(home.place("codebook.tzc"))


def test_a_file_appears_whole_or_not_at_all(home: Manifest) -> None:
    url = home.place("sub", "file.bin")
    storage.publish_bytes(b"one", home.output, url)
    storage.publish_bytes(b"two", home.output, url)
    assert storage.read_bytes(url) == b"two"
    with contextlib.suppress(RuntimeError), storage.scratch_file(home.output) as scratch:
        Path(scratch).write_bytes(b"half of thr")
        raise RuntimeError
    assert storage.read_bytes(url) == b"two"
    assert not Path(scratch).exists()
    storage.remove(url)
    storage.remove(url)
    assert not storage.exists(url)


def test_what_others_have_written_since_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Object stores' clients remember listings: what a worker on another machine wrote must be seen all the same."""
    store: MemoryFileSystem = fsspec.filesystem("memory")
    store.store.clear()
    listings: dict[str, Any] = {}
    real = MemoryFileSystem.ls

    def ls(self: MemoryFileSystem, path: str, detail: bool = True, **kw: Any) -> Any:
        key = f"{path} {detail}"
        if key not in listings:
            listings[key] = real(self, path, detail, **kw)
        return listings[key]

    monkeypatch.setattr(MemoryFileSystem, "ls", ls)
    monkeypatch.setattr(MemoryFileSystem, "invalidate_cache", lambda self, path=None: listings.clear())
    home = Manifest(storage.absolute("memory://bucket/out"))
    home.commit(entry("a.parquet"))
    assert home.names() == ["a.parquet"]
    store.pipe_file(
        "/bucket/out/_tokzip/manifest/b.parquet.json", store.cat_file("/bucket/out/_tokzip/manifest/a.parquet.json")
    )
    assert home.names() == ["a.parquet", "b.parquet"]
    assert len(storage.find("memory://bucket/out/_tokzip/manifest/*", (".json",))[1]) == 2
