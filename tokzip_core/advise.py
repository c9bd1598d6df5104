"""Which codec for these tokens: every codec measured on a sample of them. Imports blob, codebook, codecs, columns."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa

from tokzip_core.blob import decode, encode
from tokzip_core.codebook import train
from tokzip_core.codecs import codecs as codec_names
from tokzip_core.columns import Column, Int64s, numbered, token_column
from tokzip_core.errors import InvalidTokensError, TokzipError

PREFERENCES = {
    "size": "the fewest bits a token",
    "speed": "the fastest to decode of those that save a twentieth of raw's bits",
    "balanced": "the smallest that decodes at least a third as fast as pyarrow reads Parquet zstd-3",
}
YARDSTICK = "Parquet zstd-3"
SAMPLE_TOKENS = 4_000_000
LONGEST_ROW = 1 << 16  # of a longer row only its beginning is measured
_RUNS = 60  # the sample is so many runs of rows, spread evenly over the tokens,
_HELD_OUT = 5  # and each fifth of them is held out: other documents than those trained on
_SAVING = 0.95  # of raw's bits is what a codec must come down to
_SHORTEST = 0.01  # seconds that a measurement takes at least


@dataclass(frozen=True)
class Measured:
    """One codec on the held-out rows. Rates are tokens a second, one thread; `memory_bytes` is what its tables take.

    bits: a token, of the blobs alone (for Parquet of the whole file); total_bits: with the codebook spread over the
    corpus. pareto: no codec is both smaller (total_bits) and faster to decode.
    """

    name: str
    bits: float
    total_bits: float
    codebook_bytes: int
    memory_bytes: int
    train_seconds: float
    encode_rate: float
    decode_rate: float
    pareto: bool = False


@dataclass(frozen=True)
class Advice:
    """What was measured, and the codec recommended for the wish `prefer`; `str()` of it is a table."""

    recommended: str
    why: str
    prefer: str
    rows: list[Measured]  # a codec each, by total_bits
    yardstick: Measured
    trained_on: int  # tokens
    measured_on: int  # tokens, held out
    corpus_tokens: int

    def __str__(self) -> str:
        head = f"{'':17}{'bits':>8}{'+ codebook':>12}{'codebook':>12}{'tables':>11}{'encode M/s':>12}{'decode M/s':>12}"
        lines = [
            f"trained on {self.trained_on:,} tokens, measured on {self.measured_on:,} others; "
            f"bits a token, codebooks spread over {self.corpus_tokens:,} tokens; one thread",
            head,
        ]
        for row in [*self.rows, self.yardstick]:
            mark = "→" if row.name == self.recommended else " "
            star = "*" if row.pareto else " "
            lines.append(
                f"{mark}{star}{row.name:15}{row.bits:8.3f}{row.total_bits:12.3f}{row.codebook_bytes:12,}"
                f"{row.memory_bytes:11,}{row.encode_rate / 1e6:12.1f}{row.decode_rate / 1e6:12.1f}"
            )
        lines.append("* none is both smaller and faster to decode")
        return "\n".join([*lines, self.why])


def advise(
    tokens: Any,
    prefer: str = "balanced",
    codecs: Sequence[str] | None = None,
    corpus_tokens: int | None = None,
    sample_tokens: int = SAMPLE_TOKENS,
    rounds: int = 5,
) -> Advice:
    """Measure codecs on a sample of `tokens`, and recommend one.

    tokens: as `train` takes them. codecs: names, by default all. corpus_tokens: over how many tokens a codebook's bytes
    are spread, by default those of `tokens`. The sample (about `sample_tokens`) and its division into rows to train on
    and rows to measure are the same every time; speeds are medians of `rounds` in which all codecs take turns.
    `prefer` is a key of PREFERENCES, which says what each recommends. Raises TokzipError for another wish,
    InvalidTokensError for fewer than two rows with tokens, UnknownCodecError.
    """
    if prefer not in PREFERENCES:
        raise TokzipError(f"no wish is called {prefer!r}; there are {', '.join(PREFERENCES)}")
    names = codec_names() if codecs is None else [codecs] if isinstance(codecs, str) else list(codecs)
    if not names:
        raise TokzipError("no codecs to measure")
    training, held_out, total = sample(tokens, sample_tokens)
    corpus = corpus_tokens or total
    n = len(held_out.flatten())
    yardstick, turns = _parquet(held_out, corpus)
    rows, runs = [], {YARDSTICK: turns}
    for name in dict.fromkeys(names):
        row, runs[name] = _codec(name, training, held_out, corpus)
        rows.append(row)
    seconds = _take_turns(runs, rounds)

    def timed(row: Measured) -> Measured:
        return replace(row, encode_rate=n / seconds[row.name][0], decode_rate=n / seconds[row.name][1])

    yardstick = timed(yardstick)
    rows = sorted(map(timed, rows), key=lambda r: r.total_bits)
    rows = [replace(r, pareto=_on_frontier(r, rows)) for r in rows]
    recommended = recommend(rows, yardstick, prefer)
    return Advice(
        recommended.name,
        _why(recommended, yardstick, prefer, rows),
        prefer,
        rows,
        yardstick,
        len(training.flatten()),
        n,
        corpus,
    )


def recommend(rows: Sequence[Measured], yardstick: Measured, prefer: str) -> Measured:
    """The one of `rows` that PREFERENCES[prefer] says.

    Differences that another measurement may not show do not decide: of those within a tenth of the speed, "speed" takes
    the smallest; of those within a hundredth of the size, "balanced" takes the fastest.
    """
    if prefer == "size":
        return min(rows, key=lambda r: r.total_bits)
    able = _saving(rows) or [r for r in rows if r.name == "raw"] or list(rows)
    fastest = max(able, key=lambda r: r.decode_rate)
    if prefer == "speed":
        return min((r for r in able if r.decode_rate >= 0.9 * fastest.decode_rate), key=lambda r: r.total_bits)
    quick = [r for r in able if r.decode_rate >= yardstick.decode_rate / 3] or [fastest]
    least = min(r.total_bits for r in quick)
    return max((r for r in quick if r.total_bits <= 1.01 * least), key=lambda r: r.decode_rate)


def _saving(rows: Sequence[Measured]) -> list[Measured]:
    """Those that save a twentieth of raw's bits."""
    raw = next((r.total_bits for r in rows if r.name == "raw"), math.inf)
    return [r for r in rows if r.total_bits <= _SAVING * raw]


