"""The cached encoder gives the model's vectors in order, and runs the model on nothing twice."""

from __future__ import annotations

import re
import threading
from pathlib import Path

import numpy as np
import pandas
import pyarrow as pa
import pytest
from made_up import random_rows

import tokzip_core as tz
from pipelines.inference import CachedEncoder, EmbeddingModel, ModelError, load_model
from pipelines.inference.rows import from_sequences
from pipelines.stage import Stats
from pipelines.storage import InputError
from pipelines.tokenizing import Tokenizer, engines, load_tokenizer
from tokzip_core.cache import LayeredCache, MemoryLayer
from tokzip_core.errors import CorruptBlobError, InvalidTokensError

ROOT = Path(__file__).parents[2]


@pytest.fixture
def model(tiny_with_specials: Path) -> EmbeddingModel:
    return load_model(str(tiny_with_specials), max_length=32)


def test_hits_misses_and_duplicates_come_back_in_order(model: EmbeddingModel, tmp_path: Path) -> None:
    rows = random_rows([3, 0, 9, 3, 30, 1, 12], 200)
    expected = model.embed(from_sequences(rows))
    encoder = CachedEncoder(model, f"memory:1MB,disk:{tmp_path}:2MB")
    encoder.encode([rows[2], rows[5]])
    order = [6, 2, 2, 0, 1, 5, 3, 6, 4, 1, 2]
    stats = Stats()
    assert np.array_equal(encoder.encode([rows[i] for i in order], stats), expected[order])
    seconds = {k: stats.pop(k) for k in list(stats) if k.startswith("seconds.")}
    assert stats == {
        "rows": 11,
        "rows_folded": 4,
        "rows_truncated": 0,
        "rows_computed": 5,
        "tokens_computed": 3 + 0 + 3 + 30 + 12 + 5 * 2,
        "cache_hits.memory": 2,
        "cache_hits.disk": 0,
        "cache_values": 5,
        "cache_value_bytes": stats["cache_value_bytes"],
    }
    assert 0 < stats["cache_value_bytes"] <= 5 * (1 + 4 * 32)
    assert set(seconds) == {"seconds.lookup", "seconds.model"}
    assert encoder.stats["rows"] == 13
    encoder.close()
    again = CachedEncoder(model, f"disk:{tmp_path}:2MB")
    assert np.array_equal(again.encode(rows), expected)
    assert (again.stats["rows_computed"], again.stats["cache_hits.disk"]) == (0, 7)
    again.close()


def test_any_mix_of_hits_is_right(model: EmbeddingModel) -> None:
    rows = random_rows(np.random.default_rng(3).integers(0, 40, 60), 200)
    expected = model.embed(from_sequences(rows))
    rng = np.random.default_rng(4)
    encoder = CachedEncoder(model, "memory:8KB")  # holds some twenty of them
    for _ in range(20):
        order = rng.integers(0, len(rows), rng.integers(0, 25))
        assert np.array_equal(encoder.encode([rows[i] for i in order]), expected[order])
    assert 0 < encoder.stats["cache_hits.memory"] < encoder.stats["rows"]
    assert encoder.stats["rows_computed"] > len(rows)


@pytest.mark.parametrize("coding", ["fp16", "int8"])
def test_lossy_values_are_the_same_the_first_time_and_from_the_cache(model: EmbeddingModel, coding: str) -> None:
    rows = random_rows(np.random.default_rng(5).integers(0, 40, 60), 200)
    encoder = CachedEncoder(model, "memory:1MB", coding)
    first = encoder.encode(rows)
    again = encoder.encode(rows[::-1])[::-1]
    assert np.array_equal(first, again)
    assert encoder.stats["cache_hits.memory"] == encoder.stats["rows_computed"] > 50
    exact = model.embed(from_sequences(rows))
    assert not np.array_equal(first, exact)
    assert np.abs(first - exact).max() < np.abs(exact).max() / 200
    assert encoder.stats["cache_cosine"] / encoder.stats["cache_sampled"] > 0.999
    assert encoder.stats["cache_neighbours_kept"] > 0.9 * encoder.stats["cache_neighbours"] > 0


def test_rows_that_truncation_makes_equal_are_folded(model: EmbeddingModel) -> None:
    row = random_rows([50], 200)[0]
    encoder = CachedEncoder(model)
    vectors = encoder.encode([row, row[:40], row[:30], row[:29]])
    assert np.array_equal(vectors[0], vectors[2])
    assert (encoder.stats["rows_folded"], encoder.stats["rows_truncated"]) == (2, 2)


def test_windowed_rows_are_told_apart_behind_the_first_window(tiny) -> None:
    row = random_rows([50], 200)[0]
    encoder = CachedEncoder(load_model(str(tiny("bert")), max_length=30, long_rows="window"))
    vectors = encoder.encode([row, row[:49]])
    assert not np.array_equal(vectors[0], vectors[1])
    assert (encoder.stats["rows_windowed"], encoder.stats["tokens_computed"]) == (2, 99)


