"""Training a codebook on a sample of splits, in Beam. Imports compress_stage, splits and tokzip_core."""

from __future__ import annotations

import math
from collections.abc import Iterable

import apache_beam as beam

import tokzip_core as tz
from pipelines import reading, splits, storage
from pipelines.compress_stage import CompressStage, tokenized
from pipelines.manifest import Manifest
from pipelines.splits import Split
from pipelines.stage import Stats
from pipelines.storage import InputError


class TrainCodebook(beam.PTransform):
    """A sample of splits to one codebook, saved in the data set; gives its id.

    Counts cross the shuffle (for the context codec, a bounded sample of rows too). Merging them is commutative, so the
    codebook is the same on every runner.
    """

    def __init__(self, stage: CompressStage, codec: str, share: float, skip_bad: bool) -> None:
        super().__init__()
        self.stage, self.codec, self.share, self.skip_bad = stage, codec, share, skip_bad

    def expand(self, sample: beam.PCollection) -> beam.PCollection:
        return (
            sample
            | "Spread sample" >> beam.Reshuffle()
            | "Count" >> beam.Map(count_tokens, self.stage, self.codec, self.share, self.skip_bad)
            | "Merge" >> beam.CombineGlobally(_MergeTrainers(self.codec))
            | "Save" >> beam.Map(_save_codebook, self.stage.output)
        )


def count_tokens(split: Split, stage: CompressStage, codec: str, share: float, skip_bad: bool) -> tz.Trainer:
    """A trainer that has seen the first `share` of the split's text (all of it from 1 on), to the end of a block."""
    trainer = tz.Trainer(codec)
    tokenizer = stage.tokenizer()
    stats, seen, wanted = Stats(), 0, math.ceil(split.bytes * share)
    try:
        with reading.open_shard(split.url) as reader:
            blocks = splits.blocks(split, reader, [stage.text_column], stats)
            for block, lists, _ in tokenized(blocks, tokenizer, stage.text_column, stats):
                trainer.add(lists)
                seen += block.column(stage.text_column).nbytes
                if seen >= wanted:
                    break
    except InputError:
        if not skip_bad:
            raise
    return trainer


class _MergeTrainers(beam.CombineFn):
    def __init__(self, codec: str) -> None:
        self.codec = codec

    def create_accumulator(self) -> tz.Trainer:
        return tz.Trainer(self.codec)

    def add_input(self, accumulator: tz.Trainer, trainer: tz.Trainer) -> tz.Trainer:
        accumulator.merge(trainer)
        return accumulator

    def merge_accumulators(self, accumulators: Iterable[tz.Trainer]) -> tz.Trainer:
        merged = self.create_accumulator()
        for a in accumulators:
            merged.merge(a)
        return merged

    def extract_output(self, accumulator: tz.Trainer) -> tz.Trainer:
        return accumulator


def _save_codebook(trainer: tz.Trainer, output: str) -> str:
    codebook = trainer.finish()
    place = Manifest(output).place
    trained_on = {"tokens": trainer.tokens, "entropy_bits": trainer.entropy}
    storage.publish_json(trained_on, output, place("training.json"))
    storage.publish_bytes(codebook.to_bytes(), output, place("codebook.tzc"))
    return codebook.id
