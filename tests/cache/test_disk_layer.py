"""The disk layer: restarts, kills, bounds, other processes, damage."""

from __future__ import annotations

import fcntl
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from cache_entries import MB, keys, values

from tokzip_core.cache import CacheError, disk, segments
from tokzip_core.cache.disk import DiskLayer
from tokzip_core.cache.index import key_words
from tokzip_core.kernels.entries import OUT_OF_FILE

PATIENCE = 600.0  # seconds


@pytest.fixture(autouse=True)
def look_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """What other processes have written is looked for at every miss."""
    monkeypatch.setattr(disk, "_REFRESH_SECONDS", 0)


@pytest.fixture(autouse=True)
def wait_for_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """However long a process that has the folder's lock is not scheduled."""
    monkeypatch.setattr(disk, "_LOCK_SECONDS", PATIENCE)


def size(folder: Path) -> int:
    """Bytes of all files, while no process appends or deletes."""
    with segments.folder_lock(str(folder), PATIENCE):
        return sum(f.stat().st_size for f in folder.iterdir())


def fill(folder: Path, numbers: range, bound: int = 4 * MB, at_once: int = 50) -> DiskLayer:
    layer = DiskLayer(str(folder), bound)
    for start in range(numbers.start, numbers.stop, at_once):
        some = range(start, min(start + at_once, numbers.stop))
        layer.put_many(keys(*some), values(*some))
        assert size(folder) <= bound
    return layer


def test_it_survives_reopening(tmp_path: Path) -> None:
    fill(tmp_path, range(100)).close()
    again = DiskLayer(str(tmp_path), 4 * MB)
    assert again.get_many(keys(*range(100))).equals(values(*range(100)))
    again.close()


@pytest.mark.parametrize("bytes_each", [400, 1536, 3072, 9000])
def test_the_bound_holds_and_a_running_job_keeps_what_it_has_written(tmp_path: Path, bytes_each: int) -> None:
    layer = DiskLayer(str(tmp_path), MB)
    total = 3 * MB // (bytes_each + 40) // 50 * 50
    for start in range(0, total, 50):
        some = range(start, start + 50)
        layer.put_many(keys(*some), values(*some, size=bytes_each))
        assert size(tmp_path) <= MB
    there = layer.get_many(keys(*range(total))).is_valid().to_numpy(zero_copy_only=False)
    assert layer.counters["evicted"] == 0
    assert layer.counters["refused"] == (~there).sum() > 0
    first_refused = there.argmin()
    assert first_refused * (bytes_each + 40) > 0.9 * MB, "refused only when full"
    layer.close()


def test_what_the_oldest_run_used_goes_first_and_its_last_rows_before_its_first(tmp_path: Path) -> None:
    fill(tmp_path, range(0, 300), MB).close()
    stale = [name for name in os.listdir(tmp_path) if name.endswith(".keys")]
    fill(tmp_path, range(300, 600), MB).close()
    for name in os.listdir(tmp_path):  # two runs, a day apart
        run = 1_000_000 if name in stale else 1_086_400
        os.utime(tmp_path / name, (run, run))
    layer = fill(tmp_path, range(600, 700), MB)
    there = layer.get_many(keys(*range(700))).is_valid().to_numpy(zero_copy_only=False)
    assert there[300:].all(), "the later run's, and this one's"
    assert there[0]
    assert not there[299]
    assert (~there).sum() == layer.counters["evicted"] > 0
    layer.close()


def test_eviction_spares_what_any_running_job_has_read(tmp_path: Path) -> None:
    fill(tmp_path, range(500), MB).close()
    reader = DiskLayer(str(tmp_path), MB)
    needed = [*range(10), *range(480, 490)]
    assert reader.get_many(keys(*needed)).null_count == 0
    other = fill(tmp_path, range(1000, 3000), MB)
    assert other.counters["evicted"] > 0
    assert other.counters["refused"] > 0
    reader.close()  # what it has mapped is not what keeps the files
    reader = DiskLayer(str(tmp_path), MB)
    assert reader.get_many(keys(*needed)).equals(values(*needed))
    reader.close()
    other.close()


def test_segments_are_filled_before_new_ones_are_made(tmp_path: Path) -> None:
    for n in range(30):
        fill(tmp_path, range(n, n + 1)).close()
    assert len([name for name in os.listdir(tmp_path) if name.endswith(".keys")]) <= 2