def test_rows_may_be_arrow_numpy_or_lists(model: EmbeddingModel) -> None:
    rows = [[5, 6, 7], [], [8]]
    encoder = CachedEncoder(model)
    expected = encoder.encode(rows)
    column = pa.array([[1], *rows, [2]], pa.list_(pa.int64()))
    assert np.array_equal(encoder.encode(column[1:4]), expected)
    assert np.array_equal(encoder.encode(pa.chunked_array([column[1:2], column[2:4]])), expected)
    assert np.array_equal(encoder.encode([np.array(r, np.uint16) for r in rows]), expected)
    assert np.array_equal(encoder.encode(list(column[1:4])), expected)
    assert np.array_equal(encoder.encode(row for row in rows), expected)
    for none in ([], iter([]), pa.array([]), pa.chunked_array([], pa.list_(pa.int32()))):
        assert encoder.encode(none).shape == (0, 32)


@pytest.mark.parametrize("kind", [pa.list_(pa.uint16(), 2), pa.list_view(pa.int64()), pa.large_list_view(pa.int32())])
def test_lists_may_be_of_any_layout(model: EmbeddingModel, kind: pa.DataType) -> None:
    encoder = CachedEncoder(model)
    rows = [[9, 9], [5, 6], [7, 8], [3, 4]]
    column = pa.array(rows, kind)
    assert np.array_equal(encoder.encode(column[1:]), encoder.encode(rows[1:]))
    assert np.array_equal(
        encoder.encode(pa.chunked_array([column[:1], column[2:]])), encoder.encode(rows[:1] + rows[2:])
    )
    assert np.array_equal(encoder.encode(np.array(rows)), encoder.encode(rows))
    with pytest.raises(InvalidTokensError, match="row 1: null"):
        encoder.encode(pa.array([[5, 6], None], kind))


def test_texts_and_blobs_are_the_token_ids_they_stand_for(minilm: EmbeddingModel) -> None:
    texts = ["the river ran past", "", "an old mill"]
    column = Tokenizer(load_tokenizer(minilm.name), "huggingface").encode(pa.array(texts))
    codebook = tz.train(column)
    encoder = CachedEncoder(minilm)
    expected = encoder.encode(column)
    arrow = pa.array(texts)
    for given in (
        texts,
        tuple(texts),
        (text for text in texts),
        map(str, texts),
        np.array(texts),
        np.array(texts, object),
        pandas.Series(texts),
        pandas.Series(texts, dtype=object, index=[2, 0, 1]),
        arrow,
        arrow.cast(pa.large_string()),
        arrow.cast(pa.string_view()),
        arrow.dictionary_encode(),
        pa.chunked_array([arrow[:2].dictionary_encode(), arrow[2:].dictionary_encode()]),
    ):
        assert np.array_equal(encoder.encode(given), expected)
    blobs = tz.encode(column, codebook)
    bare = blobs.storage
    for given in (
        blobs,
        bare,
        bare.cast(pa.large_binary()),
        bare.cast(pa.binary_view()),
        pa.chunked_array([bare[:1], bare[1:]]),
        bare.to_pylist(),
        np.array(bare.to_pylist(), object),
    ):
        assert np.array_equal(encoder.encode(given, codebook=codebook), expected)
        with pytest.raises(InvalidTokensError, match="codebook"):
            encoder.encode(given)
    with pytest.raises(CorruptBlobError, match="row 1"):
        encoder.encode([b"", b"odd"], codebook=tz.train(column, codec="raw"))


def test_texts_need_a_tokenizer(tiny) -> None:
    model = load_model(str(tiny("bert")))
    with pytest.raises(InputError):
        CachedEncoder(model).encode(["a"])
    model.name = None
    with pytest.raises(ModelError, match="by name"):
        CachedEncoder(model).encode(["a"])


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([[1], [200]], "row 1: a token id outside"),
        ([[1], [-1]], "row 1"),
        ([[1], [1.5]], "row 1: expected a sequence"),
        ([[1], 7], "row 1: expected a sequence"),
        ([[2**40]], "row 0"),
        ([[1], None], "row 1: expected a sequence of token ids, got None"),
        ([[1], [[1], [2, 3]]], "row 1: expected a sequence"),
        (pa.array([[1], None]), "row 1: null"),
        (pa.nulls(2), "row 0: null"),
        (pa.array([[2**40]]), "no 32-bit integers"),
        (pa.array([[[1]]]), "no 32-bit integers"),
        (pa.array([1]), "expected token ids, texts or blobs, got a column of int64"),
        (["a", None], "row 1: expected a text, as row 0 is, got None"),
        ([None, "a"], "row 0: expected a text, as row 1 is, got None"),
        (pandas.Series(["a", None]), "row 1: expected a text"),
        (pa.array(["a", None]), "row 1: null"),
        (pa.array(["a", None]).dictionary_encode(), "row 1: null"),
        (["a", [5]], r"row 1: expected a text, as row 0 is, got \[5\]"),
        ([[5], "a"], r"row 0: expected a text, as row 1 is, got \[5\]"),
        (["a", b"a"], "row 1: expected a text"),
        ([[5], b"a"], "row 0: expected a blob"),
        (["a", "a\ud800"], "row 1: not a text"),
        ("hello world", "one text or blob: 'hello world'"),
        ("", "one text"),
        (b"hello", "one text or blob"),
        (5, "got a int"),
        (None, "got a NoneType"),
        (np.array(5), "got a ndarray"),
        ({"text": ["a"]}, "got a dict"),
        (pandas.DataFrame({"text": ["a"]}), "got a DataFrame"),
        (pa.table({"text": ["a"]}), "got a Table"),
    ],
)
def test_rows_that_are_none_are_refused_by_number(model: EmbeddingModel, rows, message: str) -> None:
    encoder = CachedEncoder(model)
    with pytest.raises(InvalidTokensError, match=message):
        encoder.encode(rows)
    assert not encoder.stats


