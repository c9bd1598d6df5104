"""The tokenizer engines: each turns a list of texts into flat ids and offsets. Imports one library each, when used.

An engine is a function `list[str] -> (ids, offsets)`: all rows' ids end to end as uint32, and n + 1 int64 offsets.
No engine adds special tokens; all honour those written out in a text, as `tokenizers` does.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain

import numpy as np
import tokenizers

from tokzip_core.errors import TokzipError

Engine = Callable[[list[str]], tuple[np.ndarray, np.ndarray]]


class EngineError(TokzipError):
    """The engine that the user asked for cannot do what `tokenizers` does."""


def huggingface(tokenizer_json: str) -> Engine:
    """The reference: `tokenizers` itself, on as many cores as it likes."""
    tokenizer = tokenizers.Tokenizer.from_str(tokenizer_json)

    def encode(texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        rows = [e.ids for e in tokenizer.encode_batch_fast(texts, add_special_tokens=False)]
        offsets = np.zeros(len(rows) + 1, np.int64)
        np.cumsum([len(r) for r in rows], out=offsets[1:])
        return np.fromiter(chain.from_iterable(rows), np.uint32, int(offsets[-1])), offsets

    return encode


def nanotoken(tokenizer_json: str) -> Engine:
    """WordPiece only."""
    import nanotoken

    tokenizer = nanotoken.WordPieceTokenizer.from_json(tokenizer_json)
    return lambda texts: tokenizer.encode_batch(texts, add_special_tokens=False)


def gigatoken(tokenizer_json: str) -> Engine:
    """BPE and SentencePiece."""
    import gigatoken

    tokenizer = gigatoken.Tokenizer.from_json(tokenizer_json)

    def encode(texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        layout = tokenizer.encode_batch(texts).layout.to_packed()
        return np.asarray(layout.content.data), np.asarray(layout.offsets.data)

    return encode


ENGINES: dict[str, Callable[[str], Engine]] = {
    "nanotoken": nanotoken,
    "gigatoken": gigatoken,
    "huggingface": huggingface,
}
