"""Softmax of attention's scores on a CPU, in place and on one thread. Imports torch, numba, tokzip_core's kernels.

torch's own takes twice the time, a tenth of a whole model's: its exponential is good to the last bit. This one's is
2^x by a polynomial (relative error below 1e-6; the scores come scaled by log2(e)). Every row is done by itself and in
one order, so that its bits depend on nothing else.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import torch
from llvmlite import ir
from numba import float32, int16, int32
from numba.extending import intrinsic

from tokzip_core.kernels import kernel

LOG2_E = 1.4426950408889634

# 2^x - 1 for x in -0.5 … 0.5, by powers of x: the Taylor series of e^(x ln 2).
_C1, _C2, _C3 = float32(0.6931471805599453), float32(0.2402265069591007), float32(0.05550410866482158)
_C4, _C5, _C6 = float32(0.009618129107628477), float32(0.0013333558146428443), float32(0.00015403530393381608)
_LEAST = float32(-100)  # nothing beside the row's largest, which is 2^0; less would be denormal after the division


def softmax2(scores: torch.Tensor) -> torch.Tensor:
    """2^scores of `[..., n]`, contiguous float32 or bfloat16 on a CPU, over their sums in the last dimension."""
    flat = scores.view(-1, scores.shape[-1])
    if scores.dtype == torch.bfloat16:
        _bf16(flat.view(torch.int16).numpy())
    else:
        _fp32(flat.numpy())
    return scores


@intrinsic
def _bits(context: Any, x: Any) -> Any:
    return int32(x), lambda context, builder, signature, args: builder.bitcast(args[0], ir.IntType(32))


@intrinsic
def _float(context: Any, bits: Any) -> Any:
    return float32(bits), lambda context, builder, signature, args: builder.bitcast(args[0], ir.FloatType())


def _compiled(function: Any) -> Any:
    """Sums in lanes and fused multiply-adds, which make these loops vector code; nothing is assumed of NaN."""
    return numba.njit(nogil=True, fastmath={"reassoc", "contract"})(function)


@_compiled
def _ordered(bits):  # type: ignore[no-untyped-def]
    """Integers in the order of the floats with these bits; its own inverse."""
    return int32(bits ^ (bits >> int32(31)) & int32(0x7FFFFFFF))


@_compiled
def _powers(x, top):  # type: ignore[no-untyped-def]
    """x[i] becomes 2^(x[i] - top); their sum."""
    total = float32(0)
    for i in range(len(x)):
        t = x[i] - top
        t = _LEAST if t < _LEAST else t  # NaN stays
        whole = np.rint(t)
        f = t - whole
        p = float32(1) + f * (_C1 + f * (_C2 + f * (_C3 + f * (_C4 + f * (_C5 + f * _C6)))))
        p = _float(int32(_bits(p) + (int32(whole) << int32(23))))
        x[i] = p
        total += p
    return total


@kernel
def _fp32(scores):  # type: ignore[no-untyped-def]
    for r in range(len(scores)):
        row = scores[r]
        top = int32(-(2**31))
        for i in range(len(row)):
            top = max(top, _ordered(_bits(row[i])))
        inverse = float32(1) / _powers(row, _float(_ordered(top)))
        for i in range(len(row)):
            row[i] *= inverse


@kernel
def _bf16(scores):  # type: ignore[no-untyped-def]
    wide = np.empty(scores.shape[1], np.float32)
    for r in range(len(scores)):
        row = scores[r]
        top = int32(-(2**31))
        for i in range(len(row)):
            bits = int32(row[i]) << int32(16)
            wide[i] = _float(int32(bits))
            top = max(top, _ordered(int32(bits)))
        inverse = float32(1) / _powers(wide, _float(_ordered(top)))
        for i in range(len(row)):
            bits = _bits(wide[i] * inverse)  # rounded to the nearest bf16, to the even one of two
            row[i] = int16(bits + int32(0x7FFF) + (bits >> int32(16) & int32(1)) >> int32(16))
