"""The tokenizer engines: each turns a list of texts into flat ids and offsets. Imports one library each, when used.

An engine is a function `list[str] -> (ids, offsets)`: all rows' ids end to end as uint32, and n + 1 int64 offsets.
No engine adds special tokens; all honour those written out in a text, as `tokenizers` does.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from itertools import chain, pairwise

import numpy as np
import pyarrow as pa
import tokenizers

from tokzip_core.errors import TokzipError

Engine = Callable[[list[str]], tuple[np.ndarray, np.ndarray]]
PIECE = 1 << 18  # bytes of a text that `in_pieces` cuts
_PIECES = 8  # that an engine is given at once: it may have a core for each
_CUT = re.compile(rb"[0-9A-Za-z] (?=[0-9A-Za-z])")


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


def takes_words_alone(tokenizer_json: str) -> bool:
    """Whether a text has the ids of its parts, one after the other, where it is cut at a space between two letters or
    digits of ASCII: so it is with WordPiece after BERT's normalizer and pre-tokenizer, which look at no more than a
    word or a run of characters beyond ASCII (accents), unless an added token has a space in it."""
    parts = json.loads(tokenizer_json)
    kinds = [(parts.get(part) or {}).get("type") for part in ("model", "pre_tokenizer", "normalizer")]
    return kinds in (
        ["WordPiece", "BertPreTokenizer", "BertNormalizer"],
        ["WordPiece", "BertPreTokenizer", None],
    ) and not any(c.isspace() for token in parts.get("added_tokens") or () for c in token["content"])


def in_pieces(engine: Engine, texts: pa.StringArray) -> tuple[np.ndarray, np.ndarray]:
    """What `engine` gives for the texts, of a tokenizer that `takes_words_alone`; a long text is never in memory whole
    but once: as a `str` and in an engine it would be several times."""
    pa.default_memory_pool().release_unused()  # what reading a long row has taken, in forms of before
    data, bounds = memoryview(texts.buffers()[2]), np.frombuffer(texts.buffers()[1], np.int32)
    bounds = bounds[texts.offset : texts.offset + len(texts) + 1]
    ids = np.empty(int(bounds[-1] - bounds[0]), np.uint32)  # pages that are never written cost nothing
    at, offsets = 0, [0]
    for row in pairwise(bounds.tolist()):
        cuts = _cuts(data, *row)
        for i in range(0, len(cuts) - 1, _PIECES):
            pieces = [str(data[a:b], "utf-8") for a, b in pairwise(cuts[i : i + _PIECES + 1])]
            found, _ = engine(pieces)
            if at + len(found) > len(ids):  # more than one a byte
                ids.resize(2 * (at + len(found)), refcheck=False)
            ids[at : at + len(found)] = found
            at += len(found)
        offsets.append(at)
    return ids[:at], np.array(offsets, np.int64)


def _cuts(data: memoryview, begin: int, end: int) -> list[int]:
    """Where the text `data[begin:end]` begins, may be cut every PIECE bytes or a little later, and ends."""
    cuts = [begin]
    while found := _CUT.search(data, cuts[-1] + PIECE, end):
        cuts.append(found.end())
    return [*cuts, end]
