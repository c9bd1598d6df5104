"""The errors that tokzip_core raises; every one is a TokzipError. Imports nothing."""


class TokzipError(Exception):
    """The base of every error raised on purpose by tokzip."""


class InvalidTokensError(TokzipError, ValueError):
    """Tokens that cannot be encoded: not lists of integers, a null item, or an id outside 0 … 2^31 - 1."""


class CorruptBlobError(TokzipError, ValueError):
    """A blob that the encoder cannot have written; the message names its row."""


class CorruptCodebookError(TokzipError, ValueError):
    """Bytes that are not a codebook, or are a damaged one."""


class UnknownCodebookError(TokzipError, LookupError):
    """The codebook that blobs name is not the one given, or is in none of the places looked at."""


class UnknownCodecError(TokzipError, LookupError):
    """A codec, or a version of one, that this version of tokzip does not have."""
