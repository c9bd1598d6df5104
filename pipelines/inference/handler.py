"""The cached encoder as a `ModelHandler` for anyone's RunInference. Imports beam."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from apache_beam.ml.inference.base import ModelHandler, PredictionResult

from pipelines.inference.encoder import CachedEncoder
from pipelines.inference.model import load_model


class EmbeddingModelHandler(ModelHandler[Any, PredictionResult, CachedEncoder]):
    """Examples are sequences of token ids without special tokens (lists, numpy arrays, Arrow list scalars), or texts.

    Each becomes a `PredictionResult` whose inference is the row's vector, float32 `[dimension]`, in the same
    order. The options are those of `load_model`, but `calibration`, and of `CachedEncoder`; others go to Beam's
    `ModelHandler`. Batches are large because a batch is ordered by length and packed by tokens inside; `share`
    keeps one model a machine where the runner can. Raises TypeError for an option that neither knows.

    Each worker settles `precision="auto"` for itself, by its own processor and made-up rows: name the precision
    where workers differ, or the vectors of one collection do. A row that the model refuses fails its whole batch,
    which is what `RunInference.with_exception_handling` then gives as the dead letter.
    """

    def __init__(
        self,
        model: str,
        *,
        cache: str = "none",
        cache_values: str = "lossless",
        pooling: str = "auto",
        normalize: str = "auto",
        max_length: int | None = None,
        long_rows: str = "truncate",
        batch_tokens: int | None = None,
        precision: str = "auto",
        min_batch_size: int = 64,
        max_batch_size: int = 1024,
        share: bool = False,
        **kwargs: Any,
    ) -> None:
        known = {*inspect.signature(ModelHandler.__init__).parameters, "env_vars"} - {"self", "kwargs"}
        if unknown := kwargs.keys() - known:  # Beam drops them without a word
            raise TypeError(f"EmbeddingModelHandler has no option {min(unknown)!r}")
        super().__init__(min_batch_size=min_batch_size, max_batch_size=max_batch_size, large_model=share, **kwargs)
        self._model = model
        self._cache, self._cache_values = cache, cache_values
        self._options: dict[str, Any] = {
            "pooling": pooling,
            "normalize": normalize,
            "max_length": max_length,
            "long_rows": long_rows,
            "batch_tokens": batch_tokens,
            "precision": precision,
        }

    def load_model(self) -> CachedEncoder:
        return CachedEncoder(load_model(self._model, **self._options), self._cache, self._cache_values)

    def run_inference(
        self, batch: Sequence[Any], model: CachedEncoder, inference_args: dict[str, Any] | None = None
    ) -> Iterable[PredictionResult]:
        if not len(batch):  # Beam's batching by weight can hand over nothing
            return []
        vectors = model.encode(batch)
        return [PredictionResult(example, vector, self._model) for example, vector in zip(batch, vectors, strict=True)]

    def get_num_bytes(self, batch: Sequence[Any]) -> int:
        return sum(len(np.atleast_1d(example)) * 4 for example in batch)

    def get_metrics_namespace(self) -> str:
        return "tokzip_embedding"

    def validate_inference_args(self, inference_args: dict[str, Any] | None) -> None:
        if inference_args:
            raise ValueError(f"EmbeddingModelHandler takes no inference arguments, got {sorted(inference_args)}")
