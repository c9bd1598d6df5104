"""The blob column: its Arrow type, encode and decode. Imports columns, codebook, errors."""

from __future__ import annotations

import json
from typing import Any

import pyarrow as pa

from tokzip_core.codebook import Codebook
from tokzip_core.columns import arrays, blob_column, token_column, variable_array
from tokzip_core.errors import CorruptBlobError, TokzipError, UnknownCodebookError


class TokenBlobArray(pa.ExtensionArray):  # type: ignore[misc]
    """Rows of encoded tokens; `decode` them."""


class TokenBlobType(pa.ExtensionType):  # type: ignore[misc]
    """Arrow extension type `tokzip.token_blob` over binary: one row, one blob. Registered when tokzip is imported."""

    def __init__(self, codec: str, version: int, codebook_id: str) -> None:
        self.codec = codec
        self.version = version
        self.codebook_id = codebook_id
        super().__init__(pa.binary(), "tokzip.token_blob")

    def __arrow_ext_serialize__(self) -> bytes:
        fields = {"codebook": self.codebook_id, "codec": self.codec, "version": self.version}
        return json.dumps(fields, sort_keys=True).encode()

    @classmethod
    def __arrow_ext_deserialize__(cls, storage_type: pa.DataType, serialized: bytes) -> TokenBlobType:
        try:
            fields = json.loads(serialized)
            codec, version, codebook = fields["codec"], fields["version"], fields["codebook"]
            if not (isinstance(codec, str) and isinstance(version, int) and isinstance(codebook, str)):
                raise ValueError(f"fields of a wrong type: {fields}")
        except (ValueError, KeyError, TypeError) as error:
            raise TokzipError(f"the metadata of type tokzip.token_blob cannot be read: {error!r}") from error
        if storage_type != pa.binary():
            raise TokzipError(f"type tokzip.token_blob is stored as binary, found {storage_type}")
        return cls(codec, version, codebook)

    def __arrow_ext_class__(self) -> type[TokenBlobArray]:
        return TokenBlobArray

    def __reduce__(self) -> tuple[Any, tuple[str, int, str]]:
        return TokenBlobType, (self.codec, self.version, self.codebook_id)


pa.register_extension_type(TokenBlobType("", 0, ""))


def encode(tokens: Any, codebook: Codebook) -> TokenBlobArray:
    """Encode a column of integer lists, row by row; null rows stay null.

    tokens: `pa.ListArray`, `LargeListArray`, `FixedSizeListArray` of any integer type, or a ChunkedArray of one.
    Raises InvalidTokensError for null items, ids outside 0 … 2^31 - 1, and more than 2^31 - 1 bytes of blobs.
    """
    kind = TokenBlobType(codebook.codec, codebook.version, codebook.id)
    parts = []
    for array in arrays(tokens):
        column = token_column(array)
        data, ends = codebook._codec.encode(column, codebook._tables)
        parts.append(variable_array(pa.binary(), ends, data, column.valid))
    storage = parts[0] if len(parts) == 1 else pa.concat_arrays([pa.array([], pa.binary()), *parts])
    blobs: TokenBlobArray = pa.ExtensionArray.from_storage(kind, storage)
    return blobs


def decode(blobs: pa.Array | pa.ChunkedArray, codebook: Codebook) -> pa.ListArray:
    """The tokens of a column of blobs (`TokenBlobArray`, or its bare binary storage) as `list<int32>`.

    Safe for any bytes. Raises CorruptBlobError naming the row of a bad blob, UnknownCodebookError where the blobs
    name another codebook, InvalidTokensError where more than 2^31 - 1 tokens come out (pass fewer rows at a time).
    """
    if isinstance(blobs, pa.ChunkedArray):
        blobs = blobs.chunk(0) if blobs.num_chunks == 1 else blobs.combine_chunks()
    if isinstance(blobs.type, TokenBlobType):
        if blobs.type.codebook_id != codebook.id:
            raise UnknownCodebookError(f"the blobs need codebook {blobs.type.codebook_id}, not {codebook.id}")
        blobs = blobs.storage
    elif not (pa.types.is_binary(blobs.type) or pa.types.is_large_binary(blobs.type)):
        raise CorruptBlobError(f"expected a column of token blobs, got {blobs.type}")
    column = blob_column(blobs)
    tokens, ends = codebook._codec.decode(column, codebook._tables)
    return variable_array(pa.list_(pa.int32()), ends, tokens, column.valid)
