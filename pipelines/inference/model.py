"""A transformer encoder that turns rows of ids into vectors. Imports packed, identity, transformers."""

from __future__ import annotations

import inspect
import logging
import threading
from pathlib import Path

import numpy as np
import torch
from transformers import AutoConfig, AutoModel, PreTrainedModel
from transformers.utils import logging as transformers_logging

from pipelines.inference import identity, packed
from pipelines.inference.rows import Rows, outside
from pipelines.inference.settings import ModelError, Settings, find, read_settings

PRECISION = "fp32"
# How far the packed path may be from the plain one, per element, for vectors of elements up to 1.
TOLERANCE = 1e-5
_log = logging.getLogger(__name__)


def load_model(
    name: str,
    *,
    pooling: str = "auto",
    normalize: str = "auto",
    max_length: int | None = None,
    long_rows: str = "truncate",
    batch_tokens: int = 2048,
) -> EmbeddingModel:
    """A model in a folder, or on the hub by name, with safetensors weights and no code of its own.

    `auto` and None mean what the model's own files say. Raises ModelError.
    """
    if batch_tokens < 1:
        raise ModelError(f"batch_tokens {batch_tokens}: expected at least 1")
    bar = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        network, report = AutoModel.from_pretrained(
            name,
            use_safetensors=True,
            trust_remote_code=False,
            dtype=torch.float32,
            output_loading_info=True,
        )
    except Exception as error:  # whatever is wrong with the files, of many types
        raise ModelError(f"model {name}: cannot be loaded: {error}") from error
    finally:
        if bar:
            transformers_logging.enable_progress_bar()
    missing = sorted(k for k in report["missing_keys"] if not k.startswith("pooler."))
    if missing or report["mismatched_keys"]:
        raise ModelError(f"model {name}: its weights lack {missing[:3] or report['mismatched_keys']} …")
    settings = read_settings(name, packed.capacity(network), pooling, normalize, max_length, long_rows)
    return EmbeddingModel(network, settings, batch_tokens)


def check_model(
    name: str, *, pooling: str, normalize: str, max_length: int | None, long_rows: str, batch_tokens: int
) -> Settings:
    """The settings that `load_model` would take, from all that it reads but the weights. Raises ModelError."""
    if batch_tokens < 1:
        raise ModelError(f"batch_tokens {batch_tokens}: expected at least 1")
    if find(name, "config.json") is None:
        raise ModelError(f"model {name}: cannot be loaded: no config.json")
    if Path(name).is_dir() and not any(Path(name, f"model.safetensors{end}").is_file() for end in ("", ".index.json")):
        raise ModelError(f"model {name}: cannot be loaded: no weights as safetensors (model.safetensors) in the folder")
    try:
        config = AutoConfig.from_pretrained(name, trust_remote_code=False)
        with torch.device("meta"):  # shapes without memory
            network = AutoModel.from_config(config, trust_remote_code=False)
    except Exception as error:
        raise ModelError(f"model {name}: cannot be loaded: {error}") from error
    return read_settings(name, packed.capacity(network), pooling, normalize, max_length, long_rows)


