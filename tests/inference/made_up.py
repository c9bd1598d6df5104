"""Made-up rows of token ids for the inference tests."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np


def random_rows(lengths: Iterable[int], vocabulary: int, seed: int = 0) -> list[np.ndarray]:
    """Rows of made-up ids of the given lengths."""
    rng = np.random.default_rng(seed)
    return [rng.integers(3, vocabulary, n, np.int32) for n in lengths]