def test_a_lower_bound_evicts_when_opened(tmp_path: Path) -> None:
    other = fill(tmp_path, range(1000))
    layer = DiskLayer(str(tmp_path), MB)
    layer.put_many(keys(1000), values(1000))
    assert layer.get_many(keys(*range(1001))).null_count == layer.counters["refused"] == 1, "all else is in use"
    for done in (layer, other):
        done.close()
    layer = DiskLayer(str(tmp_path), MB)
    assert size(tmp_path) <= MB
    assert 0 < layer.get_many(keys(*range(1000))).null_count < 700
    layer.close()


def test_a_new_segment_needs_room_too(tmp_path: Path) -> None:
    layer = DiskLayer(str(tmp_path), MB)
    whole = layer.segment_bytes - 2 * segments.RECORD  # an entry that fills a segment
    for n in range(65):
        layer.put_many(keys(n), values(n, size=whole))
    assert size(tmp_path) == MB
    assert (layer.counters["puts"], layer.counters["refused"]) == (64, 1)
    layer.close()


def test_a_segment_that_was_locked_when_first_used_is_kept_at_the_next_use(tmp_path: Path) -> None:
    name = segments.create(str(tmp_path))
    segment = segments.Segment(str(tmp_path), name, 0)
    with open(segment.keys_path) as evictor:
        fcntl.flock(evictor, fcntl.LOCK_EX)
        segment.use(1.0)
    segment.use(1.0)
    assert segments.delete_unused(str(tmp_path), [name]) is None
    segment.close()
    assert segments.delete_unused(str(tmp_path), [name]) == name


def test_a_segment_is_locked_until_it_is_deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = segments.create(str(tmp_path))
    (tmp_path / f"{name}.data").touch()
    unlink, deleted = os.unlink, []

    def look(path: str) -> None:
        with open(path) as user, pytest.raises(BlockingIOError):
            fcntl.flock(user, fcntl.LOCK_SH | fcntl.LOCK_NB)
        unlink(path)
        deleted.append(path)

    monkeypatch.setattr(os, "unlink", look)
    assert segments.delete_unused(str(tmp_path), [name]) == name
    assert len(deleted) == 2


def test_a_segment_seen_before_its_head_is_written_is_read_later(tmp_path: Path) -> None:
    fill(tmp_path / "w", range(10)).close()
    (tmp_path / "f").mkdir()
    (file,) = (tmp_path / "w").glob("*.keys")
    there = tmp_path / "f" / file.name
    there.touch()
    layer = DiskLayer(str(tmp_path / "f"), MB)
    assert layer.get_many(keys(1)).null_count == 1
    there.with_suffix(".data").write_bytes(file.with_suffix(".data").read_bytes())
    there.write_bytes(file.read_bytes())
    assert layer.get_many(keys(*range(10))).equals(values(*range(10)))
    assert layer.counters["corrupt"] == 0
    layer.close()


def test_a_length_that_no_value_has_is_damage(tmp_path: Path) -> None:
    fill(tmp_path, range(2)).close()
    (file,) = tmp_path.glob("*.keys")
    records = np.fromfile(file, np.uint64).reshape(-1, 5)
    records[1, segments.PLACE] = (2 * MB) << 40
    records.tofile(file)
    os.truncate(file.with_suffix(".data"), 3 * MB)
    layer = DiskLayer(str(tmp_path), 4 * MB)
    assert layer._locate(key_words(keys(0, 1)))[2].tolist() == [OUT_OF_FILE, 1536]
    assert layer.get_many(keys(0, 1)).is_null().to_pylist() == [True, False]
    assert layer.counters["corrupt"] == 1
    layer.close()


def test_a_damaged_value_is_a_miss_counted_and_replaced(tmp_path: Path) -> None:
    fill(tmp_path, range(20)).close()
    (file,) = tmp_path.glob("*.data")
    data = bytearray(file.read_bytes())
    for n in (3, 11):
        data[data.index(values(n)[0].as_py()) + 700] ^= 1
    file.write_bytes(data)
    layer = DiskLayer(str(tmp_path), 4 * MB)
    assert layer.get_many(keys(*range(20))).is_null().to_pylist() == [n in (3, 11) for n in range(20)]
    assert layer.counters["corrupt"] == 2
    assert layer.get_many(keys(3)).null_count == 1
    assert layer.counters["corrupt"] == 2, "removed, so counted once"
    layer.put_many(keys(3, 11), values(3, 11))
    assert layer.get_many(keys(*range(20))).equals(values(*range(20)))
    layer.close()
    again = DiskLayer(str(tmp_path), 4 * MB)
    assert again.get_many(keys(*range(20))).equals(values(*range(20)))
    again.close()


