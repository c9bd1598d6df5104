"""A tokenizer with its identity, and the check that lets a fast engine stand in. Imports engines, huggingface_hub."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import threading
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import tokenizers
from huggingface_hub import hf_hub_download

from pipelines import storage
from pipelines.storage import InputError
from pipelines.tokenizing import engines
from pipelines.tokenizing.vocabulary import vocabulary_digest

ENGINES = ("auto", *engines.ENGINES)
_PROBE_ROWS = 32
_PROBE_BYTES = 16_384
_LONG = 16 << 20  # bytes of a block that has long rows
_log = logging.getLogger(__name__)


def load_tokenizer(name: str) -> str:
    """The `tokenizer.json` of a folder, a file, a URL of either, or a model name on the Hugging Face hub.

    Truncation and padding are taken out, since a token data set keeps whole rows, and keys are sorted: equal
    tokenizers give equal strings. Raises `InputError` where there is no fast tokenizer of that name.
    """
    text = _find(name)
    try:
        tokenizers.Tokenizer.from_str(text)
    except Exception as e:  # the library raises nothing narrower
        raise InputError(f"{name}: not a tokenizer.json that `tokenizers` reads: {e}") from e
    parts = json.loads(text)
    parts.update(truncation=None, padding=None)
    return json.dumps(parts, sort_keys=True, ensure_ascii=False)


def _find(name: str) -> str:
    url = name if name.endswith(".json") else storage.join(name, "tokenizer.json")
    if storage.exists(url):
        try:
            return storage.read_bytes(url).decode()
        except UnicodeDecodeError as e:
            raise InputError(f"{url}: not UTF-8: {e}") from e
    is_folder = Path(name).is_dir()
    if "://" in name or (Path(name).is_absolute() and not is_folder) or (is_folder and not any(Path(name).iterdir())):
        raise InputError(f"{name}: no tokenizer.json there")
    if not is_folder:
        # The file itself, as it is read from a folder: transformers writes some tokenizers in other words.
        with contextlib.suppress(OSError, ValueError):
            return Path(hf_hub_download(name, "tokenizer.json")).read_text(encoding="utf-8")
    from transformers import AutoTokenizer  # a slow import, and only needed for older folders and models

    try:
        fast = AutoTokenizer.from_pretrained(name)
        text, size = str(fast.backend_tokenizer.to_str()), fast.backend_tokenizer.get_vocab_size()
    except Exception as e:
        raise InputError(f"{name}: no fast tokenizer in a folder or on the hub of that name: {e}") from e
    # Where a model has no files of a tokenizer, transformers makes one up that knows special tokens only.
    if size <= 2 * len(fast.all_special_ids):
        raise InputError(f"{name}: no tokenizer.json and no vocabulary there")
    return text


class Tokenizer:
    """A tokenizer (its `tokenizer.json`) behind an engine; safe to share between threads.

    `fingerprint` is the SHA-256 of the JSON as `load_tokenizer` gives it, `vocabulary` the digest of its
    (id, token) pairs; `engine_name` is the engine in use.

    With engine "auto", the fast engines are tried in turn. A fast engine is trusted where it accepts the tokenizer
    and gives the ids that `tokenizers` gives on a probe of the text itself, taken anew from every split.
    """

    def __init__(self, tokenizer_json: str, engine: str = "auto") -> None:
        self.fingerprint = hashlib.sha256(tokenizer_json.encode()).hexdigest()
        self.vocabulary = vocabulary_digest(tokenizers.Tokenizer.from_str(tokenizer_json))
        self._json = tokenizer_json
        self._takes_words_alone = engines.takes_words_alone(tokenizer_json)
        self._reference = engines.huggingface(tokenizer_json)
        self._lock = threading.Lock()
        self._fast = [engine] if engine not in ("auto", "huggingface") else list(ENGINES[1:-1])
        if engine == "huggingface":
            self._fast = []
        self._required = engine not in ("auto", "huggingface")
        self._engine: engines.Engine = self._reference
        self.engine_name = "huggingface"
        self._next()

    def _next(self) -> None:
        """Go on to the next engine that accepts the tokenizer."""
        self._engine, self.engine_name = self._reference, "huggingface"
        while self._fast:
            name = self._fast.pop(0)
            try:
                self._engine, self.engine_name = engines.ENGINES[name](self._json), name
                return
            except BaseException as e:  # a panic in Rust is no Exception
                if isinstance(e, KeyboardInterrupt | SystemExit):
                    raise
                if self._required:
                    raise engines.EngineError(f"--tokenizer-engine {name}: it does not take this tokenizer: {e}") from e
                _log.info("tokenizer engine %s does not take this tokenizer: %s", name, e)

    def probe(self, texts: pa.StringArray) -> None:
        """Compare the engine with `tokenizers` on some rows of a split; where they differ, give the engine up.

        Raises `EngineError` where the user asked for that very engine.
        """
        with self._lock:
            while self._engine is not self._reference:
                rows = _probe_rows(texts)
                try:
                    same = all(
                        np.array_equal(a, b) for a, b in zip(self._engine(rows), self._reference(rows), strict=True)
                    )
                except BaseException as e:
                    if isinstance(e, KeyboardInterrupt | SystemExit):
                        raise
                    same = False
                if same:
                    return
                message = f"tokenizer engine {self.engine_name} differs from `tokenizers` on this text"
                if self._required:
                    raise engines.EngineError(message)
                _log.warning("%s; it is not used", message)
                self._next()

    def encode(self, texts: pa.StringArray) -> pa.ListArray:
        """Token ids without special tokens, list<int32>, of a text column without nulls."""
        if len(texts) == 0:
            return pa.array([], pa.list_(pa.int32()))
        if self._takes_words_alone and texts.nbytes > _LONG:
            ids, offsets = engines.in_pieces(self._engine, texts)
        else:
            ids, offsets = self._engine(texts.to_pylist())
        if offsets[-1] > np.iinfo(np.int32).max or (len(ids) and ids.max() > np.iinfo(np.int32).max):
            raise InputError("a block holds more than 2^31 - 1 tokens, or an id above that")
        return pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), pa.array(ids.view(np.int32)))


def _probe_rows(texts: pa.StringArray) -> list[str]:
    """Rows spread over the block, of a bounded size together; of a long row, its beginning."""
    step = max(1, len(texts) // _PROBE_ROWS)
    rows = range(0, len(texts), step)
    budget = max(256, _PROBE_BYTES // max(1, len(rows)))
    # A slice each: a scalar, or what is taken together, would be a copy of whole rows.
    return [pc.utf8_slice_codeunits(texts[i : i + 1], 0, budget)[0].as_py() for i in rows]
