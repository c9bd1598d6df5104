"""What else turns rows into vectors: plain transformers, sentence-transformers, Beam's own RunInference."""

from __future__ import annotations

import importlib
import sys
import types
from collections.abc import Callable, Iterable, Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any
from unittest import mock

import apache_beam as beam
import numpy as np
import torch
from apache_beam.ml.inference.base import KeyedModelHandler, PredictionResult, RunInference
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.testing.util import assert_that
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModel, Pipeline, pipeline  # noqa: F401 (loading them replaces the module patched below)

LONGEST = 256
Ids = Sequence[torch.Tensor]  # with special tokens


def _pooled(network: Any, batch: Ids) -> torch.Tensor:
    """Mean-pooled vectors of length 1 of one padded batch."""
    lengths = torch.tensor([len(ids) for ids in batch])
    padded = pad_sequence(list(batch), batch_first=True)
    mask = (torch.arange(padded.shape[1]) < lengths[:, None]).long()
    hidden = network(input_ids=padded, attention_mask=mask).last_hidden_state.float()
    mean = (hidden * mask[:, :, None]).sum(1) / lengths[:, None]
    return torch.nn.functional.normalize(mean)


def transformers_plain(folder: Path, ids: Ids, in_order_of_length: bool) -> Callable[[], np.ndarray]:
    """transformers as its documentation has it: batches of 32, padded to their longest, fp32."""
    network = AutoModel.from_pretrained(folder, use_safetensors=True).eval()
    order = sorted(range(len(ids)), key=lambda i: len(ids[i])) if in_order_of_length else range(len(ids))

    def run() -> np.ndarray:
        out = np.empty((len(ids), network.config.hidden_size), np.float32)
        with torch.inference_mode():
            for start in range(0, len(ids), 32):
                part = list(order[start : start + 32])
                out[part] = _pooled(network, [ids[i] for i in part]).numpy()
        return out

    return run


def sentence_transformers(folder: Path, texts: list[str], dtype: torch.dtype) -> Callable[[], np.ndarray]:
    """`SentenceTransformer.encode`, which orders by length itself; it starts from the text."""
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(folder), device="cpu", model_kwargs={"dtype": dtype})
    model.max_seq_length = LONGEST

    def run() -> np.ndarray:
        return np.asarray(model.encode(texts, batch_size=32, convert_to_tensor=True).float().cpu())

    return run


def _infer(
    batch: Sequence[dict[str, torch.Tensor]],
    network: Any,
    device: Any,
    inference_args: Any,
    model_id: str | None = None,
) -> Iterable[PredictionResult]:
    with torch.inference_mode():
        vectors = _pooled(network, [example["input_ids"] for example in batch])
    return [PredictionResult(example, vector, model_id) for example, vector in zip(batch, vectors, strict=True)]


def _hugging_face_handler() -> Any:
    """Beam's class. Its module wants TensorFlow's classes, which transformers 5 no longer has and torch never needs."""
    stand_in = types.ModuleType("tensorflow")
    stand_in.Tensor = type("Tensor", (), {})  # type: ignore[attr-defined]
    stand_in.__spec__ = ModuleSpec("tensorflow", None)
    with (
        mock.patch.dict(sys.modules, {"tensorflow": stand_in}),
        mock.patch.dict(vars(sys.modules["transformers"]), {"TFAutoModel": type("TFAutoModel", (), {})}),
    ):
        module = importlib.import_module("apache_beam.ml.inference.huggingface_inference")
    return module.HuggingFaceModelHandlerKeyedTensor


def run_inference(folder: Path, ids: Ids, dtype: torch.dtype) -> Callable[[], None]:
    """Beam's Hugging Face handler at its fastest: batches of 32 of rows that come in order of length.

    Its own batching by length (`batch_length_fn`) was slower than that where both were tried.
    """
    handler = _hugging_face_handler()(
        model_uri=str(folder),
        model_class=AutoModel,
        framework="pt",
        device="CPU",
        inference_fn=_infer,
        load_model_args={"dtype": dtype, "use_safetensors": True},
        min_batch_size=32,
        max_batch_size=32,
    )

    def run() -> None:
        def complete(keys: list[int]) -> None:
            assert sorted(keys) == list(range(len(ids)))

        examples = sorted(
            ((i, {"input_ids": row}) for i, row in enumerate(ids)), key=lambda example: len(example[1]["input_ids"])
        )
        with beam.Pipeline(runner=FnApiRunner(), options=PipelineOptions([])) as job:
            results = job | beam.Create(examples, reshuffle=False) | RunInference(KeyedModelHandler(handler))
            assert_that(results | beam.Keys(), complete)

    return run
