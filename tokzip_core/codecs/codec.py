"""What a codec is: a named, versioned combination of transforms, a model and a coder. Imports columns only."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Protocol

from tokzip_core.columns import Column, Int32s, Int64s


class Model(Protocol):
    """What training gathers: small, picklable, and the same whatever the order of `add` and `merge`."""

    @property
    def tokens(self) -> int: ...

    @property
    def entropy(self) -> float: ...  # of order 0, in bits a token

    def add(self, column: Column) -> None: ...

    def merge(self, other: Any) -> None: ...


class Codec(ABC):
    """Stateless; what was trained is in a codebook's body, and in the `tables` made from it."""

    name: str
    version: int
    max_body: int  # bytes of the largest valid body: the bound for untrusted codebooks
    checks_ids = False  # whether `encode` raises InvalidTokensError for values over MAX_ID; else it never sees any

    @abstractmethod
    def model(self) -> Model:
        """A model that has seen nothing."""

    @abstractmethod
    def train(self, model: Any) -> tuple[bytes, float]:
        """The codebook body for what `model` has seen, and the bits a token expected of it, row ends not counted."""

    @abstractmethod
    def tables(self, body: bytes) -> Any:
        """What `encode` and `decode` need, read-only; raises CorruptCodebookError unless all of `body` is valid."""

    @abstractmethod
    def encode(self, column: Column, tables: Any) -> tuple[Any, Int64s]:
        """The blobs of token rows: all their bytes (a buffer) and each row's end in them."""

    @abstractmethod
    def decode(self, column: Column, tables: Any) -> tuple[Int32s, Int64s]:
        """The tokens (int32) of blob rows and each row's end in them; raises CorruptBlobError for any bad blob."""
