"""Drift: whether a run's rows cost more than was expected of them, and what retraining would save. Imports train."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pyarrow as pa

import tokzip_core as tz
from pipelines import reading, splits, storage, train
from pipelines.compress_stage import blob_bytes
from pipelines.manifest import Entry, Manifest
from pipelines.report import ratio
from pipelines.splits import Split
from pipelines.transient import retry
from tokzip_core.errors import TokzipError

_FEWEST_TOKENS = 10_000  # of fewer, the bits a token differ from the expected by chance
_MEASURED_BYTES = 16_000_000  # text of this run's splits that is coded again


def look(
    home: Manifest, planned: list[Split], entries: list[Entry], now: list[Entry], train_bytes: int, threshold: float
) -> dict[str, Any]:
    """What the rows of the entries `now` cost, for the summary: bits a token, and fractions of bytes.

    Where they cost more than expected by over `threshold`, a codebook is trained as a new data set of the same shards
    would train it, from the tokens stored, and a sample of these rows is coded by it: `retraining_saves` of their
    bytes; over `threshold` too, there is a `notice`.
    """
    tokens, spent, expected = (
        sum(e.counts.get(n, 0) for e in now) for n in ("tokens", "blob_bytes", "expected_blob_bytes")
    )
    if not tokens:
        return {}
    found: dict[str, Any] = {
        "tokens": int(tokens),
        "bits_per_token": ratio(8 * spent, tokens),
        "expected_bits_per_token": ratio(8 * expected, tokens),
        "excess": ratio(spent - expected, expected),
    }
    if tokens < _FEWEST_TOKENS or spent <= expected * (1 + threshold):
        return found
    try:
        found |= _retrain(home, planned, entries, now, train_bytes)
    except (TokzipError, OSError, pa.ArrowException) as e:  # the rows are committed: this must not fail their job
        return found | {"notice": f"this run's rows cost more than expected; what retraining saves is unknown: {e}"}
    if (found["retraining_saves"] or 0) > threshold:
        found["notice"] = (
            f"retraining would save {found['retraining_saves']:.1%} of the bytes of this run's rows "
            f"({found['retrained_bits_per_token']:.2f} bits a token): compress all shards into a new output folder"
        )
    return found


def _retrain(
    home: Manifest, planned: list[Split], entries: list[Entry], now: list[Entry], train_bytes: int
) -> dict[str, Any]:
    codebook = retry(tz.load_codebook, home.place("codebook.tzc"))
    made = {e.name: e for e in entries}
    sample = splits.sample(planned, train_bytes)
    share = train.share_of(sample, train_bytes)
    trainer = tz.Trainer(codebook.codec)
    for split in sample:
        for _, rows in _stored(home, made[split.name], codebook, share):
            trainer.add(rows)
    retrained = trainer.finish()
    names = {e.name for e in now}
    tokens = before = after = 0
    for split in splits.sample([s for s in planned if s.name in names], _MEASURED_BYTES):
        for blobs, rows in _stored(home, made[split.name], codebook, 1.0):
            tokens += len(rows.flatten())
            before += blob_bytes(blobs)
            after += blob_bytes(tz.encode(rows, retrained, checksum=blobs.type.checksum))
    return {
        "retrained_bits_per_token": ratio(8 * after, tokens),
        "retraining_saves": ratio(before - after, before),
        "measured_tokens": tokens,
    }


def _stored(
    home: Manifest, entry: Entry, codebook: tz.Codebook, share: float
) -> Iterator[tuple[pa.ExtensionArray, pa.ListArray]]:
    """The blobs and the tokens of the first `share` of a committed split's rows, a block at a time."""
    if entry.output is None:
        return
    left = math.ceil(entry.counts["rows_out"] * min(1.0, share))
    url = storage.join(home.output, entry.output["path"])
    with reading.input_errors(url), reading.open_parquet(url) as file:
        for batch in file.iter_batches(columns=["tokens"], use_threads=False):
            blobs = batch.column(0)[:left]
            yield blobs, tz.decode(blobs, codebook)
            left -= len(blobs)
            if not left:
                return
