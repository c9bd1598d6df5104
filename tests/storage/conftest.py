"""What the storage tests share: a small corpus and model in the hub's layout."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tokenizers
from commands import command, data_files


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three Parquet shards of 120 rows in row groups of 20, named as the hub names them. Read only."""
    folder, dice = tmp_path_factory.mktemp("corpus"), random.Random(0)
    for i in range(3):
        lines = [" ".join(dice.choices(["abc", "hello", "def", "ghij", "k"], k=dice.randrange(12))) for _ in range(120)]
        path = folder / f"train-{i:05d}-of-00003.parquet"
        pq.write_table(pa.table({"text": [f"row {n}: {w}" for n, w in enumerate(lines)]}), path, row_group_size=20)
    return folder


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory, tiny_json: str) -> Path:
    """What a repository of a BERT tokenizer holds: a WordPiece of single letters. Read only."""
    folder = tmp_path_factory.mktemp("tokenizer")
    made = tokenizers.Tokenizer.from_str(tiny_json)
    made.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    made.save(str(folder / "tokenizer.json"))
    vocab = sorted(made.get_vocab(), key=made.token_to_id)
    (folder / "vocab.txt").write_text("".join(f"{token}\n" for token in vocab))
    names = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")}
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "BertTokenizer", "model_max_length": 64, **names})
    )
    (folder / "config.json").write_text(json.dumps({"model_type": "bert", "vocab_size": len(vocab)}))
    return folder


@pytest.fixture(scope="session")
def encoder_folder(
    tokenizer_folder: Path, tmp_path_factory: pytest.TempPathFactory, save_tiny_bert: Callable[[Path, int], None]
) -> Path:
    """A model of sentence-transformers' layout with that tokenizer and random weights. Read only."""
    folder = shutil.copytree(tokenizer_folder, tmp_path_factory.mktemp("models") / "encoder")
    save_tiny_bert(folder, 194)
    kinds = ("Transformer", ""), ("Pooling", "1_Pooling"), ("Normalize", "2_Normalize")
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (kind, path) in enumerate(kinds)
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    pooling = {"word_embedding_dimension": 32, "pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 64, "do_lower_case": False}))
    return folder


@pytest.fixture(scope="session")
def options() -> list[str]:
    """What makes many small splits of the corpus."""
    return ["--split-bytes", "2KB", "--no-progress", "--cache", "none"]


@pytest.fixture(scope="session")
def local_run(
    corpus: Path, encoder_folder: Path, options: list[str], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, bytes]:
    """The data files of both stages, by path, from and to local disks: what every other storage must give."""
    output = tmp_path_factory.mktemp("local") / "out"
    model = ["--tokenizer", encoder_folder, "--model", encoder_folder]
    command("run", "--input", f"{corpus}/*.parquet", "--output", output, *model, *options)
    return data_files({str(p.relative_to(output)): p.read_bytes() for p in output.rglob("*") if p.is_file()})
