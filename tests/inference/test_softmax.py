"""The softmax of attention's scores is torch's, row by row, whatever the other rows hold."""

from __future__ import annotations

import pytest
import torch

from pipelines.inference.softmax import LOG2_E, softmax2

DTYPES = pytest.mark.parametrize(("dtype", "nearly"), [(torch.float32, 2e-6), (torch.bfloat16, 2**-8)])


@DTYPES
@pytest.mark.parametrize("length", [1, 2, 15, 16, 17, 77, 512])
@pytest.mark.parametrize("spread", [0.0, 1.0, 30.0, 1e30])
def test_it_is_torchs(dtype: torch.dtype, nearly: float, length: int, spread: float) -> None:
    scores = (torch.randn(3, 5, length, generator=torch.Generator().manual_seed(length)) * spread).to(dtype)
    expected = (scores.double() / LOG2_E).softmax(-1)
    out = softmax2(scores)
    assert out is scores
    assert torch.allclose(out.double(), expected, rtol=nearly, atol=1e-25)


@DTYPES
def test_what_is_not_finite_stays_in_its_row(dtype: torch.dtype, nearly: float) -> None:
    scores = torch.randn(6, 33, generator=torch.Generator().manual_seed(0)).to(dtype)
    scores[1, 4], scores[2, 5], scores[3, 7:] = float("nan"), float("inf"), float("-inf")
    expected = (scores.double() / LOG2_E).softmax(-1)
    assert torch.allclose(softmax2(scores).double(), expected, rtol=nearly, atol=1e-25, equal_nan=True)


@DTYPES
def test_a_rows_bits_depend_on_nothing_else(dtype: torch.dtype, nearly: float) -> None:
    scores = (torch.randn(9, 131, generator=torch.Generator().manual_seed(0)) * 5).to(dtype)
    alone = torch.cat([softmax2(row[None].clone()) for row in scores])
    assert torch.equal(softmax2(scores), alone)
