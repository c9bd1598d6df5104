"""Many rows as one sequence through an unmodified model, without padding. Imports softmax, torch, transformers.

transformers lets an attention function be registered under a name of one's own (`AttentionInterface`) and
hands it the extra keywords of the model's call. So all rows of a batch go in as one `[1, tokens]` sequence
whose positions restart at every row; only attention sees where rows end. It runs once a group of rows of
equal length, or on CUDA in bf16 once a batch, by flash attention over rows of any length.
Everything else in an encoder works token by token. (The idea: "unpadding", Zeng et al. 2022, "Boosting
distributed training performance of the unpadded BERT model", arXiv:2208.08124.)
"""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, PreTrainedModel

from pipelines.inference import softmax
from pipelines.inference.rows import Rows

try:
    from torch.nn.attention.varlen import varlen_attn
except ImportError:  # torch before 2.10
    _VARLEN: frozenset[str] = frozenset()
else:
    _VARLEN = frozenset(inspect.signature(varlen_attn).parameters)

ATTENTION = "tokzip_packed"
# Below some 12 tokens, matrix products take other kernels, whose sums round differently: such batches get
# company, so that a row's vector does not depend on how many rows are with it.
LEAST_TOKENS = 32
# Rows up to so long attend by batched matrix products, at most so many scores at once; for longer ones the
# scores would decide the memory of a batch, and flash attention, which never holds them, is no slower.
_LONGEST_PRODUCT = 512
_SCORES_AT_ONCE = 1 << 22
Groups = list[tuple[int, int, int]]  # (first token, rows, tokens a row) of each run of rows of equal length


class PackedUnsupportedError(Exception):
    """The model asks of attention what the packed path does not do."""


def attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    tokzip_groups: Groups | None = None,
    tokzip_bounds: torch.Tensor | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attention of `[1, heads, tokens, dim]` within each row; gives `[1, tokens, heads, dim]`.

    sliding_window: a token sees those fewer than so many places from it, on both sides.
    """
    if tokzip_groups is None or attention_mask is not None:
        raise PackedUnsupportedError("a mask")
    if getattr(module, "is_causal", False) or query.shape != key.shape or query.shape[0] != 1:
        raise PackedUnsupportedError("causal, cross or grouped-query attention")
    heads, dim = query.shape[1], query.shape[-1]
    scale = dim**-0.5 if scaling is None else scaling
    if tokzip_bounds is not None and query.dtype == torch.bfloat16 and dim % 8 == 0 and dim <= 256:
        q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
        side = -1 if sliding_window is None else sliding_window - 1
        longest = max(length for _, _, length in tokzip_groups)
        # Else, how the keys of a row are split depends on the longest row of the batch.
        one_split = {"num_splits": 1} if "num_splits" in _VARLEN else {}
        bounds = (tokzip_bounds, tokzip_bounds, longest, longest)
        return varlen_attn(q, k, v, *bounds, scale=scale, window_size=(side, side), **one_split)[None], None
    out = torch.empty_like(query.transpose(1, 2), memory_format=torch.contiguous_format)
    for start, rows, length in tokzip_groups:
        most = max(1, _SCORES_AT_ONCE // (heads * length**2))
        for first in range(0, rows, most):
            n = min(most, rows - first)
            part = slice(start + first * length, start + (first + n) * length)
            q, k, v = (x[0, :, part].unflatten(1, (n, length)).transpose(0, 1) for x in (query, key, value))
            out[0, part] = _attend_equal(q, k, v, scale, sliding_window).transpose(1, 2).flatten(0, 1)
    return out, None


def _attend_equal(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float, window: int | None) -> torch.Tensor:
    """Attention of `[rows, heads, length, dim]`. Which way depends on the length alone: so do a row's bits."""
    n, heads, length, dim = q.shape
    hidden = None
    if window is not None and window < length:
        place = torch.arange(length, device=q.device)
        hidden = (place - place[:, None]).abs() >= window
    if length > _LONGEST_PRODUCT or q.is_cuda:
        return scaled_dot_product_attention(q, k, v, None if hidden is None else ~hidden, scale=scale)
    q, k, v = (x.reshape(n * heads, length, dim) for x in (q, k, v))
    scores = torch.baddbmm(q.new_empty(()), q, k.transpose(1, 2), beta=0, alpha=scale * softmax.LOG2_E)
    if hidden is not None:
        scores.masked_fill_(hidden, float("-inf"))
    return torch.bmm(softmax.softmax2(scores), v).view(n, heads, length, dim)


