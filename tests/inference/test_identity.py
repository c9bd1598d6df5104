"""A fingerprint and a row's key change with all that changes a vector, and with nothing else."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from pipelines.inference import load_model
from pipelines.inference.identity import row_keys
from pipelines.inference.rows import from_sequences


@pytest.fixture
def original(tiny, tmp_path: Path) -> Path:
    return shutil.copytree(tiny("bert"), tmp_path / "original")


def _fingerprint(folder: Path, **options) -> str:
    return load_model(str(folder), precision="fp32", **options).fingerprint


def test_a_copy_elsewhere_in_other_files_is_the_same_model(original: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(original, tmp_path / "another name")
    tensors = load_file(copy / "model.safetensors")
    names = sorted(tensors, reverse=True)
    files = {n: f"model-{1 + (i % 2):05d}-of-00002.safetensors" for i, n in enumerate(names)}
    for file in set(files.values()):
        save_file({n: tensors[n] for n in names if files[n] == file}, copy / file, metadata={"format": "pt"})
    (copy / "model.safetensors").unlink()
    (copy / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": files}))
    config = json.loads((copy / "config.json").read_text())
    config |= {"_name_or_path": "someone/else", "transformers_version": "4.0.0", "hidden_dropout_prob": 0.3}
    (copy / "config.json").write_text(json.dumps(config))
    assert _fingerprint(copy) == _fingerprint(original)
    assert _fingerprint(copy, batch_tokens=17) == _fingerprint(original)


def _one_weight(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["encoder.layer.0.attention.self.query.weight"][3, 5] += 1e-3
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def _swapped_weights(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    a, b = (f"encoder.layer.0.attention.self.{n}.weight" for n in ("query", "key"))
    tensors[a], tensors[b] = tensors[b], tensors[a]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def _activation(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"hidden_act": "relu"}))


@pytest.mark.parametrize("change", [_one_weight, _swapped_weights, _activation])
def test_a_changed_model_is_another(original: Path, change: Callable[[Path], None]) -> None:
    before = _fingerprint(original)
    change(original)
    assert _fingerprint(original) != before


def test_the_pooling_head_does_not_count(original: Path) -> None:
    before = _fingerprint(original)
    tensors = {n: t for n, t in load_file(original / "model.safetensors").items() if not n.startswith("pooler.")}
    save_file(tensors, original / "model.safetensors", metadata={"format": "pt"})
    assert _fingerprint(original) == before


def test_every_option_that_changes_a_vector_changes_the_fingerprint(original: Path) -> None:
    options = [{}, {"pooling": "cls"}, {"normalize": "on"}, {"max_length": 20}, {"long_rows": "window"}]
    assert len({_fingerprint(original, **o) for o in options}) == len(options)
    assert _fingerprint(original, pooling="mean", normalize="off", max_length=64) == _fingerprint(original)


def test_special_tokens_count(model_dir: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(model_dir, tmp_path / "m")
    tokenizer = json.loads((copy / "tokenizer.json").read_text())
    tokenizer["post_processor"] = None
    (copy / "tokenizer.json").write_text(json.dumps(tokenizer))
    assert load_model(str(copy), precision="fp32").settings.specials == 0
    assert _fingerprint(copy) != _fingerprint(model_dir)


def test_a_key_is_the_digest_of_fingerprint_and_ids() -> None:
    rows = [[5, 6, 7], [], [5, 6], [7, 5], [5, 6, 7]]
    keys = row_keys("ab" * 32, from_sequences(rows)).to_pylist()
    by_hand = [hashlib.blake2b(b"\xab" * 32 + np.array(r, "<i4").tobytes(), digest_size=32).digest() for r in rows]
    assert keys == by_hand
    assert len(set(keys)) == 4
    assert not set(keys) & set(row_keys("ac" * 32, from_sequences(rows)).to_pylist())
