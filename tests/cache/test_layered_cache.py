"""A stack of layers: what lower ones have goes up, and no layer's failure is the job's."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
from cache_entries import MB, keys, values

from tokzip_core.cache import CacheLayer, GuardedLayer, LayeredCache, MemoryLayer, guarded
from tokzip_core.cache.disk import DiskLayer


class Failing(CacheLayer):
    """Does `fail` at every call, while that is set."""

    name = "failing"

    def __init__(self, fail: Callable[[], None] | None) -> None:
        super().__init__()
        self.inner, self.fail, self.calls = MemoryLayer(MB), fail, 0

    def _do(self) -> None:
        self.calls += 1
        if self.fail is not None:
            self.fail()

    def get_many(self, keys: pa.FixedSizeBinaryArray) -> pa.BinaryArray:
        self._do()
        return self.inner.get_many(keys)

    def put_many(self, keys: pa.FixedSizeBinaryArray, values: pa.BinaryArray) -> None:
        self._do()
        self.inner.put_many(keys, values)

    def close(self) -> None:
        self._do()


class Clock:
    """That of `GuardedLayer`, which the test sets."""

    now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    monkeypatch.setattr(guarded, "time", clock := Clock())
    return clock


def broken() -> None:
    raise ConnectionError("cut off")


def test_lower_hits_fill_the_layers_above(tmp_path: Path) -> None:
    memory, disk = MemoryLayer(MB), DiskLayer(str(tmp_path), 4 * MB)
    disk.put_many(keys(1, 2), values(1, 2))
    memory.put_many(keys(3), values(3))
    stack = LayeredCache([memory, disk])
    got, hits = stack.lookup(keys(2, 3, 4, 1))
    assert got.to_pylist() == [*values(2, 3).to_pylist(), None, values(1)[0].as_py()]
    assert hits == {"memory": 1, "disk": 2}
    assert stack.lookup(keys(1, 2, 3))[1] == {"memory": 3, "disk": 0}
    stack.close()


def test_no_layers_at_all_miss_everything() -> None:
    stack = LayeredCache([])
    stack.put_many(keys(1), values(1))
    got, hits = stack.lookup(keys(1, 2))
    assert (got.null_count, hits) == (2, {})


@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_layer_that_raises_is_passed_over_wherever_it_is(place: int, caplog: pytest.LogCaptureFixture) -> None:
    failing = Failing(broken)
    layers: list[CacheLayer] = [MemoryLayer(MB), MemoryLayer(MB)]
    layers.insert(place, GuardedLayer(failing, pause=0.0))
    stack = LayeredCache(layers)
    for n in range(5):
        stack.put_many(keys(n), values(n))
        assert stack.get_many(keys(n, 100)).to_pylist() == [values(n)[0].as_py(), None]
    assert stack.events()["failed.failing"] == failing.calls >= 10
    assert [r.message for r in caplog.records] == [
        "cache layer failing fails, the job goes on without it for a while: cut off"
    ]
    stack.close()


def test_a_failing_layer_is_left_alone_for_longer_each_time(clock: Clock) -> None:
    failing = Failing(broken)
    layer = GuardedLayer(failing, pause=5.0)
    pauses = []
    for _ in range(6):
        assert layer.get_many(keys(1)).null_count == 1
        pauses.append(layer._pauses["read"].until - clock.now)
        clock.now += pauses[-1] - 0.01
        layer.get_many(keys(1))
        clock.now += 0.02  # the pause is over
    assert pauses == [5, 10, 20, 40, 60, 60]
    assert failing.calls == layer.counters["failed"] == 6
    failing.fail = None
    layer.put_many(keys(1), values(1))
    assert layer.get_many(keys(1)).equals(values(1))
    failing.fail = broken
    layer.get_many(keys(1))
    assert layer._pauses["read"].until - clock.now == 5, "after a success, from the start"


def test_reads_that_work_do_not_shorten_the_pauses_of_writes_that_do_not(clock: Clock) -> None:
    layer = GuardedLayer(Failing(None), pause=5.0)
    layer.put_many(keys(1), values(1))
    layer.layer.put_many = lambda keys, values: broken()
    pauses = []
    for _ in range(3):
        layer.put_many(keys(2), values(2))
        assert layer.get_many(keys(1)).equals(values(1)), "what can only be read is still read"
        pauses.append(layer._pauses["write"].until - clock.now)
        clock.now += pauses[-1]  # the pause is over
    assert pauses == [5, 10, 20]


def test_a_layer_that_hangs_is_left_alone_until_it_answers() -> None:
    hangs, go_on = threading.Event(), threading.Event()
    failing = Failing(lambda: bool(hangs.set() or go_on.wait()) or None)
    layer = GuardedLayer(failing, seconds=0.05, pause=0.0)
    stack = LayeredCache([MemoryLayer(MB), layer])
    stack.put_many(keys(1), values(1))
    hangs.wait()
    assert stack.get_many(keys(1, 2)).to_pylist() == [values(1)[0].as_py(), None]
    assert failing.calls == 1, "one call hangs, no other is made"
    assert stack.events() == {"failed.failing": 1}
    go_on.set()
    while layer._hanging[0].answers.empty():
        time.sleep(0.01)
    layer.seconds = 600
    assert layer.get_many(keys(1)).equals(values(1)), "what was given up was done after all"


def test_a_hanging_layer_does_not_keep_the_process_from_ending() -> None:
    code = (
        "import time; from test_layered_cache import Failing, GuardedLayer; from cache_entries import keys\n"
        "layer = GuardedLayer(Failing(lambda: time.sleep(3600)), seconds=0.05)\n"
        "print(layer.get_many(keys(1)).null_count)"
    )
    here = str(Path(__file__).parent)
    done = subprocess.run([sys.executable, "-c", code], cwd=here, capture_output=True, text=True, timeout=600)
    assert (done.stdout.strip(), done.returncode) == ("1", 0), done.stderr


def test_events_are_told_once_by_layer() -> None:
    small = MemoryLayer(3000)
    stack = LayeredCache([small, MemoryLayer(MB)])
    stack.put_many(keys(1, 2, 3), values(1, 2, 3))
    assert stack.events() == {"evicted.memory": 2}
    assert stack.events() == {}
