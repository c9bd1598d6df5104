"""Codebooks: train, name by content, store, load, check. Imports columns, codecs, errors; fsspec, zstandard when used.

The bytes are specified in docs/FORMAT.md.
"""

from __future__ import annotations

import hashlib
import struct
from typing import Any

from tokzip_core.codecs import get_codec
from tokzip_core.columns import numbered, token_column
from tokzip_core.errors import CorruptCodebookError, TokzipError

MAGIC = b"TKZC"
FORMAT = 1
_MICRO = 1_000_000


class Codebook:
    """What `encode` and `decode` need besides tokens or blobs. Immutable: threads may share one; pickles by value.

    codec, version: the codec that made it. id: hex SHA-256 of its bytes. expected_bits: bits a token over the
    training tokens, row ends not counted.
    """

    def __init__(self, data: bytes) -> None:
        """From untrusted bytes; see `from_bytes`."""
        self._data = bytes(data)
        self.id = hashlib.sha256(self._data).hexdigest()
        head = len(MAGIC) + 2
        if self._data[:4] != MAGIC or len(self._data) < head:
            raise CorruptCodebookError("not a codebook: it does not start with TKZC")
        if self._data[4] != FORMAT:
            raise CorruptCodebookError(f"codebook format {self._data[4]}; this version of tokzip reads {FORMAT}")
        body_at = head + self._data[5] + 10
        if len(self._data) < body_at:
            raise CorruptCodebookError("the codebook is cut short")
        self.codec = self._data[head : body_at - 10].decode("ascii", "replace")
        self.version, expected, size = struct.unpack_from("<HII", self._data, body_at - 10)
        self.expected_bits: float = expected / _MICRO
        self._codec = get_codec(self.codec, self.version)
        self._tables = self._codec.tables(_unpack(self._data[body_at:], size, self._codec.max_body))

    @staticmethod
    def from_bytes(data: bytes) -> Codebook:
        """Read and validate a codebook.

        Raises CorruptCodebookError unless every part of it is valid, UnknownCodecError for a codec not known here.
        """
        return Codebook(data)

    def to_bytes(self) -> bytes:
        return self._data

    def save(self, url: str) -> None:
        """Write to a path or any fsspec URL, making local folders as needed."""
        import fsspec

        with fsspec.open(str(url), "wb", auto_mkdir=True) as file:
            file.write(self._data)

    def __reduce__(self) -> tuple[Any, tuple[bytes]]:
        return Codebook, (self._data,)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Codebook) and self._data == other._data

    def __hash__(self) -> int:
        return hash(self.id)

    def __repr__(self) -> str:
        return f"<Codebook {self.codec} {self.version} {self.id[:12]}… {len(self._data)} bytes>"


def load_codebook(url: str) -> Codebook:
    """The codebook at a path or any fsspec URL; raises CorruptCodebookError naming the URL."""
    import fsspec

    with fsspec.open(str(url), "rb") as file:
        data = file.read()
    try:
        return Codebook(data)
    except CorruptCodebookError as error:
        raise CorruptCodebookError(f"{url}: {error}") from error


class Trainer:
    """Gathers what a codec must know of a corpus. Small and picklable; the order of adding and merging is no matter."""

    def __init__(self, codec: str = "huffman") -> None:
        self.codec = codec
        self._model = get_codec(codec).model()

    def add(self, tokens: Any) -> Trainer:
        """Count the rows of an Arrow array of integer lists, a ChunkedArray, or an iterable of them."""
        for first, array in numbered(tokens):
            self._model.add(token_column(array, first))
        return self

    def merge(self, other: Trainer) -> Trainer:
        """Count all that `other`, of the same codec, has counted."""
        if other.codec != self.codec:
            raise TokzipError(f"a trainer of {other.codec!r} cannot be merged into one of {self.codec!r}")
        self._model.merge(other._model)
        return self

    @property
    def tokens(self) -> int:
        """How many tokens were counted."""
        return self._model.tokens

    @property
    def entropy(self) -> float:
        """Order-0 entropy of what was counted, in bits a token; 0 for no tokens."""
        return self._model.entropy

    def finish(self) -> Codebook:
        """The codebook for all that was counted."""
        codec = get_codec(self.codec)
        body, bits = codec.train(self._model)
        name = self.codec.encode("ascii")
        head = struct.pack("<4sBB", MAGIC, FORMAT, len(name)) + name
        return Codebook(head + struct.pack("<HII", codec.version, round(bits * _MICRO), len(body)) + _pack(body))


def train(tokens: Any, codec: str = "huffman") -> Codebook:
    """A codebook of `codec` for tokens like these.

    tokens: `pa.ListArray`, `LargeListArray`, `FixedSizeListArray` of any integer type, a ChunkedArray of one, or an
    iterable of them. Raises InvalidTokensError, UnknownCodecError.
    """
    return Trainer(codec).add(tokens).finish()


def _pack(body: bytes) -> bytes:
    import zstandard

    return zstandard.ZstdCompressor(level=19, write_checksum=True).compress(body)


def _unpack(frame: bytes, size: int, limit: int) -> bytes:
    """`size` bytes from one zstd frame; nothing is allocated before the sizes are seen to agree and be allowed."""
    import zstandard

    try:
        declared = zstandard.get_frame_parameters(frame).content_size
        if declared != size or size > limit:
            raise CorruptCodebookError(f"a body of {size} bytes, {declared} in its frame; {limit} are allowed")
        body = zstandard.ZstdDecompressor().decompress(frame, max_output_size=max(1, size), allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise CorruptCodebookError(f"the codebook's body does not decompress: {error}") from error
    if len(body) != size:
        raise CorruptCodebookError(f"a body of {size} bytes decompresses to {len(body)}")
    return body
