"""The folder layer: several writers, merging under readers, damage, other stores."""

from __future__ import annotations

import multiprocessing
import os
import random
import subprocess
import sys
import threading
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from cache_entries import keys, values
from fsspec.implementations.local import LocalFileSystem

from tokzip_core.cache import CacheError, folder, parse_cache_spec
from tokzip_core.cache.folder import FolderLayer
from tokzip_core.cache.parts import SCHEMA, DamagedPartError, Part, read_group, read_keys


def open_folder(folder: Path, **options: float) -> FolderLayer:
    """A layer that looks for new parts at every miss."""
    return FolderLayer(str(folder), refresh_seconds=0, **options)


def parts(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


def fill(folder: Path, numbers: range, at_once: int = 10) -> FolderLayer:
    """One part for every `at_once` entries."""
    layer = open_folder(folder)
    for start in range(numbers.start, numbers.stop, at_once):
        some = range(start, min(start + at_once, numbers.stop))
        layer.put_many(keys(*some), values(*some))
        layer.flush()
    return layer


def test_others_find_what_was_flushed(tmp_path: Path) -> None:
    reader = open_folder(tmp_path / "f")
    assert reader.get_many(keys(1)).null_count == 1
    writer = fill(tmp_path / "f", range(30))
    assert reader.get_many(keys(*range(30))).equals(values(*range(30)))
    writer.put_many(keys(30), values(30))
    assert reader.get_many(keys(30)).null_count == 1, "held back"
    writer.close()
    assert reader.get_many(keys(30)).null_count == 0
    reader.close()


def test_parts_are_plain_parquet(tmp_path: Path) -> None:
    fill(tmp_path, range(25), at_once=25).close()
    (name,) = parts(tmp_path)
    table = pq.read_table(tmp_path / name)
    assert table.column("key").to_pylist() == keys(*range(25)).to_pylist()
    assert table.column("value").to_pylist() == values(*range(25)).to_pylist()


def test_many_row_groups(tmp_path: Path) -> None:
    numbers = range(5000)
    data = values(*numbers, size=50)
    layer = open_folder(tmp_path)
    layer.put_many(keys(*numbers), data)
    layer.close()
    again = open_folder(tmp_path)
    order = random.Random(0).sample(numbers, 5000)
    assert again.get_many(keys(*order)).equals(data.take(pa.array(order)))
    again.close()


def test_known_keys_are_not_written_again(tmp_path: Path) -> None:
    layer = fill(tmp_path, range(20))
    layer.put_many(keys(*range(20)), values(*range(20)))
    layer.close()
    assert len(parts(tmp_path)) == 2


def test_merging_keeps_every_entry_for_readers_with_an_old_index(tmp_path: Path) -> None:
    fill(tmp_path, range(100)).close()
    reader = open_folder(tmp_path)
    reader.refresh()
    merger = open_folder(tmp_path)
    assert merger.compact() == 9
    assert len(parts(tmp_path)) == 1
    assert reader.get_many(keys(*range(100))).equals(values(*range(100)))
    assert merger.get_many(keys(*range(100))).equals(values(*range(100)))
    assert merger.compact() == 0
    for layer in (reader, merger):
        layer.close()


def test_two_who_merge_the_same_parts_lose_nothing(tmp_path: Path) -> None:
    fill(tmp_path, range(60)).close()
    first, second = open_folder(tmp_path), open_folder(tmp_path)
    first.refresh()
    second.refresh()
    before = list(second._parts.values())
    first.compact()
    second.compact(before)  # of which none is there any more
    fresh = open_folder(tmp_path)
    assert fresh.get_many(keys(*range(60))).equals(values(*range(60)))
    for layer in (first, second, fresh):
        layer.close()


def test_a_merge_that_dies_before_it_has_deleted_anything_only_doubles_entries(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(tmp_path, range(40)).close()
    merger = open_folder(tmp_path)

    def killed(path: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(merger._store[0], "rm_file", killed, raising=False)
    with pytest.raises(KeyboardInterrupt):
        merger.compact()
    monkeypatch.undo()
    assert len(parts(tmp_path)) == 5
    again = open_folder(tmp_path)
    again.compact()
    assert len(parts(tmp_path)) == 1
    assert pq.read_metadata(tmp_path / parts(tmp_path)[0]).num_rows == 40, "each entry once"
    assert again.get_many(keys(*range(40))).equals(values(*range(40)))
    again.close()


def test_a_writer_merges_its_own_small_parts_as_it_goes(tmp_path: Path) -> None:
    layer = fill(tmp_path, range(100), at_once=1)
    assert len(parts(tmp_path)) < 40
    assert layer.get_many(keys(*range(100))).equals(values(*range(100)))
    layer.close()


def test_merged_parts_are_bounded(tmp_path: Path) -> None:
    fill(tmp_path, range(0, 200, 1), at_once=10).close()
    layer = open_folder(tmp_path, part_bytes=100_000)
    layer.compact()
    assert 3 <= len(parts(tmp_path)) <= 8
    assert all((tmp_path / name).stat().st_size <= 110_000 for name in parts(tmp_path))
    assert layer.get_many(keys(*range(200))).equals(values(*range(200)))
    layer.close()


def _write_and_merge(folder: str, start: int) -> None:
    layer = open_folder(Path(folder))
    for n in range(start, start + 150, 5):
        some = range(n, n + 5)
        layer.put_many(keys(*some), values(*some))
        layer.flush()
        if n % 25 == 0:
            layer.compact()
        # Whatever is merged meanwhile, and by whom: what was once flushed is never missed.
        seen = range(start, n + 5)
        if not layer.get_many(keys(*seen)).equals(values(*seen)):
            os._exit(3)
    layer.close()


def test_writers_that_merge_meanwhile_lose_nothing(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_write_and_merge, args=(str(tmp_path), n)) for n in (0, 100, 1000)]
    for w in workers:
        w.start()
    for w in workers:
        w.join()
    assert [w.exitcode for w in workers] == [0, 0, 0]
    numbers = [*range(250), *range(1000, 1150)]
    layer = open_folder(tmp_path)
    assert layer.get_many(keys(*numbers)).equals(values(*numbers))
    layer.compact()
    assert len(parts(tmp_path)) == 1
    assert layer.get_many(keys(*numbers)).equals(values(*numbers))
    layer.close()


@pytest.mark.parametrize("seed", range(25))
def test_random_damage_never_gives_a_wrong_value(tmp_path: Path, seed: int) -> None:
    fill(tmp_path, range(60), at_once=20).close()
    rng = random.Random(seed)
    for file in tmp_path.iterdir():
        data = bytearray(file.read_bytes())
        for _ in range(rng.randrange(0, 20)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        file.write_bytes(data[: rng.randrange(len(data) + 1)] if rng.random() < 0.3 else data)
    layer = open_folder(tmp_path)
    for _ in range(2):
        got = layer.get_many(keys(*range(60))).to_pylist()
        assert all(v in (None, w) for v, w in zip(got, values(*range(60)).to_pylist(), strict=True))
        layer.compact()
    layer.put_many(keys(*range(60)), values(*range(60)))
    layer.close()


def test_a_damaged_entry_is_a_miss_counted_and_written_anew(tmp_path: Path) -> None:
    fill(tmp_path, range(10)).close()
    (name,) = parts(tmp_path)
    data = bytearray((tmp_path / name).read_bytes())
    data[data.index(values(3)[0].as_py()) + 700] ^= 1
    (tmp_path / name).write_bytes(data)
    layer = open_folder(tmp_path)
    assert layer.get_many(keys(*range(10))).is_null().to_pylist() == [n == 3 for n in range(10)]
    assert layer.counters["corrupt"] == 1
    layer.put_many(keys(3), values(3))
    layer.flush()
    again = open_folder(tmp_path)
    assert again.get_many(keys(*range(10))).equals(values(*range(10)))
    again.compact()
    assert again.get_many(keys(*range(10))).equals(values(*range(10)))
    for done in (layer, again):
        done.close()


def test_a_part_that_is_not_whole_yet_is_read_when_it_is(tmp_path: Path) -> None:
    fill(tmp_path / "w", range(10)).close()
    (name,) = parts(tmp_path / "w")
    whole = (tmp_path / "w" / name).read_bytes()
    (tmp_path / "f").mkdir()
    (tmp_path / "f" / name).write_bytes(whole[: len(whole) // 2])
    (tmp_path / "f" / "other.parquet").write_bytes(b"PAR1")
    reader = open_folder(tmp_path / "f")
    assert reader.get_many(keys(1)).null_count == 1
    (tmp_path / "f" / name).write_bytes(whole)
    assert reader.get_many(keys(*range(10))).equals(values(*range(10)))
    reader.close()


def test_another_store(tmp_path: Path) -> None:
    url = f"memory://{tmp_path.name}-cache"
    first = FolderLayer(url, refresh_seconds=0)
    for n in range(0, 40, 10):
        first.put_many(keys(*range(n, n + 10)), values(*range(n, n + 10)))
        first.flush()
    second = FolderLayer(url, refresh_seconds=0)
    assert second.get_many(keys(*range(40))).equals(values(*range(40)))
    assert second.compact() == 3
    assert first.get_many(keys(*range(40))).equals(values(*range(40)))
    for layer in (first, second):
        layer.close()


def run_to_its_end(code: str, *arguments: str) -> None:
    start = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\nfrom cache_entries import keys, values\n"
    subprocess.run([sys.executable, "-c", start + code, *arguments], check=True, timeout=600)


def test_what_is_held_back_is_written_when_the_process_ends(tmp_path: Path) -> None:
    code = (
        "from tokzip_core.cache import parse_cache_spec\n"
        "stack = parse_cache_spec('folder:' + sys.argv[1]).open(); stack.put_many(keys(1), values(1))\n"
    )
    run_to_its_end(code, str(tmp_path))
    layer = open_folder(tmp_path)
    assert layer.get_many(keys(1)).equals(values(1))
    layer.close()


@pytest.mark.parametrize("flush", ["stack.flush()", ""])
def test_a_store_that_hangs_does_not_keep_the_process_from_ending(flush: str) -> None:
    code = (
        "import time, fsspec\n"
        "from tokzip_core.cache import GuardedLayer, LayeredCache\n"
        "from tokzip_core.cache.folder import FolderLayer\n"
        "fsspec.filesystem('memory').pipe_file = lambda *_: time.sleep(3600)\n"
        "stack = LayeredCache([GuardedLayer(FolderLayer('memory://hangs'), seconds=0.5)])\n"
        f"stack.put_many(keys(1), values(1)); {flush}\n"
    )
    run_to_its_end(code)


def test_a_folder_that_cannot_be_written_to_is_read_and_memory_is_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(tmp_path, range(10)).close()

    def read_only(*_: object) -> None:
        raise PermissionError("read-only")

    monkeypatch.setattr("tokzip_core.cache.parts.write", read_only)
    monkeypatch.setattr(folder, "_FLUSH_SECONDS", -1.0)  # due at once
    monkeypatch.setattr(folder, "_FLUSH_BYTES", 10_000)
    layer = open_folder(tmp_path)
    for n in range(100, 120):
        with pytest.raises(PermissionError):
            layer.put_many(keys(n), values(n))
        assert layer.get_many(keys(*range(10))).equals(values(*range(10)))
    assert layer._pending_bytes == 7 * 1536
    assert (layer.counters["puts"], layer.counters["refused"]) == (7, 13)
    monkeypatch.undo()
    layer.close()


def test_a_damaged_part_of_several_row_groups_leaves_the_others_to_be_found(tmp_path: Path) -> None:
    fill(tmp_path, range(1500), at_once=1500).close()
    (damaged,) = tmp_path.iterdir()
    fill(tmp_path, range(2000, 2010)).close()
    layer = open_folder(tmp_path)
    assert layer.get_many(keys(9999)).null_count == 1, "both are indexed"
    damaged.write_bytes(b"x" * damaged.stat().st_size)
    got = layer.get_many(keys(1, 1400, 2001))
    assert got.to_pylist() == [None, None, values(2001)[0].as_py()]
    assert layer.counters["corrupt"] == 1
    layer.close()


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        (3000, {"row_group_size": 3000}, "row groups of"),
        (2048, {"compression": "zstd"}, "more bytes than the file|is compressed"),
        (2048, {"compression": "none"}, "more bytes than the file|has a dictionary"),
    ],
)
def test_a_part_that_takes_more_memory_than_its_bytes_is_refused_unread(
    tmp_path: Path, rows: int, options: dict[str, object], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    columns = [keys(*[1] * rows), values(*[1] * rows), pa.array([0] * rows, pa.uint64())]
    path = str(tmp_path / "a.parquet")
    pq.write_table(pa.table(columns, schema=SCHEMA), path, **{"row_group_size": 1024, **options})
    monkeypatch.setattr(pq.ParquetFile, "read", lambda *_, **__: pytest.fail("read"))
    with pytest.raises(DamagedPartError, match=message):
        read_keys(LocalFileSystem(), path)
    monkeypatch.setattr(pq.ParquetFile, "read_row_group", lambda *_, **__: pytest.fail("read"))
    with pytest.raises(DamagedPartError, match=message):
        read_group(LocalFileSystem(), Part("a.parquet", path, 0, os.path.getsize(path), 2), 0)


def test_threads_share_a_layer(tmp_path: Path) -> None:
    layer = open_folder(tmp_path)
    wrong: list[bool] = []

    def work(start: int) -> None:
        for n in range(start, start + 100, 10):
            some = range(n, n + 10)
            layer.put_many(keys(*some), values(*some))
            if n % 30 == 0:
                layer.flush()
            wrong.append(not layer.get_many(keys(*some)).equals(values(*some)))

    threads = [threading.Thread(target=work, args=(n,)) for n in (0, 50, 500)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert len(wrong) == 30
    assert not any(wrong)
    layer.close()


def test_a_url_without_a_client_is_an_error() -> None:
    with pytest.raises(CacheError, match="folder cache nothing://x"):
        FolderLayer("nothing://x")


def test_a_store_that_cannot_be_reached_is_misses() -> None:
    stack = parse_cache_spec("ftp://127.0.0.1:1/cache").open()
    assert stack.get_many(keys(1)).null_count == 1
    assert stack.events() == {"failed.folder": 1}
    stack.close()
