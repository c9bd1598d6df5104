"""Stage 2: token blob blocks to embedding blocks. Imports inference, tokzip_core."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from dataclasses import astuple, dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

import tokzip_core as tz
from pipelines import processes
from pipelines.inference import CachedEncoder, EmbeddingModel, ModelError, load_model
from pipelines.inference import rows as ragged
from pipelines.inference.output import SCALE, Output
from pipelines.stage import BOOKKEEPING, ERROR, ROW, Stage, Stats, Work, once
from pipelines.storage import InputError
from pipelines.transient import retry
from tokzip_core.cache import parse_cache_spec

# Blocks are gathered, or cut, until they make full batches of many lengths, and no longer: what is held is bounded.
_GATHER_TOKENS = 65_536
_GATHER_ROWS = 8192
_loads: list[tuple[str, float]] = []  # what loading models took, until the next split observes it


@dataclass(frozen=True)
class EmbedStage(Stage):
    """Decode, look up, and run the model on what is new.

    codebook: URL of the codebook of the `tokens` column; None where that is a plain list of integers.
    vocabulary: digest of the tokenizer that the tokens come from, refused when it is not the model's; None:
    unknown. precision: fp32 or bf16, the same on every worker. cache_values: how the cache stores vectors, one of
    `tokzip_core.cache.CODINGS`; a lossy one changes the vectors. fingerprint: of the model as the launcher loaded it,
    which every worker must find; None: unknown.
    """

    model: str
    codebook: str | None = None
    vocabulary: str | None = None
    cache: str = "none"
    cache_values: str = "lossless"
    pooling: str = "auto"
    normalize: str = "auto"
    max_length: int | None = None
    long_rows: str = "truncate"
    batch_tokens: int | None = None
    precision: str = "fp32"
    output_type: str = "float32"
    dimensions: int | None = None
    carry: tuple[str, ...] = ()
    column: str = "tokens"
    fingerprint: str | None = None

    name = "embed"

    @property
    def key(self) -> str:
        return json.dumps([self.name, *astuple(self)])

    def columns(self, source: pa.Schema) -> list[str]:
        for c in (self.column, *self.carry):
            if c not in source.names:
                raise InputError(f"no column {c!r}; there are {', '.join(source.names)}")
        kind = source.field(self.column).type
        if not (isinstance(kind, tz.TokenBlobType) if self.codebook else _is_integer_list(kind)):
            expected = "token blobs" if self.codebook else "lists of integers"
            raise InputError(f"column {self.column!r} is {kind}, expected {expected}")
        if taken := {"embedding", SCALE, ROW, ERROR} & set(self.carry):
            raise InputError(f"a column called {min(taken)} cannot be carried")
        return list(dict.fromkeys((self.column, *self.carry)))

    def _open(self) -> EmbedWork:
        try:
            model = self._load(self.precision, None)
            if self.fingerprint not in (None, model.fingerprint):
                raise ModelError(
                    f"model {self.model}: another one ({model.fingerprint[:12]}…) than the launcher's "
                    f"({self.fingerprint[:12]}…)"
                )
        except ModelError as e:
            raise ModelError(f"worker {socket.gethostname()}: {e}") from e
        return EmbedWork(self, model)

    def settled(self, calibration: ragged.Rows | None) -> tuple[EmbedStage, EmbeddingModel]:
        """This stage with a precision settled, `auto` by these rows; the model loaded for it serves this process,
        until `close`, in the place of one loaded before, whose weights may have been others."""
        model = self._load(self.precision, calibration)
        stage = replace(self, precision=model.precision, fingerprint=model.fingerprint)
        stage.close()
        once(stage.key, lambda: EmbedWork(stage, model))
        return stage, model

    def _load(self, precision: str, calibration: ragged.Rows | None) -> EmbeddingModel:
        start, before = time.perf_counter(), processes.peak_memory()
        model = load_model(
            self.model,
            pooling=self.pooling,
            normalize=self.normalize,
            max_length=self.max_length,
            long_rows=self.long_rows,
            batch_tokens=self.batch_tokens,
            precision=precision,
            calibration=calibration,
        )
        _loads.append(("load_model_latency_milli_secs", 1000 * (time.perf_counter() - start)))
        _loads.append(("model_byte_size", processes.peak_memory() - before))  # as RunInference tells it
        return model


def same_vocabulary(model: str, own: str | None, tokens: str | None) -> None:
    """Raise `ModelError` where the digests of the model's vocabulary and the tokens' are known and differ."""
    if own and tokens and own != tokens:
        raise ModelError(
            f"the tokens come from a tokenizer with another vocabulary ({tokens[:12]}…) "
            f"than that of model {model} ({own[:12]}…)"
        )


def _is_integer_list(kind: pa.DataType) -> bool:
    return (pa.types.is_list(kind) or pa.types.is_large_list(kind)) and pa.types.is_integer(kind.value_type)


class EmbedWork(Work):
    """`model`, `encoder` and `output` are what the stage runs."""

    def __init__(self, stage: EmbedStage, model: EmbeddingModel) -> None:
        self.stage, self.model = stage, model
        cache = parse_cache_spec(stage.cache)
        self.codebook = retry(tz.load_codebook, stage.codebook) if stage.codebook else None
        same_vocabulary(stage.model, model.settings.vocabulary, stage.vocabulary)
        self.output = Output(model.dimension, stage.dimensions, stage.output_type)
        self.encoder = CachedEncoder(model, cache, stage.cache_values)

    @property
    def identity(self) -> dict[str, str]:
        return {
            "compute_dtype": self.model.precision,
            "model": self.model.fingerprint,
            "output": f"{self.output.type} {self.output.kept}",
            "values": "exact" if self.encoder.cache.exact else self.stage.cache_values,
            "carry": ",".join(self.stage.carry),
            "stage": "embed 2",
        }

    @property
    def notes(self) -> dict[str, str]:
        expected = self.model.settings.expected_texts  # whether the tokens are of such texts, nobody can tell
        return {
            "batches": self.model.batches,
            "exact": str(self.model.exact).lower(),
            "linear": "prepacked" if self.model.prepacked else "plain",
            **({"texts_expected": expected} if expected else {}),
        }

    @property
    def file_metadata(self) -> dict[str, str]:
        s = self.model.settings
        described = {
            "fingerprint": self.model.fingerprint,
            "precision": self.model.precision,
            "dimension": self.output.kept,
            "output_type": self.output.type,
            "pooling": s.pooling,
            "normalize": s.normalize,
            "max_length": s.max_length,
            "long_rows": s.long_rows,
        }
        return {"tokzip.model": json.dumps(described, sort_keys=True)}

    def schema(self, source: pa.Schema) -> pa.Schema:
        kept = (source.field(c).with_metadata(None) for c in self.stage.carry)
        return pa.schema([*kept, *self.output.fields])

    def run(self, blocks: Iterator[pa.RecordBatch], stats: Stats) -> Iterator[pa.RecordBatch]:
        stats.observed += _loads
        _loads.clear()
        held: list[tuple[pa.RecordBatch, pa.ListArray, pa.Array]] = []
        tokens = rows = 0
        for block in (b.slice(at, _GATHER_ROWS) for b in blocks for at in range(0, len(b) or 1, _GATHER_ROWS)):
            with stats.time("decode"):
                lists, errors = self._tokens(block)
            count = lists.offsets[-1].as_py() - lists.offsets[0].as_py()
            stats.add("tokens", count)
            held.append((block, self._within_reach(lists), errors))
            tokens, rows = tokens + count, rows + len(lists)
            if tokens >= _GATHER_TOKENS or rows >= _GATHER_ROWS:
                yield from self._embedded(held, stats)
                held, tokens, rows = [], 0, 0
        yield from self._embedded(held, stats)
        self.encoder.flush()

    def close(self) -> None:
        self.encoder.close()

    def _embedded(
        self, held: list[tuple[pa.RecordBatch, pa.ListArray, pa.Array]], stats: Stats
    ) -> Iterator[pa.RecordBatch]:
        if not held:
            return
        good = np.concatenate([np.asarray(errors.is_null()) for _, _, errors in held])
        rows = ragged.from_arrow(pa.concat_arrays([lists for _, lists, _ in held]))
        vectors = np.zeros((len(rows), self.model.dimension), np.float32)
        vectors[good] = self.encoder.encode(rows.take(np.flatnonzero(good)), stats)
        start = 0
        for block, _, errors in held:
            part = slice(start, start := start + len(block))
            columns = self.output.columns(vectors[part], ~good[part])
            schema = pa.schema([*self.schema(block.schema), *BOOKKEEPING])
            kept = [block.column(c) for c in self.stage.carry]
            yield pa.record_batch([*kept, *columns, block.column(ROW), errors], schema=schema)

    def _within_reach(self, lists: pa.ListArray) -> pa.ListArray:
        """The rows as far as the model reads them, and a token more where a row goes on: it is counted as cut."""
        s = self.model.settings
        return pc.list_slice(lists, 0, s.max_length - s.specials + 1) if s.long_rows == "truncate" else lists

    def _tokens(self, block: pa.RecordBatch) -> tuple[pa.ListArray, pa.Array]:
        """Token ids, list<int32>, none in bad rows; and the errors, with those of bad rows added."""
        column = block.column(self.stage.column)
        bad = np.asarray(block.column(ERROR).is_valid())
        reasons = dict.fromkeys(np.flatnonzero(np.asarray(column.is_null()) & ~bad).tolist(), "null tokens")
        bad[list(reasons)] = True
        lists = self._decode(column, 0, reasons) if self.codebook else column.cast(pa.list_(pa.int64()))
        bad[list(reasons)] = True
        offsets = lists.offsets.to_numpy()
        rows = ragged.Rows(lists.values.to_numpy(), offsets[:-1].astype(np.int64), np.diff(offsets).astype(np.int64))
        refused = {i: reason for i, reason in self.model.refused(rows).items() if not bad[i]}
        reasons |= refused
        bad[list(refused)] = True
        if not bad.any():
            return lists.cast(pa.list_(pa.int32())), block.column(ERROR)
        errors = block.column(ERROR).to_pylist()
        for i, reason in reasons.items():
            errors[i] = errors[i] or reason
        empty = pa.scalar([], lists.type)
        lists = pc.if_else(pa.array(~bad), lists, empty)
        return lists.cast(pa.list_(pa.int32())), pa.array(errors, pa.string())

    def _decode(self, blobs: pa.Array, first: int, reasons: dict[int, str]) -> pa.ListArray:
        """The tokens; corrupt rows, found by halving, are null and named in `reasons`."""
        try:
            return tz.decode(blobs, self.codebook)
        except tz.CorruptBlobError:
            if len(blobs) == 1:
                reasons.setdefault(first, "corrupt token blob")
                return pa.nulls(1, pa.list_(pa.int32()))
        half = len(blobs) // 2
        left = self._decode(blobs[:half], first, reasons)
        return pa.concat_arrays([left, self._decode(blobs[half:], first + half, reasons)])