def _why(row: Measured, yardstick: Measured, prefer: str, rows: Sequence[Measured]) -> str:
    wish = PREFERENCES[prefer]
    if prefer != "size" and not _saving(rows):
        wish = "no codec saves a twentieth of raw's bits here"
    return (
        f"{row.name}, for {prefer}: {wish}. {row.total_bits:.2f} bits a token against "
        f"{yardstick.bits:.2f} of {yardstick.name}, decoded {row.decode_rate / yardstick.decode_rate:.2g} times as fast"
    )


def _on_frontier(row: Measured, rows: Sequence[Measured]) -> bool:
    better = (r for r in rows if r.total_bits <= row.total_bits and r.decode_rate >= row.decode_rate)
    return all((r.total_bits, r.decode_rate) == (row.total_bits, row.decode_rate) for r in better)


def sample(tokens: Any, most: int) -> tuple[pa.ListArray, pa.ListArray, int]:
    """Rows to train on, rows to measure (list<int32>, about `most` tokens together), and how many tokens there are.

    Both are runs of neighbouring rows from all over the corpus; null rows are left out. Raises InvalidTokensError.
    """
    columns = [token_column(array, first) for first, array in numbered(tokens)]
    total = sum(int((c.ends - c.starts).sum()) for c in columns)
    training, held_out = _runs(columns, total, most)
    if not len(training.flatten()) or not len(held_out.flatten()):  # rows are few or long: the last are held out
        every = pa.concat_arrays(_runs(columns, total, total))
        every = every.filter(pa.array(np.diff(every.offsets.to_numpy()) > 0))
        if len(every) < 2:
            raise InvalidTokensError(f"{len(every)} rows with tokens; it takes some to train on and others to measure")
        cut = len(every) - max(1, len(every) // _HELD_OUT)
        training, held_out = every[:cut], every[cut:]
    return training, held_out, total


def _runs(columns: list[Column], total: int, most: int) -> tuple[pa.ListArray, pa.ListArray]:
    """The rows that begin in the first part of each run: those of some runs, and those of the held out."""
    taken: tuple[list[Any], list[Any]] = ([], [])
    lengths: tuple[list[Int64s], list[Int64s]] = ([], [])
    before, run = 0, max(1, -(-total // _RUNS))
    for column in columns:
        sizes = column.ends - column.starts
        at = before + np.cumsum(sizes) - sizes
        before += int(sizes.sum())
        kept = at % run < run * min(1.0, most / max(1, total))
        if column.valid is not None:
            kept &= column.valid
        held = at // run % _HELD_OUT == _HELD_OUT - 1
        for i, chosen in enumerate((kept & ~held, kept & held)):
            starts = column.starts[chosen]
            ends = np.minimum(column.ends[chosen], starts + LONGEST_ROW)
            taken[i].append(Column(column.values, starts, ends, None).tokens())
            lengths[i].append(ends - starts)
    return _rows(taken[0], lengths[0]), _rows(taken[1], lengths[1])


def _rows(taken: list[Any], lengths: list[Int64s]) -> pa.ListArray:
    flat = np.concatenate([np.empty(0, np.uint32), *taken]).view(np.int32)
    ends = np.cumsum(np.concatenate([np.zeros(1, np.int64), *lengths]))
    return pa.ListArray.from_arrays(pa.array(ends.astype(np.int32)), pa.array(flat))


Turns = tuple[Callable[[], Any], Callable[[], Any]]  # encode, decode


def _codec(name: str, training: pa.ListArray, held_out: pa.ListArray, corpus: int) -> tuple[Measured, Turns]:
    import pyarrow.compute as pc

    start = time.perf_counter()
    codebook = train(training, codec=name)
    took = time.perf_counter() - start
    blobs = encode(held_out, codebook)
    if not decode(blobs, codebook).equals(held_out):
        raise TokzipError(f"codec {name!r} does not give back these tokens: this is a bug of tokzip, please report it")
    bits = 8 * (pc.sum(pc.binary_length(blobs.storage)).as_py() or 0) / len(held_out.flatten())
    size = len(codebook.to_bytes())
    memory = _array_bytes(codebook._tables, set())
    row = Measured(name, bits, bits + 8 * size / corpus, size, memory, took, 0.0, 0.0)
    return row, (lambda: encode(held_out, codebook), lambda: decode(blobs, codebook))


def _parquet(held_out: pa.ListArray, corpus: int) -> tuple[Measured, Turns]:
    """The same rows as pyarrow writes them: lists of the narrowest unsigned integers, zstd-3, one thread."""
    import pyarrow.parquet as pq

    most = int(held_out.flatten().to_numpy().max())
    table = pa.table({"tokens": held_out.cast(pa.list_(pa.uint16() if most < 1 << 16 else pa.uint32()))})

    def write() -> pa.Buffer:
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, compression="zstd", compression_level=3)
        return sink.getvalue()

    stored = write()

    def read() -> pa.Table:
        return pq.ParquetFile(pa.BufferReader(stored)).read(use_threads=False)

    bits = 8 * stored.size / len(held_out.flatten())
    return Measured(YARDSTICK, bits, bits, 0, 0, 0.0, 0.0, 0.0), (write, read)


def _take_turns(subjects: dict[str, Turns], rounds: int) -> dict[str, tuple[float, float]]:
    """Median seconds of (encode, decode) by name. All take turns, so that what else the machine does hits all alike;
    the first turn, which compiles, only says how often one must be repeated to be measured."""
    repeats: dict[tuple[str, int], int] = {}
    seconds: dict[tuple[str, int], list[float]] = {}
    for name, turns in subjects.items():
        for i, turn in enumerate(turns):
            turn()
            start = time.perf_counter()
            turn()
            took = time.perf_counter() - start
            repeats[name, i] = min(100, 1 + int(_SHORTEST / max(took, 1e-9)))
    for _ in range(max(1, rounds)):
        for name, turns in subjects.items():
            for i, turn in enumerate(turns):
                start = time.perf_counter()
                for _ in range(repeats[name, i]):
                    turn()
                seconds.setdefault((name, i), []).append((time.perf_counter() - start) / repeats[name, i])
    return {n: (statistics.median(seconds[n, 0]), statistics.median(seconds[n, 1])) for n in subjects}


def _array_bytes(held: Any, seen: set[int]) -> int:
    """Bytes of the arrays that an object holds, each counted once."""
    if isinstance(held, np.ndarray):
        while isinstance(held.base, np.ndarray):
            held = held.base
        fresh = id(held) not in seen
        seen.add(id(held))
        return held.nbytes if fresh else 0
    parts = held if isinstance(held, list | tuple) else vars(held).values() if hasattr(held, "__dict__") else ()
    return sum(_array_bytes(part, seen) for part in parts)
