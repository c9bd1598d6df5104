"""tokzip_core: columns of token ids, stored small and read fast. Imports numpy, pyarrow; the rest when first used."""

from tokzip_core.advise import PREFERENCES, Advice, advise
from tokzip_core.blob import TokenBlobArray, TokenBlobType, decode, encode
from tokzip_core.codebook import Codebook, Trainer, load_codebook, train
from tokzip_core.codecs import codecs
from tokzip_core.errors import (
    CorruptBlobError,
    CorruptCodebookError,
    InvalidTokensError,
    TokzipError,
    UnknownCodebookError,
    UnknownCodecError,
)
from tokzip_core.store import TokenStore
from tokzip_core.table import codebook_metadata, file_codebook, parquet_options, read_table

__all__ = [
    "PREFERENCES",
    "Advice",
    "Codebook",
    "CorruptBlobError",
    "CorruptCodebookError",
    "InvalidTokensError",
    "TokenBlobArray",
    "TokenBlobType",
    "TokenStore",
    "TokzipError",
    "Trainer",
    "UnknownCodebookError",
    "UnknownCodecError",
    "advise",
    "codebook_metadata",
    "codecs",
    "decode",
    "encode",
    "file_codebook",
    "load_codebook",
    "parquet_options",
    "read_table",
    "train",
]