@pytest.mark.parametrize("seed", range(30))
def test_random_damage_never_gives_a_wrong_value(tmp_path: Path, seed: int) -> None:
    fill(tmp_path, range(200), MB).close()
    rng = random.Random(seed)
    for file in tmp_path.iterdir():
        data = bytearray(file.read_bytes())
        for _ in range(rng.randrange(1, 40) if data else 0):
            data[rng.randrange(len(data))] = rng.randrange(256)
        file.write_bytes(data[: rng.randrange(len(data) + 1)] if rng.random() < 0.3 else data)
    layer = DiskLayer(str(tmp_path), MB)
    got = layer.get_many(keys(*range(200))).to_pylist()
    assert all(value in (None, right) for value, right in zip(got, values(*range(200)).to_pylist(), strict=True))
    layer.put_many(keys(*range(200, 260)), values(*range(200, 260)))
    assert layer.get_many(keys(*range(200, 260))).equals(values(*range(200, 260)))
    assert size(tmp_path) <= MB
    layer.close()


def test_an_entry_under_another_key_is_not_given(tmp_path: Path) -> None:
    """Records whose places were swapped: each value is whole, but another key's."""
    fill(tmp_path, range(2)).close()
    (file,) = tmp_path.glob("*.keys")
    words = np.frombuffer(file.read_bytes(), np.uint64).copy().reshape(-1, 5)
    words[[1, 2], 3:] = words[[2, 1], 3:]
    file.write_bytes(words.tobytes())
    layer = DiskLayer(str(tmp_path), 4 * MB)
    assert layer.get_many(keys(0, 1)).null_count == 2
    assert layer.counters["corrupt"] == 2
    layer.close()


def _fill(path: str, start: int) -> None:
    disk._LOCK_SECONDS = PATIENCE
    layer = DiskLayer(path, 8 * MB)
    for n in range(start, start + 400, 20):
        some = range(n, n + 20)
        layer.put_many(keys(*some), values(*some))
        if not layer.get_many(keys(*some)).equals(values(*some)):
            os._exit(3)
    layer.close()


def test_processes_share_a_folder(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_fill, args=(str(tmp_path), n)) for n in (0, 100, 200)]
    here = DiskLayer(str(tmp_path), 8 * MB)
    assert here.get_many(keys(5)).null_count == 1
    for w in workers:
        w.start()
    for w in workers:
        w.join()
    assert [w.exitcode for w in workers] == [0, 0, 0]
    assert here.get_many(keys(*range(600))).equals(values(*range(600))), "seen without reopening"
    here.close()


def _thrash(path: str, start: int) -> None:
    """Many runs, one after the other, of more than fits."""
    disk._LOCK_SECONDS = PATIENCE
    for run in range(8):
        layer = DiskLayer(path, MB)
        for n in range(start, start + 400, 40):
            some = range(n, n + 40)
            got = layer.get_many(keys(*some)).to_pylist()
            if any(v not in (None, w) for v, w in zip(got, values(*some).to_pylist(), strict=True)):
                os._exit(3)
            layer.put_many(keys(*some), values(*some))
            if size(Path(path)) > MB:
                os._exit(4)
        layer.close()
        start += 300 * (run % 2 or -1)


def test_processes_that_evict_from_one_folder_keep_its_bound(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_thrash, args=(str(tmp_path), n)) for n in (1000, 1200)]
    for w in workers:
        w.start()
    for w in workers:
        w.join()
    assert [w.exitcode for w in workers] == [0, 0]


# It ends by being killed, at the latest when what it has put would not fit.
_ENDLESS = """
import sys, time
sys.path.insert(0, sys.argv[2])
from cache_entries import keys, values
from tokzip_core.cache.disk import DiskLayer
layer = DiskLayer(sys.argv[1], 64 << 20)
for n in range(0, 10_000, 10):
    layer.put_many(keys(*range(n, n + 10)), values(*range(n, n + 10)))
    print(n + 10, flush=True)
time.sleep(3600)
"""


def test_a_killed_process_loses_nothing_it_had_put(tmp_path: Path) -> None:
    for _ in range(3):
        command = [sys.executable, "-c", _ENDLESS, str(tmp_path), str(Path(__file__).parent)]
        worker = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        put = 0
        while put < 500:
            put = int(worker.stdout.readline())
        worker.send_signal(signal.SIGKILL)
        rest = worker.stdout.read().split()
        worker.wait()
        put = int(rest[-1]) if rest else put
        layer = DiskLayer(str(tmp_path), 64 * MB)
        assert layer.get_many(keys(*range(put))).equals(values(*range(put)))
        layer.put_many(keys(10**7), values(10**7))
        assert layer.get_many(keys(10**7)).null_count == 0
        layer.close()


