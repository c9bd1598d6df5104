"""Which ids mean which tokens: what a token data set and a model must have in common. Imports tokenizers only."""

from __future__ import annotations

import hashlib

import tokenizers


def vocabulary_digest(tokenizer: tokenizers.Tokenizer) -> str:
    """SHA-256 over the (id, token) pairs, added tokens included, in order of id; hex. Each token is length-prefixed."""
    digest = hashlib.sha256(b"tokzip vocabulary 1")
    for token, i in sorted(tokenizer.get_vocab(with_added_tokens=True).items(), key=lambda pair: (pair[1], pair[0])):
        data = token.encode("utf-8", "surrogatepass")
        digest.update(i.to_bytes(8, "little") + len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()
