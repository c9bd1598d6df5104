"""MapSplits: the one place where Beam, storage and a stage meet. Imports manifest, reading, splits, stage, metrics,
logs, beam.

`run_split` does the work of one split and is all that there is to test without Beam; `MapSplits` spreads it.
"""

from __future__ import annotations

import itertools
import logging
import math
import os
import queue
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import asdict
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

import tokzip_core as tz
from pipelines import logs, metrics, processes, reading, splits, storage
from pipelines.manifest import Entry, Manifest
from pipelines.splits import Split
from pipelines.stage import ERROR, ROW, Stage, Stats, Work
from pipelines.storage import InputError

_log = logging.getLogger(__name__)
_WARNINGS = itertools.count()
_MOST_WARNINGS = 100  # of dead letters, a process; further ones are for the level INFO
DEAD_LETTERS = pa.schema([("shard", pa.string()), ("row", pa.int64()), ("reason", pa.string())])


class ReconciliationError(tz.TokzipError):
    """A stage gave back other rows than it was given."""


class DeadLettersError(tz.TokzipError):
    """More dead letters than `--max-dead-letters` allows."""


def run_split(
    split: Split, stage: Stage, output: str, skip_bad: bool = False, observed: list[tuple[str, float]] | None = None
) -> Entry:
    """Bring one split to its committed state, and return its manifest entry.

    Does nothing where it is committed already. Any number of attempts, one after another or at once, end in the
    same bytes: the output is a function of the split and the stage, under a name that the split alone decides.
    Raises `InputError` for a bad shard, unless `skip_bad`: then the shard is one dead letter. `observed` gets what the
    stage observed (see `Stats`).
    """
    with logs.about(stage=stage.name, split=split.name, shard=split.url):
        return _run_split(split, stage, output, skip_bad, [] if observed is None else observed)


def _run_split(split: Split, stage: Stage, output: str, skip_bad: bool, observed: list[tuple[str, float]]) -> Entry:
    manifest = Manifest(output)
    old = manifest.get(split.name)
    if old and old.settles(split):
        return old
    start = time.perf_counter()
    stats = Stats()
    work = stage.open()
    with (
        storage.scratch_file(output) as data_file,
        storage.scratch_file(output) as dead_file,
    ):
        try:
            if split.problem:
                raise InputError(split.problem)
            written = _write(split, stage, work, stats, data_file, dead_file)
        except InputError as e:
            if not skip_bad:
                raise
            _warn("%s: a dead letter as a whole: %s", split.url, e)
            written = _dead_shard(split, str(e), stats, dead_file)
        files = {}
        with stats.time("publish"):
            if old and not old.covers(split):
                manifest.void(old)
            for kind, scratch, there, url in (
                ("output", data_file, written[0], storage.join(output, split.name)),
                ("dead_letters", dead_file, written[1], manifest.place("dead_letters", split.name)),
            ):
                files[kind] = _publish(scratch, url, output) if there else None
                if not there and old and getattr(old, kind):
                    storage.remove(url)
    stats["seconds.all"] = time.perf_counter() - start
    entry = Entry(
        name=split.name,
        source=split.fingerprint,
        identity=work.identity,
        counts={k: v for k, v in stats.items() if not k.startswith("seconds.")},
        seconds={k.removeprefix("seconds."): round(v, 6) for k, v in stats.items() if k.startswith("seconds.")},
        notes=work.notes,
        worker={
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "peak_rss": processes.peak_memory(),
            "finished": time.time(),
        },
        plan={"rows": split.rows, "bytes": split.bytes, "split_bytes": split.split_bytes},
        **files,
    )
    manifest.commit(entry)
    observed += stats.observed
    _log.info("%s: committed: %d rows in %.2f s", split.name, stats["rows_in"], stats["seconds.all"])
    return entry


def _warn(message: str, *arguments: Any, **fields: Any) -> None:
    level = logging.WARNING if next(_WARNINGS) < _MOST_WARNINGS else logging.INFO
    _log.log(level, message, *arguments, extra=fields)


def _publish(scratch: str, url: str, output: str) -> dict[str, Any]:
    described = {
        "path": url[len(output.rstrip("/")) + 1 :],
        "bytes": os.path.getsize(scratch),
        "sha256": storage.sha256_file(scratch),
    }
    storage.publish(scratch, url)
    return described


