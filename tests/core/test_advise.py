"""`tz.advise`: the sample, what is measured on it, and the rule behind each recommendation."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

import tokzip_core as tz
from tokzip_core.advise import Measured, recommend, sample


def text_like(n: int, seed: int = 0, row: int = 50) -> pa.ListArray:
    """Ids with some order: each follows from the one before, or is drawn anew."""
    rng = np.random.default_rng(seed)
    ids = (rng.zipf(1.3, n) % 3_000).astype(np.int32)
    follows = rng.random(n) < 0.6
    ids[1:][follows[1:]] = (ids[:-1][follows[1:]] * 7 + 1) % 3_000
    return pa.ListArray.from_arrays(np.arange(0, n + 1, row, dtype=np.int32), ids)


@pytest.fixture(scope="module")
def advice() -> tz.Advice:
    return tz.advise(text_like(100_000), prefer="size", rounds=1)


def test_every_codec_is_measured_on_rows_that_it_was_not_trained_on(advice: tz.Advice) -> None:
    assert {r.name for r in advice.rows} == set(tz.codecs())
    training, held_out, total = sample(text_like(100_000), 1_000_000)
    assert (advice.trained_on, advice.measured_on) == (len(training.flatten()), len(held_out.flatten()))
    assert advice.trained_on + advice.measured_on == advice.corpus_tokens == total == 100_000
    for row in advice.rows:
        codebook = tz.train(training, codec=row.name)
        blobs = tz.encode(held_out, codebook)
        assert row.bits * advice.measured_on == pytest.approx(8 * sum(len(b.as_py()) for b in blobs.storage))
        assert row.codebook_bytes == len(codebook.to_bytes())
        assert row.total_bits == pytest.approx(row.bits + 8 * row.codebook_bytes / 100_000)
        assert row.encode_rate > 0
        assert row.decode_rate > 0
    memory = {r.name: r.memory_bytes for r in advice.rows}
    assert memory["raw"] == 0
    assert memory["context"] > 10_000


def test_the_table_shows_all_and_marks_the_pareto_set(advice: tz.Advice) -> None:
    lines = str(advice).splitlines()
    for row in [*advice.rows, advice.yardstick]:
        (line,) = (line for line in lines if line[2:17].strip() == row.name)
        assert f"{row.bits:.3f}" in line
        assert ("→" in line) == (row.name == advice.recommended)
        assert ("*" in line) == row.pareto
        beaten = any(o.total_bits < row.total_bits and o.decode_rate > row.decode_rate for o in advice.rows)
        assert not (beaten and row.pareto)
    assert next(r for r in advice.rows if r.name == advice.recommended).pareto
    assert lines[-1] == advice.why


def test_size_is_the_least_bits_with_the_codebook_and_for_a_larger_corpus_it_weighs_less(advice: tz.Advice) -> None:
    assert advice.recommended == min(advice.rows, key=lambda r: r.total_bits).name
    large = tz.advise(text_like(100_000), "size", ["huffman", "huffman-o1"], corpus_tokens=10**9, rounds=1)
    for row in large.rows:
        assert row.total_bits == pytest.approx(row.bits + 8 * row.codebook_bytes / 1e9)


def rows(**measured: tuple[float, float]) -> list[Measured]:
    """Codecs of (total bits, decoding rate)."""
    return [Measured(name.replace("_", "+"), bits, bits, 0, 0, 0, 1, rate) for name, (bits, rate) in measured.items()]


@pytest.mark.parametrize(
    ("prefer", "measured", "expected"),
    [
        ("size", {"raw": (16, 800), "huffman": (10.7, 300), "context": (7.5, 6)}, "context"),
        ("speed", {"raw": (16, 800), "huffman": (10.7, 300), "context": (7.5, 6)}, "huffman"),
        ("balanced", {"raw": (16, 800), "huffman": (10.7, 300), "o1": (9.1, 60), "context": (7.5, 6)}, "o1"),
        ("balanced", {"raw": (16, 800), "huffman": (10.7, 300), "context": (7.5, 40)}, "context"),
        # nothing compresses: raw, for whoever wants speed
        ("speed", {"raw": (16, 800), "huffman": (16.1, 300), "context": (15.9, 6)}, "raw"),
        ("size", {"raw": (16, 800), "huffman": (16.1, 300), "context": (15.9, 6)}, "context"),
        # what another measurement may turn round does not decide
        ("speed", {"raw": (16, 800), "a": (10.7, 300), "b": (10.0, 280)}, "b"),
        ("balanced", {"raw": (16, 800), "a": (10.7, 300), "b": (10.69, 130)}, "a"),
        # all are slow
        ("balanced", {"raw": (16, 30), "a": (9, 20), "b": (8, 10)}, "a"),
    ],
)
def test_what_is_recommended(prefer: str, measured: dict[str, tuple[float, float]], expected: str) -> None:
    yardstick = Measured("Parquet", 13, 13, 0, 0, 0, 1, 100)
    assert recommend(rows(**measured), yardstick, prefer).name == expected


def test_the_sample_is_spread_bounded_and_the_same_every_time() -> None:
    tokens = text_like(1_000_000)
    training, held_out, total = sample(tokens, 100_000)
    again = sample(pa.chunked_array([tokens[:777], tokens[777:]]), 100_000)
    assert again[0].equals(training)
    assert again[1].equals(held_out)
    taken = len(training.flatten()) + len(held_out.flatten())
    assert total == 1_000_000
    assert 90_000 < taken < 110_000
    assert 0.1 < len(held_out.flatten()) / taken < 0.3
    # rows numbered by their first id: both parts come from all over, and share none
    n = 6_000
    numbered = pa.array([[i] * 10 for i in range(n)])
    parts = [{row[0] for row in part.to_pylist()} for part in sample(numbered, 20_000)[:2]]
    assert not parts[0] & parts[1]
    for part in parts:
        assert min(part) < n / 5
        assert max(part) > n * 4 / 5


def test_one_long_row_is_cut_and_null_and_empty_rows_do_no_harm() -> None:
    long = np.arange(1 << 20) % 1000
    training, held_out, total = sample(pa.array([long, None, [], [1, 2, 3]]), 1_000)
    assert total == (1 << 20) + 3
    assert len(training.flatten()) + len(held_out.flatten()) <= (1 << 16) + 3
    advice = tz.advise(pa.array([[5] * 40, None, [], [5] * 30, [6]], pa.list_(pa.int64())), rounds=1)
    assert advice.trained_on + advice.measured_on == 71


def test_padded_rows_are_for_run_length() -> None:
    rng = np.random.default_rng(0)
    padded = np.zeros((400, 512), np.int32)
    for row in padded:
        n = rng.integers(4, 60)
        row[:n] = rng.integers(1, 30_000, n)
    advice = tz.advise(pa.FixedSizeListArray.from_arrays(padded.ravel(), 512), "size", rounds=1)
    bits = {r.name: r.bits for r in advice.rows}
    assert bits["rle"] < bits["raw"] / 5
    assert bits["rle+huffman"] < bits["huffman"]


def test_the_yardstick_is_what_pyarrow_writes(advice: tz.Advice) -> None:
    import pyarrow.parquet as pq

    _, held_out, _ = sample(text_like(100_000), 1_000_000)
    sink = pa.BufferOutputStream()
    table = pa.table({"tokens": held_out.cast(pa.list_(pa.uint16()))})
    pq.write_table(table, sink, compression="zstd", compression_level=3)
    assert advice.yardstick.bits * advice.measured_on == 8 * sink.getvalue().size


def test_what_cannot_be_advised_on() -> None:
    with pytest.raises(tz.TokzipError, match="no wish is called 'small'; there are size, speed, balanced"):
        tz.advise(text_like(1_000), prefer="small")
    with pytest.raises(tz.UnknownCodecError, match="'zip'"):
        tz.advise(text_like(1_000), codecs=["zip"])
    for few in ([], [None, []], [[1, 2], None]):
        with pytest.raises(tz.InvalidTokensError, match=r"[01] rows with tokens"):
            tz.advise(pa.array(few, pa.list_(pa.int32())))
    with pytest.raises(tz.InvalidTokensError, match="has a negative id"):
        tz.advise(pa.array([[1], [-1]]))


def test_codecs_are_names() -> None:
    tokens = pa.array([[1, 2, 3] * 20] * 20)
    assert [row.name for row in tz.advise(tokens, codecs="raw", rounds=1).rows] == ["raw"]
    with pytest.raises(tz.TokzipError, match="no codecs"):
        tz.advise(tokens, codecs=[])
