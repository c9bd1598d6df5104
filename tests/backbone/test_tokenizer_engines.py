"""Tokenizers and their engines: equal ids whatever runs, and no trust in an engine that differs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import tokenizers

from pipelines.storage import InputError
from pipelines.tokenizing import Tokenizer, engines, load_tokenizer
from pipelines.tokenizing.engines import EngineError

WORDS = [
    "the",
    "a",
    "hello",
    "world",
    "naïve",
    "don't",
    "12",
    "3.14",
    "漢字",
    "한국어",
    "🎉",
    "x" * 200,
    "\t",
    "e\u0301",
    "",
]
TEXTS = [" ".join(WORDS[(i * k) % len(WORDS)] for k in range(i % 9)) for i in range(300)] + [
    "",
    " ",
    "\n\n",
    "\u0000 a",
]
SPECIAL = ["[CLS] hello [SEP]", "a[MASK]b", "[PAD][PAD]", "[cls]", "[UNK]", "<|end|> x <|end|>", "x<|end|>y"]


@pytest.fixture(scope="module")
def bpe_json() -> str:
    """A ByteLevel BPE tokenizer, trained on the spot."""
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=alphabet, special_tokens=["<|end|>"], show_progress=False
    )
    made.train_from_iterator(TEXTS, trainer)
    return json.dumps(json.loads(made.to_str()), sort_keys=True, ensure_ascii=False)


def reference(tokenizer_json: str, texts: list[str]) -> list[list[int]]:
    plain = tokenizers.Tokenizer.from_str(tokenizer_json)
    return [plain.encode(t, add_special_tokens=False).ids for t in texts]


@pytest.mark.parametrize(
    ("kind", "engine"), [("bert", "nanotoken"), ("bpe", "gigatoken"), ("bert", "huggingface"), ("bpe", "huggingface")]
)
def test_every_engine_gives_the_ids_of_tokenizers(bert_json: str, bpe_json: str, kind: str, engine: str) -> None:
    pytest.importorskip(engine) if engine != "huggingface" else None
    source = bert_json if kind == "bert" else bpe_json
    tokenizer = Tokenizer(source, engine)
    texts = pa.array(TEXTS + SPECIAL)
    tokenizer.probe(texts)
    assert tokenizer.engine_name == engine
    made = tokenizer.encode(texts)
    assert made.type == pa.list_(pa.int32())
    assert made.to_pylist() == reference(source, TEXTS + SPECIAL)
    assert tokenizer.encode(texts.slice(5, 7)).to_pylist() == made.to_pylist()[5:12]
    assert tokenizer.encode(pa.array([], pa.string())).to_pylist() == []
    assert tokenizer.encode(pa.array([""])).to_pylist() == [[]]


def test_auto_takes_the_fast_engine_that_fits(bert_json: str, bpe_json: str) -> None:
    pytest.importorskip("nanotoken")
    pytest.importorskip("gigatoken")
    assert Tokenizer(bert_json).engine_name == "nanotoken"
    assert Tokenizer(bpe_json).engine_name == "gigatoken"


def test_an_engine_that_does_not_take_the_tokenizer(bpe_json: str) -> None:
    with pytest.raises(EngineError, match="--tokenizer-engine nanotoken: it does not take this tokenizer"):
        Tokenizer(bpe_json, "nanotoken")
    word_level = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]"))
    word_level.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer = Tokenizer(word_level.to_str())
    tokenizer.probe(pa.array(["a b a"]))
    assert tokenizer.encode(pa.array(["a b a"])).to_pylist() == [[0, 1, 0]]


def test_special_tokens_written_in_a_text_are_tokens(bert: Tokenizer) -> None:
    assert bert.encode(pa.array(["[CLS] [SEP]"])).to_pylist() == [[101, 102]]


# ---- an engine that is wrong


def wrong(change: Callable[[np.ndarray, np.ndarray], Any]) -> Callable[[str], engines.Engine]:
    def make(tokenizer_json: str) -> engines.Engine:
        right = engines.huggingface(tokenizer_json)
        return lambda texts: change(*right(texts))

    return make


def _crash(ids: np.ndarray, offsets: np.ndarray) -> Any:
    raise BaseException("panicked")  # as a panic in Rust comes up


def _one_id_off(ids: np.ndarray, offsets: np.ndarray) -> Any:
    ids = ids.copy()
    ids[-1:] += 1
    return ids, offsets


WRONG = {
    "one id off": _one_id_off,
    "one row short": lambda ids, offsets: (ids, offsets[:-1]),
    "an offset off": lambda ids, offsets: (ids, np.concatenate([offsets[:1], offsets[1:-1] + 1, offsets[-1:]])),
    "crashes": _crash,
    "gives nothing": lambda ids, offsets: (ids[:0], offsets * 0),
}


@pytest.mark.parametrize("how", WRONG)
def test_a_fast_engine_that_differs_is_given_up(monkeypatch: pytest.MonkeyPatch, tiny_json: str, how: str) -> None:
    monkeypatch.setitem(engines.ENGINES, "nanotoken", wrong(WRONG[how]))
    monkeypatch.setitem(engines.ENGINES, "gigatoken", wrong(WRONG[how]))
    texts = ["hello world", "again", "x y"]
    tokenizer = Tokenizer(tiny_json, "auto")
    assert tokenizer.engine_name == "nanotoken"
    tokenizer.probe(pa.array(texts))
    assert tokenizer.engine_name == "huggingface"
    assert tokenizer.encode(pa.array(texts)).to_pylist() == reference(tiny_json, texts)
    explicit = Tokenizer(tiny_json, "nanotoken")
    with pytest.raises(EngineError, match="nanotoken differs from `tokenizers`"):
        explicit.probe(pa.array(texts))


@pytest.mark.parametrize("skip_bad", [False, True])
def test_an_engine_asked_for_that_differs_fails_the_job_and_no_shard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compress: Any, tiny_json: str, skip_bad: bool
) -> None:
    monkeypatch.setitem(engines.ENGINES, "nanotoken", wrong(_one_id_off))
    (tmp_path / "a.txt").write_text("hello\n")
    with pytest.raises(EngineError):
        compress(tmp_path / "a.txt", tokenizer_json=tiny_json, engine="nanotoken", skip_bad=skip_bad)
    made = compress(tmp_path / "a.txt", tokenizer_json=tiny_json, engine="auto")
    assert made.table()["tokens"].to_pylist() == reference(tiny_json, ["hello"])
    assert made.entries[0].notes["tokenizer_engine"] != "nanotoken"


def test_the_probe_is_bounded_and_spread(tiny_json: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []

    def spy(tokenizer_json: str) -> engines.Engine:
        right = engines.huggingface(tokenizer_json)
        return lambda texts: (seen.append(texts), right(texts))[1]

    monkeypatch.setitem(engines.ENGINES, "nanotoken", spy)
    Tokenizer(tiny_json, "auto").probe(pa.array([f"{i} " + "x" * 5000 for i in range(10_000)]))
    (rows,) = seen
    assert sum(map(len, rows)) <= 32_768
    assert int(rows[0].split()[0]) < 1_000
    assert int(rows[-1].split()[0]) > 9_000


# ---- finding and naming a tokenizer


def test_a_tokenizer_is_the_same_by_folder_file_and_url(tmp_path: Path, tiny_json: str) -> None:
    (tmp_path / "tokenizer.json").write_text(tiny_json)
    ways = [tmp_path, tmp_path / "tokenizer.json", f"file://{tmp_path}"]
    assert len({load_tokenizer(str(way)) for way in ways}) == 1


def test_truncation_and_padding_are_taken_out(tmp_path: Path, tiny_json: str) -> None:
    cutting = tokenizers.Tokenizer.from_str(tiny_json)
    cutting.enable_truncation(3)
    cutting.enable_padding(length=20)
    (tmp_path / "tokenizer.json").write_text(cutting.to_str())
    loaded = load_tokenizer(str(tmp_path))
    (tmp_path / "tokenizer.json").write_text(tiny_json)
    assert loaded == load_tokenizer(str(tmp_path)), "the same tokens, so the same tokenizer"
    for engine in ("huggingface", "auto"):
        assert len(Tokenizer(loaded, engine).encode(pa.array(["a b c d e"]))[0]) == 5


def test_a_fingerprint_changes_with_the_tokens_and_not_with_the_order_of_keys(tmp_path: Path, tiny_json: str) -> None:
    def fingerprint(parts: dict[str, Any]) -> str:
        (tmp_path / "tokenizer.json").write_text(json.dumps(parts))
        return Tokenizer(load_tokenizer(str(tmp_path)), "huggingface").fingerprint

    parts = json.loads(tiny_json)
    assert fingerprint(parts) == fingerprint(dict(reversed(parts.items())))
    cased = json.loads(tiny_json)
    cased["normalizer"]["lowercase"] = False
    assert fingerprint(cased) != fingerprint(parts)


@pytest.mark.parametrize("data", [b"", b"{}", b"[]", b'{"model": {"type": "BPE"}}', b"\xff\xfe", b"not json"])
def test_what_is_no_tokenizer_json_is_an_error_that_names_it(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "tokenizer.json").write_bytes(data)
    with pytest.raises(InputError, match=str(tmp_path)):
        load_tokenizer(str(tmp_path))


@pytest.mark.parametrize("name", ["/nowhere/at/all", "memory://nowhere"])
def test_a_tokenizer_that_is_not_there(name: str) -> None:
    with pytest.raises(InputError, match=name):
        load_tokenizer(name)
