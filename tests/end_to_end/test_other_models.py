"""Models and tokenizers other than the packaged one: right tokens and vectors, or refused before any work."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tokenizers
import torch
import transformers
from tokenizers import AddedToken, models, normalizers, pre_tokenizers, processors, trainers

import tokzip_core as tz
from pipelines.cli import main
from pipelines.demo import write_corpus

pytestmark = pytest.mark.slow
ODD = [
    "",
    " ",
    "naïve İstanbul ﬁ \uff21\uff22 e\u0301 \u00df",
    "漢字と仮名 한국어 русский हिन्दी ไทย עברית",
    "👩\u200d👩\u200d👧 🇩🇪 🎉",
    "\x00a\x01b\x7f\u0085\u2028\ufeff\u202e\t\r\n",
    "[MASK] a[MASK]b [CLS] x [SEP] [PAD] [mask]",
    "<s> x </s> y<mask>z  <pad> <unk> <s",
    "oneword two words xoneword",
    "long " * 21_000,
    "x" * 30_000,
]
SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
LENGTH = 48


def _word_piece() -> tuple[tokenizers.Tokenizer, Any, list[str]]:
    made = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer(lowercase=False)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return made, trainers.WordPieceTrainer, ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def _byte_level() -> tuple[tokenizers.Tokenizer, Any, list[str]]:
    made = tokenizers.Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return made, trainers.BpeTrainer, ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]


def _unigram() -> tuple[tokenizers.Tokenizer, Any, list[str]]:
    made = tokenizers.Tokenizer(models.Unigram())
    made.normalizer = normalizers.NFKC()
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    return made, trainers.UnigramTrainer, ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]


KINDS = {
    "distilbert": (_word_piece, lambda n: transformers.DistilBertConfig(
        vocab_size=n, dim=32, n_layers=2, n_heads=2, hidden_dim=64, max_position_embeddings=LENGTH)),
    "roberta": (_byte_level, lambda n: transformers.RobertaConfig(
        vocab_size=n, pad_token_id=1, max_position_embeddings=LENGTH + 2, **SMALL)),
    "xlm-roberta": (_unigram, lambda n: transformers.XLMRobertaConfig(
        vocab_size=n, pad_token_id=1, max_position_embeddings=LENGTH + 2, **SMALL)),
    "mpnet": (_byte_level, lambda n: transformers.MPNetConfig(
        vocab_size=n, pad_token_id=1, max_position_embeddings=LENGTH + 2, **SMALL)),
}  # fmt: skip


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("prose")
    write_corpus(folder, shards=1, rows=60)
    prose: list[str] = pq.read_table(folder)["text"].to_pylist()
    return prose + ODD


@pytest.fixture(scope="module")
def model(texts: list[str], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """`model("roberta")`: the folder of a tiny model with random weights and a tokenizer trained on the spot."""

    def make(kind: str) -> Path:
        folder = tmp_path_factory.mktemp("models") / kind
        start, config = KINDS[kind]
        made, trainer, special = start()
        unknown = {"unk_token": "<unk>"} if trainer is trainers.UnigramTrainer else {}
        made.train_from_iterator(
            texts[:60], trainer(vocab_size=600, special_tokens=special, show_progress=False, **unknown)
        )
        begin, end = (special[2], special[3]) if special[0] == "[PAD]" else (special[0], special[2])
        ids = [(token, made.token_to_id(token)) for token in (begin, end)]
        made.post_processor = processors.TemplateProcessing(single=f"{begin} $A {end}", special_tokens=ids)
        wrapped = transformers.PreTrainedTokenizerFast(
            tokenizer_object=made, model_max_length=LENGTH, pad_token=special[special[0] != "[PAD]"], cls_token=begin,
            sep_token=end, mask_token=AddedToken(special[4], lstrip=True),
        )  # fmt: skip
        wrapped.add_tokens(["oneword", "two words", AddedToken("strip", lstrip=True, rstrip=True)])
        wrapped.save_pretrained(folder)
        torch.manual_seed(0)
        made_config = config(len(wrapped))
        made_config.initializer_range = 0.2  # large enough that attention and positions matter
        transformers.AutoModel.from_config(made_config).save_pretrained(folder)
        return folder

    return make


def plain_vectors(folder: Path, texts: list[str]) -> np.ndarray:
    """Mean-pooled vectors by transformers alone: file order, padded batches, fp32, truncated."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    network = transformers.AutoModel.from_pretrained(folder).eval()
    parts = []
    with torch.inference_mode():
        for start in range(0, len(texts), 16):
            batch = tokenizer(texts[start : start + 16], padding=True, truncation=True, return_tensors="pt")
            mask = batch["attention_mask"][:, :, None]
            hidden = network(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state
            parts.append(((hidden * mask).sum(1) / mask.sum(1)).numpy())
    return np.concatenate(parts)


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_and_vectors_are_those_of_transformers(
    kind: str, model: Callable[[str], Path], texts: list[str], tmp_path: Path
) -> None:
    folder = model(kind)
    stored: list[bytes | None] = [t.encode() for t in texts]
    pq.write_table(pa.table({"text": pa.array([*stored[:30], None, b"\xff", *stored[30:]])}), tmp_path / "in.parquet")
    code = main(["run", "--input", str(tmp_path / "in.parquet"), "--output", str(tmp_path / "out"), "--model",
                 str(folder), "--tokenizer", str(folder), "--cache", "none", "--precision", "fp32"])  # fmt: skip
    assert code == 3, "two rows are dead letters"
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    expected = [tokenizer(t, add_special_tokens=False)["input_ids"] for t in texts]
    assert tz.read_table(str(tmp_path / "out/tokens"))["tokens"].to_pylist() == expected
    found = pq.read_table(tmp_path / "out/embeddings")["embedding"].combine_chunks()
    ours, plain = found.flatten().to_numpy().reshape(len(found), -1), plain_vectors(folder, texts)
    cosines = (ours * plain).sum(1) / np.linalg.norm(ours, axis=1) / np.linalg.norm(plain, axis=1)
    assert len(ours) == len(texts)
    assert cosines.min() >= 0.99999


def _pickled(folder: Path) -> None:
    torch.save({}, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def _without_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").unlink()


@pytest.mark.parametrize(
    ("spoil", "options", "message"),
    [
        (_pickled, [], "no weights as safetensors"),
        (_without_tokenizer, [], "has no tokenizer"),
        (lambda folder: (folder / "config.json").unlink(), [], r"no config\.json"),
        (lambda folder: (folder / "config.json").write_text('{"model_type": "none"}'), [], "cannot be loaded"),
        (None, ["--max-length=999"], "positions for 48"),
        (None, ["--max-length=1"], "no room"),
        (None, ["--batch-tokens=0"], "--batch-tokens: '0' is not"),
        (None, ["--cache=disk:20GB"], "cache layer"),
        (None, ["--workers=0"], "--workers"),
        (None, ["--runner=DaskRunner"], "DaskRunner"),
    ],
)
def test_what_cannot_be_embedded_is_refused_before_any_work(
    spoil: Callable[[Path], Any] | None, options: list[str], message: str, model: Callable[[str], Path],
    capsys: pytest.CaptureFixture[str], tmp_path: Path,
) -> None:  # fmt: skip
    folder = model("distilbert")
    (tmp_path / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes())
    (tmp_path / "in.txt").write_text("a row\n")
    if spoil:
        spoil(folder)
    code = main(["run", "--input", str(tmp_path / "in.txt"), "--output", str(tmp_path / "out"), "--model", str(folder),
                 "--tokenizer", str(tmp_path), *options])  # fmt: skip
    error = capsys.readouterr().err
    assert code == (2 if "--" in message or "layer" in message or "Dask" in message else 1)
    assert re.search(message, error), error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("model_type", ["bert", "roberta", "deberta-v2"])
def test_a_tokenizer_that_transformers_makes_up_is_refused(
    model_type: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipelines.storage import InputError
    from pipelines.tokenizing import load_tokenizer

    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "config.json").write_text(json.dumps({"model_type": model_type}))
    monkeypatch.chdir(tmp_path)
    for name in ("m", "./m/", str(tmp_path / "m")):
        with pytest.raises(InputError, match=r"no tokenizer\.json and no vocabulary"):
            load_tokenizer(name)


def test_an_older_tokenizer_folder_is_taken_by_any_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipelines.tokenizing import load_tokenizer

    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "config.json").write_text('{"model_type": "bert"}')
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghij"]
    (tmp_path / "m" / "vocab.txt").write_text("\n".join(words))
    monkeypatch.chdir(tmp_path)
    assert load_tokenizer("m") == load_tokenizer(str(tmp_path / "m"))
    assert tokenizers.Tokenizer.from_str(load_tokenizer("m")).encode("a j", add_special_tokens=False).ids == [5, 14]
