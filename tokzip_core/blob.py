"""The blob column: its Arrow type, encode and decode. Imports columns, codebook, checksum, errors."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import pyarrow as pa

from tokzip_core.checksum import NAME, append_checksums, strip_checksums
from tokzip_core.codebook import Codebook
from tokzip_core.columns import Column, blob_column, numbered, token_column, variable_array
from tokzip_core.errors import CorruptBlobError, InvalidTokensError, TokzipError, UnknownCodebookError


class TokenBlobArray(pa.ExtensionArray):  # type: ignore[misc]
    """Rows of encoded tokens; `decode` them."""


class TokenBlobType(pa.ExtensionType):  # type: ignore[misc]
    """Arrow extension type `tokzip.token_blob` over binary: one row, one blob. Registered when tokzip is imported.

    Equal types read alike: same codec and version, same codebook (by id), each blob ending in a checksum or not. Others
    (Polars) may hand the blobs back as large_binary.
    """

    def __init__(
        self,
        codec: str,
        version: int,
        codebook_id: str,
        checksum: bool = False,
        storage_type: pa.DataType = pa.binary(),  # noqa: B008 (immutable)
    ) -> None:
        self.codec = codec
        self.version = version
        self.codebook_id = codebook_id
        self.checksum = checksum
        super().__init__(storage_type, "tokzip.token_blob")

    def __arrow_ext_serialize__(self) -> bytes:
        fields = {"codebook": self.codebook_id, "codec": self.codec, "version": self.version}
        return json.dumps(fields | ({"checksum": NAME} if self.checksum else {}), sort_keys=True).encode()

    @classmethod
    def __arrow_ext_deserialize__(cls, storage_type: pa.DataType, serialized: bytes) -> TokenBlobType:
        try:
            fields = json.loads(serialized)
            codec, version, codebook = fields["codec"], fields["version"], fields["codebook"]
            if not (isinstance(codec, str) and isinstance(version, int) and isinstance(codebook, str)):
                raise ValueError(f"fields of a wrong type: {fields}")
            if fields.get("checksum", NAME) != NAME:
                raise ValueError(f"a checksum {fields['checksum']!r}; this version of tokzip knows {NAME!r}")
        except (ValueError, KeyError, TypeError) as error:
            raise TokzipError(f"the metadata of type tokzip.token_blob cannot be read: {error!r}") from error
        if storage_type not in (pa.binary(), pa.large_binary()):
            raise TokzipError(f"type tokzip.token_blob is stored as binary or large_binary, found {storage_type}")
        return cls(codec, version, codebook, "checksum" in fields, storage_type)

    def __arrow_ext_class__(self) -> type[TokenBlobArray]:
        return TokenBlobArray

    def __reduce__(self) -> tuple[Any, tuple[str, int, str, bool, pa.DataType]]:
        return TokenBlobType, self._parts

    # pyarrow's own would call columns of different codebooks equal, and put them together.
    def __eq__(self, other: object) -> bool:
        return isinstance(other, TokenBlobType) and self._parts == other._parts

    def __ne__(self, other: object) -> bool:  # inherited, it would not ask __eq__
        return not self == other

    def __hash__(self) -> int:
        return hash(self._parts)

    @property
    def _parts(self) -> tuple[str, int, str, bool, pa.DataType]:
        return self.codec, self.version, self.codebook_id, self.checksum, self.storage_type


pa.register_extension_type(TokenBlobType("", 0, ""))
_type = lru_cache(maxsize=64)(TokenBlobType)  # making one takes as long as encoding 50,000 tokens


def encode(tokens: Any, codebook: Codebook, checksum: bool = False) -> TokenBlobArray:
    """Encode a column of integer lists, row by row; null rows stay null.

    tokens: `pa.ListArray`, `LargeListArray`, `FixedSizeListArray` of any integer type, or a ChunkedArray of one.
    checksum: end each blob with 2 bytes that find a flipped bit, checked whenever it is decoded.
    Raises InvalidTokensError for null items, ids outside 0 … 2^31 - 1, and more than 2^31 - 1 bytes of blobs.
    """
    kind = _type(codebook.codec, codebook.version, codebook.id, checksum)
    parts = []
    for first, array in numbered(tokens):
        column = token_column(array, first, check=not codebook._codec.checks_ids)
        try:
            data, ends = codebook._codec.encode(column, codebook._tables)
        except InvalidTokensError:
            token_column(array, first)  # names the row
            raise
        if checksum:
            data, ends = append_checksums(data, ends, column.valid)
        parts.append(variable_array(pa.binary(), ends, data, column.valid))
    storage = parts[0] if len(parts) == 1 else pa.concat_arrays([pa.array([], pa.binary()), *parts])
    blobs: TokenBlobArray = pa.ExtensionArray.from_storage(kind, storage)
    return blobs


def decode(blobs: pa.Array | pa.ChunkedArray, codebook: Codebook, checksum: bool = False) -> pa.ListArray:
    """The tokens of a column of blobs (`TokenBlobArray`, or its bare binary storage) as `list<int32>`.

    checksum: of bare storage, whether each blob ends in a checksum; a `TokenBlobArray` says so itself.
    Safe for any bytes. Raises CorruptBlobError naming the row of a bad blob, UnknownCodebookError where the blobs
    name another codebook, InvalidTokensError where more than 2^31 - 1 tokens come out (pass fewer rows at a time).
    """
    if isinstance(blobs, pa.ChunkedArray):
        blobs = blobs.chunk(0) if blobs.num_chunks == 1 else blobs.combine_chunks()
    if not isinstance(blobs, pa.Array):
        raise CorruptBlobError(f"expected an Arrow column of token blobs, got {type(blobs).__name__}")
    column = blob_rows(blobs, codebook, checksum)
    tokens, ends = codebook._codec.decode(column, codebook._tables)
    return variable_array(pa.list_(pa.int32()), ends, tokens, column.valid)


def blob_rows(blobs: pa.Array, codebook: Codebook, checksum: bool = False) -> Column:
    """The bytes of each row's blob, its checksum verified and off; arguments and errors as those of `decode`."""
    if isinstance(blobs.type, TokenBlobType):
        if blobs.type.codebook_id != codebook.id:
            raise UnknownCodebookError(f"the blobs need codebook {blobs.type.codebook_id}, not {codebook.id}")
        blobs, checksum = blobs.storage, blobs.type.checksum
    elif not (pa.types.is_binary(blobs.type) or pa.types.is_large_binary(blobs.type)):
        raise CorruptBlobError(f"expected a column of token blobs, got {blobs.type}")
    column = blob_column(blobs)
    return strip_checksums(column) if checksum else column


@contextmanager
def naming(rows: Any, where: str = "") -> Iterator[None]:
    """What codes under this names a bad row by its number in `rows` (a range or an array), after `where`."""
    try:
        yield
    except (CorruptBlobError, InvalidTokensError) as error:
        found = re.match(r"row (\d+)(.*)", str(error))
        fault = f"row {rows[int(found[1])]}{found[2]}" if found else str(error)
        raise type(error)(where + fault) from None
