"""Rows of millions of tokens: the same ids and bytes as ever, at a bounded price in memory a token."""

from __future__ import annotations

import random
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import tokenizers

import tokzip_core as tz
from pipelines.tokenizing import Tokenizer, engines
from pipelines.tokenizing import tokenizer as module

PARTS = [
    *"aZ0.-漢é İ ß",
    "e\u0301",
    "\u0301",
    "hello",
    "[MASK]",
    "[mask]",
    "don't",
    "x" * 150,
    "  ",
    " \u0301a",
    "\t",
    "\n",
    "\u200b",
    "🎉",
    "한",
]


def text(seed: int, parts: int = 400) -> str:
    chosen = random.Random(seed)
    return "".join(chosen.choice(PARTS) + chosen.choice(["", " ", " ", " "]) for _ in range(parts))


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "PIECE", 5)
    monkeypatch.setattr(module, "_LONG", 0)


def changed(tokenizer_json: str, **normalizer: Any) -> str:
    made = tokenizers.Tokenizer.from_str(tokenizer_json)
    made.normalizer = tokenizers.normalizers.BertNormalizer(**normalizer)
    made.add_tokens(
        [tokenizers.AddedToken(t, lstrip=True, rstrip=True, normalized=n) for t, n in [("aZ", False), ("漢a", True)]]
    )
    return made.to_str()


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize("engine", ["auto", "huggingface"])
@pytest.mark.parametrize("kind", ["bert", "accents", "cased", "none"])
def test_a_text_in_pieces_has_the_ids_of_the_whole(bert_json: str, kind: str, engine: str) -> None:
    source = {
        "bert": bert_json,
        "accents": changed(bert_json, strip_accents=False),
        "cased": changed(bert_json, lowercase=False, handle_chinese_chars=False),
        "none": changed(bert_json, clean_text=False),
    }[kind]
    plain = tokenizers.Tokenizer.from_str(source)
    texts = [text(seed) for seed in range(40)] + ["", " ", "a b", "no cut", "x" * 30]
    tokenizer = Tokenizer(source, engine)
    made = tokenizer.encode(pa.array(["left out", *texts])[1:])
    assert made.to_pylist() == [plain.encode(t, add_special_tokens=False).ids for t in texts]


def test_it_is_cut_between_words_of_ascii_alone() -> None:
    data = "ab cd é fg [X] hi jk".encode()
    cuts = engines._cuts(memoryview(data), 0, len(data))
    assert cuts == [0, len(data)]
    with pytest.MonkeyPatch.context() as m:
        m.setattr(engines, "PIECE", 1)
        cuts = engines._cuts(memoryview(data), 0, len(data))
    pieces = [data[a:b].decode() for a, b in pairwise(cuts)]
    assert pieces == ["ab ", "cd é fg [X] hi ", "jk"]


def test_no_other_tokenizer_is_given_pieces(bert_json: str) -> None:
    assert engines.takes_words_alone(bert_json)
    spaced = tokenizers.Tokenizer.from_str(bert_json)
    spaced.add_tokens(["new york"])
    assert not engines.takes_words_alone(spaced.to_str())
    prepended = tokenizers.Tokenizer.from_str(bert_json)
    prepended.normalizer = tokenizers.normalizers.Prepend("x")
    assert not engines.takes_words_alone(prepended.to_str())
    assert not engines.takes_words_alone(tokenizers.Tokenizer(tokenizers.models.BPE()).to_str())


@pytest.mark.parametrize("codec", tz.codecs())
def test_room_that_is_made_as_needed_keeps_what_is_in_it(codec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from tokzip_core.codecs import pieces

    monkeypatch.setattr(pieces, "_RUN", 7)
    numbers = np.random.default_rng(1)
    rows = [
        numbers.integers(0, 1 << int(numbers.integers(1, 31)), int(numbers.integers(0, 40))).tolist()
        for _ in range(200)
    ]
    tokens = pa.array(rows, pa.list_(pa.int32()))
    codebook = tz.train(pa.array([[1, 2, 3, 1, 1]], pa.list_(pa.int32())), codec)
    blobs = tz.encode(tokens, codebook)
    assert tz.decode(blobs, codebook).to_pylist() == rows
    alone = [tz.encode(tokens[i : i + 1], codebook).storage[0].as_py() for i in range(len(rows))]
    assert blobs.storage.to_pylist() == alone


MEASURE = """
import sys
import pyarrow as pa, tokzip_core as tz
from pipelines import processes
from pipelines.tokenizing import Tokenizer
tokenizer = Tokenizer(open(sys.argv[1]).read())
def both(texts):
    tokenizer.probe(texts)
    tokens = tokenizer.encode(texts)
    codebook = tz.train(tokens)
    blobs = tz.encode(tokens, codebook)
    count = len(tokens.values)
    del tokens
    assert len(tz.decode(blobs, codebook).values) == count
    return count
both(pa.array(["hello to you"]))  # compiles
texts = pa.array(["hello to you \u20ac and " * 2_000_000])
open("/proc/self/clear_refs", "w").write("5")  # the peak from now on
before = processes.peak_memory()
print(before, both(texts), processes.peak_memory())
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="memory is measured as Linux tells it")
def test_a_long_row_is_not_in_memory_in_many_forms(tmp_path: Path, bert_json: str) -> None:
    """Of text 5 bytes a token here: the ids and what is bounded come to some 7, all copies once made to 24."""
    (tmp_path / "tokenizer.json").write_text(bert_json)
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, tmp_path / "tokenizer.json"], capture_output=True, text=True, check=True
    )
    before, tokens, peak = map(int, done.stdout.split())
    assert peak - before < 12 * tokens
