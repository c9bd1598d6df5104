"""The driver does not trust a stage, nor a reader: rows lost, moved or made up are caught, and errors passed on."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from shards import bytes_below, parquet

from pipelines import map_splits, splits
from pipelines.map_splits import ReconciliationError, run_split
from pipelines.splits import Split
from pipelines.stage import Stage, Stats, Work
from pipelines.storage import InputError


class _Faulty(Stage, Work):
    """Passes rows on, but for `fault`."""

    name = "faulty"
    key = "faulty"
    identity: dict[str, str] = {}  # noqa: RUF012 - a property in the base class

    def __init__(self, fault: Any) -> None:
        self.fault = fault

    def columns(self, source: pa.Schema) -> list[str]:
        return source.names

    def open(self) -> Work:
        return self

    def _open(self) -> Work:
        return self

    def schema(self, source: pa.Schema) -> pa.Schema:
        return source

    def run(self, blocks: Iterator[pa.RecordBatch], stats: Stats) -> Iterator[pa.RecordBatch]:
        return self.fault(blocks)


def _reorder(blocks: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    for b in blocks:
        yield b.take(pa.array(range(len(b) - 1, -1, -1)))


FAULTS = {
    "drops the last row": lambda blocks: (b.slice(0, len(b) - 1) for b in blocks),
    "drops the first row": lambda blocks: (b.slice(1) for b in blocks),
    "stops after a block": lambda blocks: (next(blocks) for _ in range(1)),
    "gives nothing": lambda blocks: iter(()),
    "reads and gives nothing": lambda blocks: (b for b in blocks if False),
    "repeats a block": lambda blocks: (b for block in blocks for b in (block, block)),
    "reorders": _reorder,
    "drops the last block": lambda blocks: iter(list(blocks)[:-1]),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("name", ["a.parquet", "a.txt"])
def test_a_stage_that_loses_or_moves_rows_is_caught(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str, name: str
) -> None:
    monkeypatch.setattr("pipelines.reading.BLOCK_ROWS", 10)
    texts = [f"row {i}" for i in range(50)]
    path = tmp_path / "in" / name
    parquet(path, texts) if name == "a.parquet" else path.parent.mkdir() or path.write_text("\n".join(texts))
    (split,) = splits.plan(splits.find_shards([str(path)]), lambda s: s.names, 1 << 30)
    with pytest.raises(ReconciliationError, match=str(path)):
        run_split(split, _Faulty(FAULTS[fault]), str(tmp_path / "out"))
    assert not [p for p in bytes_below(tmp_path / "out") if "tmp" not in p]
    entry = run_split(split, _Faulty(lambda blocks: blocks), str(tmp_path / "out"))
    assert entry.counts["rows_out"] == 50, "the same without a fault is fine"


def test_a_shard_with_other_rows_than_planned_is_caught(tmp_path: Path, compress: Any) -> None:
    path = parquet(tmp_path / "in" / "a.parquet", ["a", "b"])
    made = compress(path)
    parquet(path, ["a", "b", "c"])
    stale = Split(**{**made.planned[0].__dict__, "size": 1})
    with pytest.raises(InputError, match="3 rows where its footer had 2"):
        run_split(stale, made.stage, made.output)


# ---- reading ahead


def _threads() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name == "tokzip-read-ahead"]


def _batches(n: int, error: BaseException | None = None) -> Iterator[pa.RecordBatch]:
    for i in range(n):
        yield pa.record_batch({"i": [i]})
    if error:
        raise error


@pytest.mark.parametrize("n", [0, 1, 2, 3, 50])
def test_reading_ahead_gives_the_same_blocks_and_ends(n: int) -> None:
    assert [b.to_pylist() for b in map_splits._ahead(_batches(n))] == [b.to_pylist() for b in _batches(n)]
    assert _threads() == []


@pytest.mark.parametrize("n", [0, 1, 2, 3, 50])
@pytest.mark.parametrize("error", [InputError("broken"), KeyboardInterrupt(), MemoryError()])
def test_reading_ahead_passes_errors_on(n: int, error: BaseException) -> None:
    seen = []

    def consume() -> None:
        for b in map_splits._ahead(_batches(n, error)):
            seen.append(b)  # noqa: PERF402 - what came before the error is looked at

    with pytest.raises(type(error)) as e:
        consume()
    assert e.value is error
    assert len(seen) in (n, 0)
    assert _threads() == []


def test_reading_ahead_stops_when_nobody_wants_more() -> None:
    read: list[int] = []

    def endless() -> Iterator[pa.RecordBatch]:
        while True:
            read.append(1)
            yield pa.record_batch({"i": [0]})

    blocks = map_splits._ahead(endless())
    next(blocks)
    next(blocks)
    next(blocks)
    blocks.close()  # type: ignore[attr-defined]
    assert _threads() == []
    assert len(read) < 10, "it stays a few blocks ahead"
