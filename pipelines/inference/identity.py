"""What names a vector: the model's fingerprint and a row's key. Imports torch, transformers.

Both are digests of length-prefixed fields: of all that changes a vector, and of nothing else (no path, name,
batch size or thread count).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable

import numpy as np
import pyarrow as pa
import torch
from transformers import PreTrainedModel

from pipelines.inference.rows import Rows
from pipelines.inference.settings import Settings

FORMAT = "tokzip embedding 3"
# Fields of a configuration that say where a model comes from or how it is trained, not what it computes.
_WITHOUT_EFFECT = {
    "_name_or_path",
    "architectures",
    "attention_dropout",
    "attention_probs_dropout_prob",
    "classifier_dropout",
    "dropout",
    "dtype",
    "gradient_checkpointing",
    "hidden_dropout_prob",
    "id2label",
    "initializer_range",
    "label2id",
    "num_labels",
    "problem_type",
    "seq_classif_dropout",
    "torch_dtype",
    "transformers_version",
    "use_cache",
}


def describe(network: PreTrainedModel, settings: Settings) -> tuple[str, ...]:
    """All that changes a vector but the precision: the weights by content, as published, and the settings."""
    config = {k: v for k, v in network.config.to_diff_dict().items() if k not in _WITHOUT_EFFECT}
    chosen = {
        "pooling": settings.pooling,
        "normalize": settings.normalize,
        "max_length": settings.max_length,
        "prefix": settings.prefix,
        "suffix": settings.suffix,
        "long_rows": settings.long_rows,
    }
    return (
        type(network).__name__,
        json.dumps(config, sort_keys=True, default=str),
        json.dumps(chosen, sort_keys=True),
        weights_digest(network.state_dict().items()),
    )


def fingerprint(described: tuple[str, ...], precision: str) -> str:
    """SHA-256, hex, of the weights by content and every setting that changes a vector."""
    digest = hashlib.sha256()
    for field in (FORMAT, precision, *described):
        _add(digest, field.encode())
    return digest.hexdigest()


def weights_digest(tensors: Iterable[tuple[str, torch.Tensor]]) -> str:
    """SHA-256, hex, of tensors by name, type, shape and bytes, in order of name, whatever their files' layout."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors, key=lambda pair: pair[0]):
        _add(digest, name.encode())
        _add(digest, f"{tensor.dtype} {list(tensor.shape)}".encode())
        _add(digest, memoryview(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()))
    return digest.hexdigest()


def _add(digest: hashlib._Hash, field: bytes | memoryview) -> None:
    digest.update(len(field).to_bytes(8, "little"))
    digest.update(field)


def row_keys(model_fingerprint: str, rows: Rows) -> pa.FixedSizeBinaryArray:
    """BLAKE2b-256 (RFC 7693) of the fingerprint's 32 bytes and the row's ids as little-endian int32."""
    base = hashlib.blake2b(bytes.fromhex(model_fingerprint), digest_size=32)
    data = memoryview(np.ascontiguousarray(rows.values, "<i4")).cast("B")
    digests = []
    for start, end in zip((rows.starts * 4).tolist(), ((rows.starts + rows.lengths) * 4).tolist(), strict=True):
        digest = base.copy()
        digest.update(data[start:end])
        digests.append(digest.digest())
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(32), len(digests), [None, pa.py_buffer(b"".join(digests))])
