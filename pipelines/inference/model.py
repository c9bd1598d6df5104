"""A transformer encoder that turns rows of ids into vectors. Imports packed, linear, identity, transformers."""

from __future__ import annotations

import copy
import inspect
import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from transformers import AutoConfig, AutoModel, PreTrainedModel
from transformers.utils import logging as transformers_logging

from pipelines.inference import identity, linear, packed
from pipelines.inference.rows import Rows, outside
from pipelines.inference.settings import ModelError, Settings, find, read_settings, transformer_folder

PRECISIONS = ("auto", "fp32", "bf16")
# `auto` takes bf16 where no vector of the calibration sample has a lower cosine to its fp32 self.
LEAST_COSINE = 0.9998
# How far the packed path may be from the plain one, per element, for vectors of elements up to 1.
TOLERANCE = 1e-5
_CALIBRATION_TOKENS = 1024
_SHARED_ELEMENTS = 1 << 16  # twice what torch leaves to one thread
_log = logging.getLogger(__name__)
# One computation at a time in a process: each takes all its cores, and sets torch's number of threads meanwhile.
_computing = threading.Lock()


def load_model(
    name: str,
    *,
    pooling: str = "auto",
    normalize: str = "auto",
    max_length: int | None = None,
    long_rows: str = "truncate",
    batch_tokens: int | None = None,
    precision: str = "auto",
    calibration: Rows | None = None,
) -> EmbeddingModel:
    """A model in a folder, or on the hub by name, with safetensors weights and no code of its own.

    `auto` and None mean what the model's own files say; of `precision` and `calibration`, see `EmbeddingModel`.
    Raises ModelError.
    """
    _check_options(batch_tokens, precision)
    folder = transformer_folder(name)
    bar = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        network, report = AutoModel.from_pretrained(
            name,
            subfolder=folder,
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
    model = EmbeddingModel(network, settings, batch_tokens, precision, calibration)
    model.name = name
    return model


def check_model(
    name: str,
    *,
    pooling: str,
    normalize: str,
    max_length: int | None,
    long_rows: str,
    batch_tokens: int | None,
    precision: str,
) -> tuple[Settings, int]:
    """The settings that `load_model` would take, and the vectors' dimension, from all but the weights.

    Raises ModelError.
    """
    _check_options(batch_tokens, precision)
    folder = transformer_folder(name)
    if find(name, str(Path(folder, "config.json"))) is None:
        raise ModelError(f"model {name}: cannot be loaded: no config.json")
    weights = [Path(name, folder, f"model.safetensors{end}") for end in ("", ".index.json")]
    if Path(name).is_dir() and not any(w.is_file() for w in weights):
        raise ModelError(f"model {name}: cannot be loaded: no weights as safetensors (model.safetensors) in the folder")
    try:
        config = AutoConfig.from_pretrained(name, subfolder=folder, trust_remote_code=False)
        with torch.device("meta"):  # shapes without memory
            network = AutoModel.from_config(config, trust_remote_code=False)
    except Exception as error:
        raise ModelError(f"model {name}: cannot be loaded: {error}") from error
    settings = read_settings(name, packed.capacity(network), pooling, normalize, max_length, long_rows)
    return settings, int(config.hidden_size)


def _check_options(batch_tokens: int | None, precision: str) -> None:
    if batch_tokens is not None and batch_tokens < 1:
        raise ModelError(f"batch_tokens {batch_tokens}: expected at least 1")
    if precision not in PRECISIONS:
        raise ModelError(f"precision {precision!r}: expected one of {', '.join(PRECISIONS)}")


class EmbeddingModel:
    """Vectors of `dimension` float32 from rows of ids without special tokens. Safe to share between threads.

    network: as transformers loaded it, in float32; it is changed and must not be used by others. batch_tokens: in all
    batches at once, 2,048 where None, one a thread of torch's, but 1,024 a thread at least. On CUDA, in each batch,
    16,384 where None; smaller ones are filled up, and a row's bits may depend on the number.
    precision: `auto` is bf16 where the processor has it and the lowest cosine to fp32 over `calibration`, rows
    of ids (their first 1,024 tokens; made-up rows where None), is at least `LEAST_COSINE`; else fp32. `bf16` is
    compared as well where there is a calibration.

    `fingerprint` names everything that a vector depends on but how a processor rounds. `precision` is the one taken,
    and `cosine` the lowest that was found (None where nothing was compared). `batches`, as tried at load: "packed",
    rows of any length without padding; for a model that gives other vectors that way, "padded"; where those differ too
    (the model reads the padding), rows of "equal length" alone. `prepacked`: linear layers in the processor's own
    layout. `exact`: packed, and of the rows tried at load each had the same bits alone and among others.
    """

    def __init__(
        self,
        network: PreTrainedModel,
        settings: Settings,
        batch_tokens: int | None = None,
        precision: str = "auto",
        calibration: Rows | None = None,
    ) -> None:
        if getattr(network, "pooler", None) is not None:  # a head for training; nothing here reads its output
            network.pooler = None
        described = identity.describe(network, settings)
        self.network = network.eval().to("cuda" if torch.cuda.is_available() else "cpu")
        self.name: str | None = None  # where `load_model` found it
        self.settings = settings
        self.batch_tokens = batch_tokens or (16384 if self._on_cuda else 2048)
        self.dimension = int(network.config.hidden_size)
        self.vocabulary_size = int(network.get_input_embeddings().num_embeddings)
        made_up = self._made_up_rows()
        self.batches = self._try_batches(made_up)
        self.exact, self._shared = False, True  # whether several threads may share a batch
        sample = made_up if precision == "auto" else None
        if calibration is not None:
            sample = self._sample(calibration)
        self.precision, self.cosine = self._settle(precision, sample)
        self.fingerprint = identity.fingerprint(described, self.precision)
        if self.packed:
            self.exact, self._shared = self._try_exact()

    @property
    def _on_cuda(self) -> bool:
        return self.network.device.type == "cuda"

    @property
    def packed(self) -> bool:
        return self.batches == "packed"

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
        pooled: list[tuple[np.ndarray, torch.Tensor]] = []

        @torch.inference_mode()
        def run(batch: np.ndarray) -> None:
            pooled.append((batch, self._pooled(pieces.take(batch), self.packed)))

        with _computing:
            threads = 1 if self._on_cuda else torch.get_num_threads()
            batches = list(pieces.batches(self.batch_tokens, self.settings.specials, not self.packed, threads))
            if self.batches == "equal length":
                batches = [part for b in batches for part in _of_equal_length(b, pieces.lengths)]
            _side_by_side(run, batches, threads, self._shared)
            vectors = np.empty((len(pieces), self.dimension), np.float32)
            for batch, part in pooled:  # only now: a GPU was still at work
                vectors[batch] = part.cpu().numpy()
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

    def matrix_product_seconds(self, tokens: int = 1024) -> float:
        """Seconds a token that the network's bare matrix products take here, in batches of `tokens`.

        On CUDA of `batch_tokens` at least, up to which batches are filled.
        """
        if self._on_cuda:
            tokens = max(tokens, self.batch_tokens)
        length = min(tokens, self.settings.max_length) - self.settings.specials
        count = -(-tokens // (length + self.settings.specials))
        values = np.random.default_rng(0).integers(0, self.vocabulary_size, count * length, np.int32)
        rows = Rows(values, np.arange(count) * length, np.full(count, length))
        with _computing, torch.inference_mode():
            return linear.bare_seconds(self.network, lambda: self._pooled(rows, self.packed)) / self.tokens(rows)

    def _pooled(self, rows: Rows, is_packed: bool) -> torch.Tensor:
        s = self.settings
        if not is_packed:
            return packed.run_padded(self.network, rows, s.prefix, s.suffix, s.pooling)
        # cuBLAS chooses a kernel by the number of tokens, and the kernels sum in orders of their own.
        least = self.batch_tokens if self._on_cuda else packed.LEAST_TOKENS
        return packed.run_packed(self.network, rows, s.prefix, s.suffix, s.pooling, least)

    def _made_up_rows(self, lengths: Sequence[int] = (1, 1, 2, 5, 9, 9, 17, 40, 40, 130, 300)) -> Rows:
        limit = self.settings.max_length - self.settings.specials
        lengths = np.sort(np.minimum(lengths, limit))
        values = np.random.default_rng(0).integers(0, self.vocabulary_size, lengths.sum(), np.int32)
        if (pad := self.network.config.pad_token_id) is not None:
            values[values == pad] = (pad + 1) % self.vocabulary_size
        return Rows(values, np.cumsum(lengths) - lengths, lengths)

    def _sample(self, rows: Rows) -> Rows:
        """The first rows that have a vector, of some thousand tokens together, or made-up ones where none has."""
        rows = rows.take(np.array(sorted(set(range(len(rows))) - self.refused(rows).keys()), np.int64))
        rows = rows.truncated(min(self.settings.max_length, _CALIBRATION_TOKENS) - self.settings.specials)
        rows = rows.take(np.flatnonzero(np.cumsum(rows.lengths + self.settings.specials) <= _CALIBRATION_TOKENS))
        return rows if len(rows) else self._made_up_rows()

    @torch.inference_mode()
    def _try_batches(self, rows: Rows) -> str:
        """In which batches rows have the vectors that the plain call gives of each alone, in fp32."""
        plain_attention, name = self.network.config._attn_implementation, type(self.network).__name__
        try:
            expected = torch.cat([self._pooled(r, False) for r in _singles(rows)])
        except Exception as error:  # of any kind: a decoder's input is missing, say
            raise ModelError(f"{name}: gives no vectors for rows of ids: {error}") from error

        def differ(rows: Rows, is_packed: bool) -> str | None:
            worst = float((self._pooled(rows, is_packed) - expected[: len(rows)]).abs().max())
            near = worst <= TOLERANCE * max(1.0, float(expected.abs().max()))
            return None if near else f"vectors differ by {worst:.2g}"

        try:
            if not getattr(self.network, "_supports_attention_backend", True):
                raise packed.PackedUnsupportedError("attention of its own kind, or none")
            if "position_ids" not in inspect.signature(self.network.forward).parameters:
                raise packed.PackedUnsupportedError("no position_ids")
            self.network.set_attn_implementation(packed.ATTENTION)
            reason = differ(rows, True)
            if reason is None:
                return "packed"
        except packed.PackedUnsupportedError as error:
            reason = str(error)
        except Exception as error:  # models that know nothing of it fail in ways of their own
            reason = f"{type(error).__name__}: {error}"
        _log.warning("%s: rows cannot be packed without padding: %s", name, reason)
        self.network.set_attn_implementation(plain_attention)
        reason = differ(rows.take(np.arange(len(rows) - 2)), False)  # the longest would cost the others much padding
        if reason is None:
            return "padded"
        _log.warning("%s: batches are of rows of equal length: padded, %s", name, reason)
        return "equal length"

    def _settle(self, precision: str, rows: Rows | None) -> tuple[str, float | None]:
        """Bring the network to the precision asked for; that one, and the lowest cosine found against fp32."""
        if precision == "fp32" or (precision == "auto" and not has_bf16(self.network.device.type)):
            self.prepacked = self._prepack()
            return "fp32", None
        expected = None if rows is None else self.embed(rows)
        exact_network = copy.deepcopy(self.network) if precision == "auto" else None
        _to_bf16(self.network)
        try:
            self.prepacked = self._prepack()
            cosine = None if expected is None else _lowest_cosine(self.embed(rows), expected)
        except RuntimeError as error:  # an operator that has no bf16
            if exact_network is None:
                raise ModelError(f"precision bf16: the model cannot be run in it: {error}") from error
            cosine = -1.0
        if exact_network is None or cosine >= LEAST_COSINE:
            return "bf16", cosine
        self.network = exact_network
        self.prepacked = self._prepack()
        return "fp32", cosine

    def _prepack(self) -> bool:
        prepacked = linear.prepack(self.network, self.batch_tokens)
        if prepacked:
            rows = self._made_up_rows()
            with torch.inference_mode():
                linear.fuse_activations(self.network, lambda: self._pooled(rows, self.packed).numpy())
        return prepacked

    @torch.inference_mode()
    def _try_exact(self) -> tuple[bool, bool]:
        """Whether rows have the same bits alone and in packs of many sizes on one thread; and on all as well.

        Some kernels treat the elements otherwise that do not fill a vector, at a tensor's end or at a thread's. Packs
        of many short rows, of odd sizes and enough for several threads, show it before long sums hide it.
        """
        short = 8
        rows = self._made_up_rows([1] * short + [2] * short + [5, 9, 9, 17, 40, 40, 130, 300])
        n = len(rows)

        def ending_in_each(tokens: int) -> list[np.ndarray]:
            least = 1 + tokens // (1 + self.settings.specials)
            return [np.append(np.resize(np.arange(short), least + i), short + i) for i in range(short)]

        packs = [*ending_in_each(packed.LEAST_TOKENS), np.arange(n), np.arange(n - 1)]
        alone = [np.array([i]) for i in range(n)]
        many = ending_in_each(_SHARED_ELEMENTS // self.dimension)[:4]
        if self._on_cuda:
            packs = [pack for pack in packs if self.tokens(rows.take(pack)) <= self.batch_tokens]
        with _computing:
            threads = torch.get_num_threads()
            torch.set_num_threads(1)
            try:
                expected = torch.cat([self._pooled(rows.take(i), True) for i in alone])

                def same(pack: np.ndarray) -> bool:
                    return bool((self._pooled(rows.take(pack), True) == expected[pack]).all())

                exact = all(map(same, packs))
                torch.set_num_threads(threads)
                return exact, exact and (threads == 1 or self._on_cuda or all(map(same, many + alone[-8:])))
            finally:
                torch.set_num_threads(threads)


def _of_equal_length(batch: np.ndarray, lengths: np.ndarray) -> list[np.ndarray]:
    """The batch, in order of length, cut where that changes."""
    return np.split(batch, np.flatnonzero(np.diff(lengths[batch])) + 1)


def _side_by_side(run: Callable[[np.ndarray], None], batches: list[np.ndarray], threads: int, shared: bool) -> None:
    """Run every batch, each on one thread: faster than all threads on one batch, which wait for each other at every
    operator. A single batch may be `shared` by all."""
    if threads == 1 or (len(batches) < 2 and shared):
        for batch in batches:
            run(batch)
        return
    torch.set_num_threads(1)  # new threads begin with it; MKL has one number for all
    try:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(run, batches))
    finally:
        torch.set_num_threads(threads)


def has_bf16(device: str) -> bool:
    """Whether the processor ("cpu" or "cuda") multiplies bf16 matrices itself."""
    if device == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    able = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return bool(able.get("avx512_bf16") or able.get("amx_bf16"))


def _to_bf16(network: torch.nn.Module) -> None:
    """Convert parameters, not buffers (rotary frequencies need their digits), nor LayerNorm's where it may stay."""
    for module in network.modules():
        if isinstance(module, torch.nn.LayerNorm) and module.weight is not None and not module.weight.is_cuda:
            continue
        for parameter in module.parameters(recurse=False):
            parameter.data = parameter.data.to(torch.bfloat16)


def _singles(rows: Rows) -> list[Rows]:
    return [rows.take(np.array([i])) for i in range(len(rows))]


def _lowest_cosine(a: np.ndarray, b: np.ndarray) -> float:
    """The lowest over the rows; -1 where a vector is not finite."""
    cosines = (a * b).sum(1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))
    return float(np.nan_to_num(cosines, nan=-1.0).min())
