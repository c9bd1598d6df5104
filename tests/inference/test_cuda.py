"""The packed path on a GPU: the same vectors as on the CPU, and bits that depend on nothing but the row.

`TOKZIP_CUDA=1 pytest tests/inference/test_cuda.py` on a machine with one; all other tests are kept from the GPU.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from made_up import random_rows
from test_model import PACKED, plain

from pipelines.inference import EmbeddingModel, load_model
from pipelines.inference.rows import from_sequences

pytestmark = pytest.mark.skipif(
    not os.environ.get("TOKZIP_CUDA"), reason="no GPU: set TOKZIP_CUDA=1 where there is one"
)
LENGTHS = [1, 1, 2, 60, 3, 7, 7, 7, 20, 33, 60, 5, 12]


def near(model: EmbeddingModel, vectors: np.ndarray, expected: np.ndarray) -> bool:
    if model.precision == "fp32":
        return bool(np.abs(vectors - expected).max() < 2e-5 * max(1, np.abs(expected).max()))
    cosines = (vectors * expected).sum(1) / np.linalg.norm(vectors, axis=1) / np.linalg.norm(expected, axis=1)
    return bool(cosines.min() >= 0.999)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.parametrize("kind", [*PACKED, "odd-nomic", "odd-modernbert"])
def test_packed_equals_row_by_row(tiny, kind: str, pooling: str, precision: str) -> None:
    model = load_model(str(tiny(kind)), pooling=pooling, precision=precision, batch_tokens=150)
    rows = random_rows(LENGTHS, 200)
    vectors = model.embed(from_sequences(rows))
    assert (model.network.device.type, model.packed, model.exact) == ("cuda", True, True)
    assert near(model, vectors, plain(tiny(kind), rows, pooling))
    assert np.array_equal(np.concatenate([model.embed(from_sequences([r])) for r in rows]), vectors)


@pytest.mark.parametrize("kind", ["mpnet", "deberta-v2", "convbert"])
def test_other_models_get_other_batches(tiny, kind: str) -> None:
    model = load_model(str(tiny(kind)), precision="fp32", batch_tokens=150)
    rows = random_rows(LENGTHS, 200)
    assert not model.packed
    assert near(model, model.embed(from_sequences(rows)), plain(tiny(kind), rows))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_company_of_a_row_does_not_change_its_bits(model_dir: Path, precision: str) -> None:
    rng = np.random.default_rng(1)
    rows = random_rows([*range(40), *[77] * 9, *rng.integers(0, 300, 200)], 30_000)
    model = load_model(str(model_dir), precision=precision, batch_tokens=2000)
    expected = model.embed(from_sequences(rows))
    assert (model.network.device.type, model.exact) == ("cuda", True)
    assert near(model, expected, load_model(str(model_dir), precision="fp32").embed(from_sequences(rows)))
    order = rng.permutation(len(rows))[:-7]
    assert np.array_equal(model.embed(from_sequences([rows[i] for i in order])), expected[order])
    few = order[:30]
    assert np.array_equal(np.concatenate([model.embed(from_sequences([rows[i]])) for i in few]), expected[few])


def test_auto_is_bf16_where_the_gpu_has_it(model_dir: Path) -> None:
    model = load_model(str(model_dir))
    assert model.precision == ("bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32")
    assert model.batch_tokens == 16384
    assert 0 < model.matrix_product_seconds() < 1e-4