AttentionInterface.register(ATTENTION, attend)


def groups_of(lengths: np.ndarray) -> Groups:
    """Runs of equal lengths."""
    edges = np.flatnonzero(np.diff(lengths, prepend=-1))
    starts = np.cumsum(lengths) - lengths
    counts = np.diff(edges, append=len(lengths))
    return [(int(starts[e]), int(c), int(lengths[e])) for e, c in zip(edges, counts, strict=True)]


def run_packed(
    network: PreTrainedModel,
    rows: Rows,
    prefix: tuple[int, ...],
    suffix: tuple[int, ...],
    pooling: str,
    least_tokens: int = LEAST_TOKENS,
) -> torch.Tensor:
    """Pooled vectors `[rows, dim]`, float32, not normalised, of rows that are in order of length.

    least_tokens: a batch of fewer is filled up with rows of no use, as long as its longest.
    """
    ids, lengths = rows.layout(prefix, suffix)
    short, longest = max(0, least_tokens - len(ids)), int(lengths[-1])
    filled = np.concatenate([lengths, np.minimum(longest, np.arange(short, 0, -longest))])
    ids = np.concatenate([ids, np.full(short, ids[0])])
    groups = groups_of(filled)
    bounds = None
    if network.device.type == "cuda" and network.dtype == torch.bfloat16 and "window_size" in _VARLEN:
        bounds = _on_device(network, np.concatenate([[0], np.cumsum(filled)]).astype(np.int32))
    hidden = network(
        input_ids=_on_device(network, ids)[None],
        position_ids=_on_device(network, positions(network, ids, filled))[None],
        tokzip_groups=groups,
        tokzip_bounds=bounds,
    ).last_hidden_state[0]
    if pooling == "cls":
        return hidden[_on_device(network, np.cumsum(lengths) - lengths)].float()
    if bounds is not None:
        return torch.segment_reduce(hidden.float(), "mean", lengths=bounds.diff(), unsafe=True)[: len(rows)]
    parts = [hidden[s : s + n * k].unflatten(0, (n, k)).sum(1, dtype=torch.float32) / k for s, n, k in groups]
    return torch.cat(parts)[: len(rows)]


def run_padded(
    network: PreTrainedModel, rows: Rows, prefix: tuple[int, ...], suffix: tuple[int, ...], pooling: str
) -> torch.Tensor:
    """What `run_packed` gives, by the model's plain call on rows padded to the longest."""
    flat, lengths = rows.layout(prefix, suffix)
    mask = torch.arange(int(lengths.max())) < torch.from_numpy(lengths)[:, None]
    ids = torch.full(mask.shape, network.config.pad_token_id or 0)
    ids[mask] = torch.from_numpy(flat)
    ids, mask = ids.to(network.device), mask.to(network.device)
    hidden = network(input_ids=ids, attention_mask=mask.long()).last_hidden_state.float()
    if pooling == "cls":
        return hidden[:, 0].clone()  # a view would keep all of it
    return (hidden * mask[:, :, None]).sum(1) / mask.sum(1, keepdim=True)


def _on_device(network: PreTrainedModel, array: np.ndarray) -> torch.Tensor:
    """The array where the network is; to a GPU through pinned memory, without waiting."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(network.device, non_blocking=True) if network.device.type == "cuda" else tensor


def positions(network: PreTrainedModel, ids: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Positions that restart at every row, as the model itself would number a row alone."""
    starts = np.cumsum(lengths) - lengths
    if not (first := first_position(network)):
        return np.arange(len(ids)) - np.repeat(starts, lengths)
    counted = ids != first - 1  # a padding token, wherever it stands, has the padding's position and counts for none
    before = np.cumsum(counted) - counted
    return np.where(counted, first + before - np.repeat(before[starts], lengths), first - 1)


def _table(network: PreTrainedModel) -> torch.nn.Embedding | None:
    table = getattr(getattr(network, "embeddings", None), "position_embeddings", None)
    return table if isinstance(table, torch.nn.Embedding) else None


def first_position(network: PreTrainedModel) -> int:
    """RoBERTa and its kin count positions from behind the padding's, which their table of positions names."""
    table = _table(network)
    return 0 if table is None or table.padding_idx is None else table.padding_idx + 1


def capacity(network: PreTrainedModel) -> int | None:
    """The longest row, special tokens included, that the model has positions for, if it says."""
    table = _table(network)
    if table is not None:
        return table.num_embeddings - first_position(network)
    limit = getattr(network.config, "max_position_embeddings", None)
    return int(limit) if limit else None
