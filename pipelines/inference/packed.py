"""Many rows as one sequence through an unmodified model, without padding. Imports torch, transformers.

transformers lets an attention function be registered under a name of one's own (`AttentionInterface`) and
hands it the extra keywords of the model's call. So all rows of a batch go in as one `[1, tokens]` sequence
whose positions restart at every row; only attention sees where rows end, and runs once a group of rows of
equal length. Everything else in an encoder works token by token. (The idea: "unpadding", Zeng et al. 2022,
"Boosting distributed training performance of the unpadded BERT model", arXiv:2208.08124.)
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, PreTrainedModel

from pipelines.inference.rows import Rows

ATTENTION = "tokzip_packed"
# Below some 12 tokens, matrix products take other kernels, whose sums round differently: such batches get
# company, so that a row's vector does not depend on how many rows are with it.
_LEAST_TOKENS = 32
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
    sliding_window: Any = None,
    tokzip_groups: Groups | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attention of `[1, heads, tokens, dim]` within each row; gives `[1, tokens, heads, dim]`."""
    if tokzip_groups is None or attention_mask is not None or sliding_window is not None:
        raise PackedUnsupportedError("a mask or a sliding window")
    if getattr(module, "is_causal", False) or query.shape != key.shape or query.shape[0] != 1:
        raise PackedUnsupportedError("causal, cross or grouped-query attention")
    out = torch.empty_like(query.transpose(1, 2), memory_format=torch.contiguous_format)
    for start, rows, length in tokzip_groups:
        end = start + rows * length
        q, k, v = (x[0, :, start:end].unflatten(1, (rows, length)).transpose(0, 1) for x in (query, key, value))
        heads = scaled_dot_product_attention(q, k, v, scale=scaling)
        out[0, start:end] = heads.transpose(1, 2).flatten(0, 1)
    return out, None


AttentionInterface.register(ATTENTION, attend)


def groups_of(lengths: np.ndarray) -> Groups:
    """Runs of equal lengths."""
    edges = np.flatnonzero(np.diff(lengths, prepend=-1))
    starts = np.cumsum(lengths) - lengths
    counts = np.diff(edges, append=len(lengths))
    return [(int(starts[e]), int(c), int(lengths[e])) for e, c in zip(edges, counts, strict=True)]


def run_packed(
    network: PreTrainedModel, rows: Rows, prefix: tuple[int, ...], suffix: tuple[int, ...], pooling: str
) -> torch.Tensor:
    """Pooled vectors `[rows, dim]`, not normalised, of rows that are in order of length."""
    ids, lengths = rows.layout(prefix, suffix)
    short = _LEAST_TOKENS - len(ids)
    filled = np.concatenate([lengths, np.ones(max(0, short), np.int64)])
    ids = np.concatenate([ids, np.full(max(0, short), ids[0])])
    groups = groups_of(filled)
    hidden = network(
        input_ids=torch.from_numpy(ids)[None],
        position_ids=torch.from_numpy(positions(network, ids, filled))[None],
        tokzip_groups=groups,
    ).last_hidden_state[0]
    if pooling == "cls":
        return hidden[torch.from_numpy(np.cumsum(lengths) - lengths)]
    parts = [hidden[s : s + n * k].unflatten(0, (n, k)).sum(1) / k for s, n, k in groups]
    return torch.cat(parts)[: len(rows)]


def run_padded(
    network: PreTrainedModel, rows: Rows, prefix: tuple[int, ...], suffix: tuple[int, ...], pooling: str
) -> torch.Tensor:
    """What `run_packed` gives, by the model's plain call on rows padded to the longest."""
    flat, lengths = rows.layout(prefix, suffix)
    mask = torch.arange(int(lengths.max())) < torch.from_numpy(lengths)[:, None]
    ids = torch.full(mask.shape, network.config.pad_token_id or 0)
    ids[mask] = torch.from_numpy(flat)
    hidden = network(input_ids=ids, attention_mask=mask.long()).last_hidden_state
    if pooling == "cls":
        return hidden[:, 0]
    return (hidden * mask[:, :, None]).sum(1) / mask.sum(1, keepdim=True)


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