def _write(split: Split, stage: Stage, work: Work, stats: Stats, data_file: str, dead_file: str) -> tuple[bool, bool]:
    """Stream the split through the stage into the two files; says which of them were written."""
    dead: pq.ParquetWriter | None = None
    expected = split.first_row
    with reading.open_shard(split.url) as reader, ExitStack() as stack:
        schema = work.schema(reader.schema)
        writer = stack.enter_context(pq.ParquetWriter(data_file, schema, **tz.parquet_options(schema)))
        source = splits.blocks(split, reader, stage.columns(reader.schema), stats)
        blocks = stack.enter_context(closing(_ahead(source)))
        for out in work.run(blocks, stats):
            rows = out.column(ROW).to_numpy()
            if not np.array_equal(rows, np.arange(expected, expected + len(rows))):
                raise ReconciliationError(f"{split.url}: stage {stage.name} lost or moved rows at row {expected}")
            expected += len(rows)
            if out.column(ERROR).null_count < len(rows):
                dead = dead or stack.enter_context(_dead_letters(dead_file))
                bad = out.filter(pc.is_valid(out.column(ERROR)))
                first, why = bad.column(ROW)[0].as_py(), bad.column(ERROR)[0].as_py()
                _warn("%s: row %d is a dead letter: %s (%d in this block)", split.url, first, why, len(bad), row=first)
                shard = pa.array([split.url] * len(bad), pa.string())
                dead.write_batch(pa.record_batch([shard, bad.column(ROW), bad.column(ERROR)], schema=DEAD_LETTERS))
                out = out.filter(pc.is_null(out.column(ERROR)))
                stats.add("rows_dead", len(bad))
            with stats.time("write"):
                writer.write_batch(out.select(schema.names))
            stats.add("rows_out", out.num_rows)
        if next(blocks, None) is not None:
            raise ReconciliationError(f"{split.url}: stage {stage.name} stopped at row {expected}, before the end")
        writer.add_key_value_metadata(work.file_metadata)
    read, written, lost = (int(stats.setdefault(n, 0)) for n in ("rows_in", "rows_out", "rows_dead"))
    if read != written + lost:
        raise ReconciliationError(f"{split.url}: {read} rows read, {written} written, {lost} dead")
    return True, dead is not None


def _dead_letters(path: str) -> pq.ParquetWriter:
    return pq.ParquetWriter(path, DEAD_LETTERS, compression="zstd", write_page_checksum=True)


def _dead_shard(split: Split, reason: str, stats: Stats, dead_file: str) -> tuple[bool, bool]:
    """A shard that cannot be read at all: one dead letter without a row number, and no rows counted."""
    stats.clear()
    stats.update(rows_in=0, rows_out=0, rows_dead=0, bad_shards=1)
    with _dead_letters(dead_file) as dead:
        dead.write_batch(pa.record_batch([[split.url], [None], [reason]], schema=DEAD_LETTERS))
    return False, True


def _ahead(blocks: Iterator[pa.RecordBatch], depth: int = 2) -> Iterator[pa.RecordBatch]:
    """The same blocks, read by a thread that stays at most `depth` blocks ahead. The first is read by the caller:
    most splits have no second, and need no thread."""
    first = next(blocks, None)
    second = next(blocks, None) if first is not None else None
    if second is None:
        yield from (b for b in (first,) if b is not None)
        return
    ready: queue.Queue[Any] = queue.Queue(depth)
    stopped = threading.Event()

    def put(item: Any) -> bool:
        while not stopped.is_set():
            try:
                ready.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def fill() -> None:
        try:
            for block in blocks:
                if not put(block):
                    return
            put(None)
        except BaseException as e:  # handed to the consumer, who raises it
            put(e)

    thread = threading.Thread(target=fill, name="tokzip-read-ahead", daemon=True)
    thread.start()
    try:
        yield from (first, second)
        while (item := ready.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stopped.set()
        thread.join()


class RunSplit(beam.DoFn):
    """`run_split` as a DoFn, which counts in Beam's metrics too.

    Asked for one more, it raises `DeadLettersError` once it has met more than `most_dead` dead rows itself: a job that
    can only fail need not go on. Where several workers share them, that is later; at the end, the launcher counts.
    """

    def __init__(self, stage: Stage, output: str, skip_bad: bool, most_dead: float = math.inf) -> None:
        self.stage, self.output, self.skip_bad, self.most_dead = stage, output, skip_bad, most_dead

    def setup(self) -> None:
        processes.share_arenas()
        self.dead: dict[str, int] = {}  # by split: a runner may try one again

    def process(self, split: Split, _ready: Any = None) -> Iterator[dict[str, Any]]:
        if sum(self.dead.values()) > self.most_dead:
            raise DeadLettersError(
                f"{self.output}: more rows than --max-dead-letters allows are dead letters already, with splits still "
                "to do. What is committed stays"
            )
        observed: list[tuple[str, float]] = []
        entry = run_split(split, self.stage, self.output, self.skip_bad, observed)
        metrics.update(entry, observed)
        self.dead[entry.name] = entry.dead
        yield asdict(entry)


class MapSplits(beam.PTransform):
    """Splits to manifest entries, through `stage`, into the data set at `output`.

    `ready` are side inputs that must be complete before the first split starts (a codebook that is being trained).
    `most_dead`: see `RunSplit`.
    """

    def __init__(
        self, stage: Stage, output: str, skip_bad: bool = False, ready: Any = None, most_dead: float = math.inf
    ) -> None:
        super().__init__()
        self.ready, self.stage = ready, stage
        self.run = RunSplit(stage, output, skip_bad, most_dead)

    def expand(self, splits: beam.PCollection) -> beam.PCollection:
        barrier = [] if self.ready is None else [beam.pvalue.AsIter(self.ready)]
        return splits | "Spread" >> beam.Reshuffle() | self.stage.name >> beam.ParDo(self.run, *barrier)