def test_a_model_that_is_none_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"model: expected .* got None"):
        CachedEncoder(None)
    with pytest.raises(ModelError) as caught:
        CachedEncoder(str(tmp_path / "nope"))
    assert str(caught.value).count("model ") == 1


def test_a_model_may_be_a_path(tiny_with_specials: Path) -> None:
    encoder = CachedEncoder(tiny_with_specials)
    assert np.array_equal(encoder.encode([[5]]), CachedEncoder(str(tiny_with_specials)).encode([[5]]))


def test_a_closed_encoder_says_so(model: EmbeddingModel) -> None:
    encoder = CachedEncoder(model, "memory:1MB")
    encoder.close()
    encoder.close()
    with pytest.raises(ValueError, match="closed"):
        encoder.encode([[5]])


def test_a_fast_tokenizer_that_differs_on_these_texts_is_given_up(
    minilm: EmbeddingModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = CachedEncoder(minilm).encode(["an old mill"])

    def wrong(_: str):
        return lambda texts: (np.full(len(texts), 7, np.uint32), np.arange(len(texts) + 1))

    for name in set(engines.ENGINES) - {"huggingface"}:
        monkeypatch.setitem(engines.ENGINES, name, wrong)
    assert np.array_equal(CachedEncoder(minilm).encode(["an old mill"]), expected)


@pytest.mark.parametrize("name", ["CachedEncoder", "EmbeddingModelHandler"])
def test_the_readme_says_how(
    name: str, model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The snippet that imports it, run as it stands but for the place of the model."""
    snippets = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    (code,) = (s for s in snippets if f"import {name}" in s)
    model = "sentence-transformers/all-MiniLM-L6-v2"
    assert model in code
    monkeypatch.chdir(tmp_path)
    exec(code.replace(model, str(model_dir)), {"__name__": "readme"})
    said = {"CachedEncoder": "'rows_computed': 2", "EmbeddingModelHandler": "an old mill (384,)"}
    assert said[name] in capfd.readouterr().out
    assert (tmp_path / "vectors").is_dir()


def test_padding_moves_a_vector_by_no_more_than_the_readme_says(tiny) -> None:
    model = load_model(str(tiny("mpnet")), precision="fp32")
    rows = random_rows(np.random.default_rng(1).integers(1, 62, 100), 200)
    alone = np.concatenate([CachedEncoder(model).encode([row]) for row in rows])
    moved = np.linalg.norm(CachedEncoder(model).encode(rows) - alone, axis=1) / np.linalg.norm(alone, axis=1)
    assert not model.exact
    assert moved.max() < 1e-6


def test_a_cached_value_of_another_size_is_computed_anew(model: EmbeddingModel) -> None:
    memory = MemoryLayer(1 << 20)
    encoder = CachedEncoder(model, LayeredCache([memory]))
    expected = encoder.encode([[4, 5], [6]])
    memory._entries.update(dict.fromkeys(memory._entries, b"short"))
    assert np.array_equal(encoder.encode([[4, 5], [6]]), expected)
    assert encoder.stats["rows_computed"] == 4


def test_threads_share_an_encoder(model: EmbeddingModel) -> None:
    rows = random_rows([5, 9, 1, 30, 2, 17], 200)
    expected = model.embed(from_sequences(rows))
    encoder, wrong = CachedEncoder(model, "memory:1MB"), []

    def work(seed: int) -> None:
        rng = np.random.default_rng(seed)
        for _ in range(15):
            order = rng.permutation(len(rows))[: rng.integers(1, 6)]
            if not np.array_equal(encoder.encode([rows[i] for i in order]), expected[order]):
                wrong.append(order)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong
    assert encoder.stats["rows"] == encoder.stats["rows_computed"] + encoder.stats["cache_hits.memory"]