def test_what_a_crash_left_within_a_record_is_passed_over(tmp_path: Path) -> None:
    fill(tmp_path, range(10)).close()
    (file,) = tmp_path.glob("*.keys")
    with file.open("ab") as f:
        f.write(b"\xff" * 20)
    layer = fill(tmp_path, range(10, 20))
    assert layer.get_many(keys(*range(20))).equals(values(*range(20)))
    layer.close()
    again = DiskLayer(str(tmp_path), 4 * MB)
    assert again.get_many(keys(*range(20))).equals(values(*range(20)))
    again.close()


def test_a_forked_child_has_the_cache_too(tmp_path: Path) -> None:
    layer = DiskLayer(str(tmp_path), 4 * MB)
    layer.put_many(keys(1), values(1))
    child = os.fork()
    if child == 0:
        ok = layer.get_many(keys(1)).equals(values(1))
        layer.put_many(keys(2), values(2))
        os._exit(0 if ok else 1)
    assert os.waitpid(child, 0)[1] == 0
    layer.put_many(keys(3), values(3))
    assert layer.get_many(keys(1, 2, 3)).equals(values(1, 2, 3))
    layer.close()


def test_threads_share_a_layer(tmp_path: Path) -> None:
    layer = DiskLayer(str(tmp_path), MB)
    wrong: list[int] = []

    def work(start: int) -> None:
        for n in range(start, start + 300, 10):
            some = range(n, n + 10)
            layer.put_many(keys(*some), values(*some))
            got = layer.get_many(keys(*some)).to_pylist()
            wrong.extend(v not in (None, w) for v, w in zip(got, values(*some).to_pylist(), strict=True))

    threads = [threading.Thread(target=work, args=(n,)) for n in (0, 100, 500)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert len(wrong) == 900
    assert not any(wrong)
    assert size(tmp_path) <= MB
    layer.close()


def test_two_layers_of_one_folder_see_each_other(tmp_path: Path) -> None:
    first, second = DiskLayer(str(tmp_path), 4 * MB), DiskLayer(str(tmp_path), 4 * MB)
    first.put_many(keys(1), values(1))
    second.put_many(keys(1, 2), values(1, 2))
    first.close()
    assert second.get_many(keys(1, 2)).equals(values(1, 2))
    second.close()


def test_a_folder_that_cannot_be_one_is_a_clear_error(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("not a folder")
    with pytest.raises(CacheError, match="cannot be opened"):
        DiskLayer(str(file), MB)


def test_files_of_another_format_are_let_alone(tmp_path: Path) -> None:
    (tmp_path / "data.mdb").write_bytes(b"an older cache" * 1000)
    (tmp_path / "mine.keys").write_bytes(b"of another program".ljust(80))
    (tmp_path / f"{7:020d}-0123abcd.keys").write_bytes(b"tokzip cache segment, format 99".ljust(80))
    layer = fill(tmp_path, range(10))
    assert layer.get_many(keys(*range(10))).equals(values(*range(10)))
    assert layer.counters["corrupt"] == 1
    layer.close()
    layer = DiskLayer(str(tmp_path), MB)
    layer.put_many(keys(*range(2000)), values(*range(2000)))
    assert layer.counters["evicted"] + layer.counters["refused"] > 0
    layer.close()
    assert {"data.mdb", "mine.keys"} < set(os.listdir(tmp_path)), "what is not ours is not evicted"


def test_a_folder_removed_under_an_open_layer_is_an_error_to_a_put(tmp_path: Path) -> None:
    layer = fill(tmp_path / "c", range(10))
    for file in (tmp_path / "c").iterdir():
        file.unlink()
    (tmp_path / "c").rmdir()
    with pytest.raises(CacheError, match="disk cache"):
        layer.put_many(keys(20), values(20))
    layer.close()


def test_values_too_long_for_a_segment_are_not_kept(tmp_path: Path) -> None:
    layer = DiskLayer(str(tmp_path), MB)
    long = pa.array([b"x" * 20_000, b"y"], pa.binary())
    layer.put_many(keys(1, 2), long)
    assert layer.get_many(keys(1, 2)).to_pylist() == [None, b"y"]
    layer.close()
