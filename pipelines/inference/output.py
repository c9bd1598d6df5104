"""How a vector is written: its leading dimensions, as float32, float16, int8 or bits. Imports numpy, pyarrow."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from tokzip_core.errors import TokzipError

OUTPUT_TYPES = ("float32", "float16", "int8", "binary")
SCALE = "embedding_scale"


class OutputError(TokzipError):
    """An output that cannot be had of these vectors."""


@dataclass(frozen=True)
class Output:
    """Columns made of vectors of `dimension`.

    dimensions: how many leading ones are kept; such a shorter vector is brought back to length 1 (Kusupati et
    al. 2022, "Matryoshka representation learning", arXiv:2205.13147); None keeps all, untouched.
    type: `float32` and `float16`, lists of those; `int8`, and a column `embedding_scale` (float32): their
    product is the vector, and the largest element in size is 127; `binary`, lists of uint8, eight dimensions
    each, the first one in the highest bit, set where an element is above 0.
    Raises OutputError for another type, or dimensions that the vectors do not have.
    """

    dimension: int
    dimensions: int | None = None
    type: str = "float32"

    def __post_init__(self) -> None:
        if self.type not in OUTPUT_TYPES:
            raise OutputError(f"output type {self.type!r}: expected one of {', '.join(OUTPUT_TYPES)}")
        if self.dimensions is not None and not 1 <= self.dimensions <= self.dimension:
            raise OutputError(f"{self.dimensions} dimensions: the model's vectors have {self.dimension}")

    @property
    def kept(self) -> int:
        return self.dimensions or self.dimension

    @property
    def fields(self) -> list[pa.Field]:
        """Of the columns that `columns` makes."""
        item = {"float32": pa.float32(), "float16": pa.float16(), "int8": pa.int8(), "binary": pa.uint8()}[self.type]
        length = -(-self.kept // 8) if self.type == "binary" else self.kept
        scale = [pa.field(SCALE, pa.float32())] if self.type == "int8" else []
        return [pa.field("embedding", pa.list_(item, length)), *scale]

    def columns(self, vectors: np.ndarray, missing: np.ndarray) -> list[pa.Array]:
        """Of float32 `[rows, dimension]`; null where `missing` (bool)."""
        if self.kept < self.dimension:
            vectors = vectors[:, : self.kept]
            norms = np.sqrt(np.add.reduce(vectors * vectors, axis=1, keepdims=True))
            vectors = vectors / np.maximum(norms, 1e-12)
        mask, scales = pa.array(missing), []
        if self.type == "float16":
            vectors = vectors.astype(np.float16)
        elif self.type == "binary":
            vectors = np.packbits(vectors > 0, axis=1)
        elif self.type == "int8":
            largest = np.abs(vectors).max(axis=1, keepdims=True)
            scale = largest / np.float32(127)
            vectors = np.rint(vectors / np.where(scale > 0, scale, np.float32(1))).astype(np.int8)
            scales = [pa.array(scale[:, 0], mask=missing)]
        flat = pa.array(np.ascontiguousarray(vectors).reshape(-1))
        return [pa.FixedSizeListArray.from_arrays(flat, type=self.fields[0].type, mask=mask), *scales]
