"""Training a codebook on a sample of splits, in Beam. Imports compress_stage, splits and tokzip_core."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import apache_beam as beam
import pyarrow as pa

import tokzip_core as tz
from pipelines import reading, splits, storage
from pipelines.compress_stage import CompressStage, blob_bytes, tokenized
from pipelines.manifest import Manifest
from pipelines.splits import Split
from pipelines.stage import Stats
from pipelines.storage import InputError
from pipelines.tokenizing import Tokenizer

_HELD_OUT = 8  # of each block, the last eighth of its rows is the forecast's


class TrainCodebook(beam.PTransform):
    """A sample of splits to one codebook, saved in the data set; gives its id.

    Counts cross the shuffle, with an eighth of the rows (for the context codec, a bounded sample of rows too). Merging
    them is commutative, so the codebook is the same on every runner.
    """

    def __init__(self, stage: CompressStage, codec: str, share: float, skip_bad: bool) -> None:
        super().__init__()
        self.stage, self.codec, self.share, self.skip_bad = stage, codec, share, skip_bad

    def expand(self, sample: beam.PCollection) -> beam.PCollection:
        return (
            sample
            | "Spread sample" >> beam.Reshuffle()
            | "Count" >> beam.Map(count_tokens, self.stage, self.codec, self.share, self.skip_bad)
            | "Merge" >> beam.CombineGlobally(_MergeCounts(self.codec))
            | "Save" >> beam.Map(_save_codebook, self.stage.output)
        )


@dataclass
class Counts:
    """A trainer that has seen all rows but some, and those: they tell what a codebook costs on rows that it has not."""

    trainer: tz.Trainer
    held_out: list[pa.ListArray]

    @property
    def tokens(self) -> int:
        return self.trainer.tokens + sum(len(rows.flatten()) for rows in self.held_out)

    def add(self, rows: pa.ListArray) -> None:
        cut = len(rows) - len(rows) // _HELD_OUT
        self.trainer.add(rows[:cut])
        if cut < len(rows):
            self.held_out.append(pa.concat_arrays([rows[cut:]]))  # a slice would be pickled with its whole block

    def merge(self, other: Counts) -> None:
        self.trainer.merge(other.trainer)
        self.held_out += other.held_out

    def finish(self) -> tuple[tz.Codebook, dict[str, float | None]]:
        """The codebook for all rows, and what is recorded of its training.

        held_out_bits: what the held out cost, row ends and all, under a codebook for the others; None for none.
        """
        tokens = sum(len(rows.flatten()) for rows in self.held_out)
        held_out_bits = None
        if tokens and self.trainer.tokens:
            codebook = self.trainer.finish()
            held_out_bits = 8 * sum(blob_bytes(tz.encode(rows, codebook)) for rows in self.held_out) / tokens
        everything = tz.Trainer(self.trainer.codec).merge(self.trainer)
        for rows in self.held_out:
            everything.add(rows)
        facts = {"tokens": everything.tokens, "entropy_bits": everything.entropy, "held_out_bits": held_out_bits}
        return everything.finish(), facts


def share_of(sample: list[Split], max_bytes: int) -> float:
    """How much of each split of a sample to take so that `max_bytes` are taken; over 1 where there is less."""
    return max_bytes / max(1, sum(s.bytes for s in sample))


def count_tokens(split: Split, stage: CompressStage, codec: str, share: float, skip_bad: bool) -> Counts:
    """What the first `share` of the split's text (all of it from 1 on) gives to training."""
    counts = Counts(tz.Trainer(codec), [])
    for rows in sampled_rows(split, stage.tokenizer(), stage.text_column, share, skip_bad):
        counts.add(rows)
    return counts


def sampled_rows(
    split: Split, tokenizer: Tokenizer, column: str, share: float, skip_bad: bool
) -> Iterator[pa.ListArray]:
    """The tokens of the first rows of the split, of `share` of its text."""
    stats = Stats()
    try:
        with reading.open_shard(split.url) as reader:
            blocks = _beginning(splits.blocks(split, reader, [column], stats), column, split.bytes * share)
            for _, rows, _ in tokenized(blocks, tokenizer, column, stats):
                yield rows
    except InputError:
        if not skip_bad:
            raise


def _beginning(blocks: Iterator[pa.RecordBatch], column: str, left: float) -> Iterator[pa.RecordBatch]:
    """The first rows of the blocks, of `left` bytes in `column`."""
    for block in blocks:
        size = block.column(column).nbytes
        yield block.slice(0, math.ceil(block.num_rows * min(1.0, left / max(1, size))))
        left -= size
        if left <= 0:
            return


class _MergeCounts(beam.CombineFn):
    def __init__(self, codec: str) -> None:
        self.codec = codec

    def create_accumulator(self) -> Counts:
        return Counts(tz.Trainer(self.codec), [])

    def add_input(self, accumulator: Counts, counts: Counts) -> Counts:
        accumulator.merge(counts)
        return accumulator

    def merge_accumulators(self, accumulators: Iterable[Counts]) -> Counts:
        merged = self.create_accumulator()
        for a in accumulators:
            merged.merge(a)
        return merged

    def extract_output(self, accumulator: Counts) -> Counts:
        return accumulator


def _save_codebook(counts: Counts, output: str) -> str:
    codebook, facts = counts.finish()
    place = Manifest(output).place
    storage.publish_json(facts, output, place("training.json"))
    storage.publish_bytes(codebook.to_bytes(), output, place("codebook.tzc"))
    return codebook.id
