"""The queue by which a pipeline that keeps running gets its splits: small files in the output, which Beam's `Watch`
looks for. Imports map_splits, splits, storage, transient, beam.

A queue is open while its file `<id>.open` is there; each split in it is a file `<id>-<number>.json`, which the
launcher writes, and the worker removes that has committed the split. A pipeline whose queue is closed, or was cleared
away by a later run, begins no further split and ends: so that is how it is told to drain, on any runner and wherever
its workers are.
"""

from __future__ import annotations

import contextlib
import logging
import os
import uuid
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import apache_beam as beam
from apache_beam.io.watch import PollResult, Watch
from apache_beam.transforms.window import TimestampedValue

from pipelines import storage
from pipelines.map_splits import RunSplit
from pipelines.splits import Split
from pipelines.stage import Stage
from pipelines.transient import StorageError

AHEAD = 1000  # splits that are in a queue at most


class Queue:
    """One run's queue, in the output folder or URL `output`."""

    def __init__(self, output: str) -> None:
        self.output, self.numbers = output, 0
        self.url = storage.join(_folder(output), uuid.uuid4().hex)

    def open(self) -> None:
        storage.publish_bytes(b"", self.output, f"{self.url}.open")

    def put(self, split: Split) -> str:
        """The URL of the split's file."""
        self.numbers += 1
        url = f"{self.url}-{self.numbers:012d}.json"
        storage.publish_json(asdict(split), self.output, url)
        return url

    def files(self) -> set[str]:
        """URLs of the splits that are not committed yet, and of what says that the queue is open."""
        return {u for u in storage.list_files(_folder(self.output), "") if u.startswith(self.url)}

    def close(self) -> None:
        """Withdraw every split that no worker has begun, and let the pipeline end."""
        storage.remove(f"{self.url}.open")
        for url in self.files():
            storage.remove(url)
        _remove_folder(self.output)


def clear(output: str) -> None:
    """Remove what a dead run left of its queue; a pipeline of it that still runs on a cluster ends."""
    for url in storage.list_files(_folder(output), ""):
        storage.remove(url)
    _remove_folder(output)


def _folder(output: str) -> str:
    return storage.join(output, "_tokzip", "queue")


def _remove_folder(output: str) -> None:
    if storage.is_local(output):
        with contextlib.suppress(OSError):
            os.rmdir(_folder(output))


def poll(queue: str) -> PollResult[str]:
    """The files of the splits in the queue (its URL); the last of them once it is closed.

    A split's event time is its number, in seconds: all that `Watch` need remember are the last of them. A store that
    does not answer is asked again at the next poll.
    """
    try:
        found = [u for u in storage.list_files(queue.rpartition("/")[0], "") if u.startswith(queue)]
    except StorageError as e:
        logging.getLogger(__name__).warning("the queue is looked at again: %s", e)
        return PollResult.incomplete([])
    numbered = [TimestampedValue(u, int(u[len(queue) + 1 : -len(".json")])) for u in found if u.endswith(".json")]
    return PollResult.incomplete(numbered) if f"{queue}.open" in found else PollResult.complete(numbered)


class RunQueued(RunSplit):
    """`run_split` for a (queue, file of the split in it), unless it was withdrawn."""

    def process(self, queued: tuple[str, str]) -> Iterator[dict[str, Any]]:
        _, url = queued
        if split := _read(url):
            yield from super().process(split)
            storage.remove(url)


def _read(url: str) -> Split | None:
    """The split of that file; None where there is none any more: it was withdrawn, or another attempt has done it."""
    try:
        found = storage.read_json(url)
    except FileNotFoundError:
        return None
    row_groups = found["row_groups"]
    return Split(**{**found, "row_groups": row_groups and tuple(row_groups)})


class MapQueue(beam.PTransform):
    """A pipeline's begin to manifest entries: `MapSplits` over the splits that come into the queue, until it is closed.

    poll_seconds: between two looks at the queue. A bad shard is a dead letter, since it must not end the others.
    """

    def __init__(self, queue: Queue, stage: Stage, poll_seconds: float) -> None:
        super().__init__()
        self.queue, self.stage, self.poll_seconds = queue, stage, poll_seconds

    def expand(self, begin: Any) -> beam.PCollection:
        # A listing made while files are added may have a later one and not the one before. With `AHEAD` in the queue
        # at most, that one is not so many numbers behind that it would be taken for seen.
        watch = Watch(poll, self.poll_seconds, timestamp_cursor=True, allowed_lateness=4 * AHEAD)
        return (
            begin
            | "Queue" >> beam.Create([self.queue.url])
            | "Watch" >> watch
            | "Spread" >> beam.Reshuffle()
            | self.stage.name >> beam.ParDo(RunQueued(self.stage, self.queue.output, skip_bad=True))
        )