class EmbeddingModel:
    """Vectors of `dimension` float32 from rows of ids without special tokens. Safe to share between threads.

    network: as transformers loaded it; it is changed and must not be used by others.

    `fingerprint` names everything that a vector depends on. `packed`: rows go through without padding; a
    model that gives other vectors that way (tried at load) gets padded batches. `exact`: on the rows tried at
    load, a vector had the same bits alone and among others.
    """

    def __init__(self, network: PreTrainedModel, settings: Settings, batch_tokens: int = 2048) -> None:
        if getattr(network, "pooler", None) is not None:  # a head for training; nothing here reads its output
            network.pooler = None
        self.network = network.eval()
        self.settings = settings
        self.batch_tokens = batch_tokens
        self.dimension = int(network.config.hidden_size)
        self.vocabulary_size = int(network.get_input_embeddings().num_embeddings)
        self.fingerprint = identity.fingerprint(network, settings, PRECISION)
        self._lock = threading.Lock()
        self.packed, self.exact = self._try_packed()

    def refused(self, rows: Rows) -> dict[int, str]:
        """The rows that have no vector, by number, with the reason."""
        reasons = {}
        for i in np.flatnonzero(outside(rows, self.vocabulary_size)).tolist():
            reasons[i] = f"a token id outside the model's vocabulary of {self.vocabulary_size}"
        if not self.settings.specials:
            for i in np.flatnonzero(rows.lengths == 0).tolist():
                reasons[i] = "no tokens, and the model has no special tokens to add"
        return reasons

    def clip(self, rows: Rows) -> tuple[Rows, int]:
        """The rows as far as they reach the model, and how many are longer than one window of it."""
        limit = self.settings.max_length - self.settings.specials
        longer = int((rows.lengths > limit).sum())
        return (rows.truncated(limit) if self.settings.long_rows == "truncate" else rows), longer

    def tokens(self, rows: Rows) -> int:
        """The tokens that the model reads for `rows`, special tokens included."""
        pieces, _ = rows.windows(self.settings.max_length - self.settings.specials)
        return int(pieces.lengths.sum()) + len(pieces) * self.settings.specials

    def embed(self, rows: Rows) -> np.ndarray:
        """Vectors, float32 `[rows, dimension]`, of rows none of which is `refused`.

        A row longer than the maximum is embedded window by window; its vector is their pooled vectors' mean,
        weighted by their number of ids, normalised last where the model normalises.
        """
        pieces, first = self.clip(rows)[0].windows(self.settings.max_length - self.settings.specials)
        vectors = np.empty((len(pieces), self.dimension), np.float32)
        with self._lock, torch.inference_mode():
            for batch in pieces.batches(self.batch_tokens, self.settings.specials, not self.packed):
                vectors[batch] = self._pooled(pieces.take(batch), self.packed)
        if len(pieces) > len(rows):
            weights = pieces.lengths.astype(np.float32)
            total = np.add.reduceat(weights, first)
            several = np.diff(first, append=len(pieces)) > 1
            means = np.add.reduceat(vectors * weights[:, None], first) / np.maximum(total, 1)[:, None]
            vectors = np.where(several[:, None], means, vectors[first])
        if self.settings.normalize:
            norms = np.sqrt(np.add.reduce(vectors * vectors, axis=1, keepdims=True))
            vectors /= np.maximum(norms, 1e-12)
        return vectors

    def _pooled(self, rows: Rows, is_packed: bool) -> np.ndarray:
        run = packed.run_packed if is_packed else packed.run_padded
        s = self.settings
        vectors: np.ndarray = run(self.network, rows, s.prefix, s.suffix, s.pooling).numpy()
        return vectors

    def _try_packed(self) -> tuple[bool, bool]:
        """Compare made-up rows packed together with the same rows alone, by the plain call and packed."""
        limit = self.settings.max_length - self.settings.specials
        lengths = np.sort(np.minimum([1, 1, 2, 5, 9, 9, 17, 40, 40, 130, 300], limit))
        values = np.random.default_rng(0).integers(0, self.vocabulary_size, lengths.sum(), np.int32)
        if (pad := self.network.config.pad_token_id) is not None:
            values[values == pad] = (pad + 1) % self.vocabulary_size
        rows = Rows(values, np.cumsum(lengths) - lengths, lengths)
        singles = [rows.take(np.array([i])) for i in range(len(rows))]
        plain_attention = self.network.config._attn_implementation
        with torch.inference_mode():
            expected = np.concatenate([self._pooled(r, False) for r in singles])
            try:
                if "position_ids" not in inspect.signature(self.network.forward).parameters:
                    raise packed.PackedUnsupportedError("no position_ids")
                self.network.set_attn_implementation(packed.ATTENTION)
                together = self._pooled(rows, True)
                alone = np.concatenate([self._pooled(r, True) for r in singles])
                worst = float(np.abs(together - expected).max())
                if worst <= TOLERANCE * max(1.0, float(np.abs(expected).max())):
                    return True, bool((together == alone).all())
                reason = f"vectors differ by {worst:.2g}"
            except Exception as error:  # models that know nothing of it fail in ways of their own
                reason = f"{type(error).__name__}: {error}"
        _log.warning("%s: batches are padded: %s", type(self.network).__name__, reason)
        self.network.set_attn_implementation(plain_attention)
        return False, False
