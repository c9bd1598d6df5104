"""Made-up rows of token ids, and a changed model, for the inference tests."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from safetensors.torch import load_file, save_file


def random_rows(lengths: Iterable[int], vocabulary: int, seed: int = 0) -> list[np.ndarray]:
    """Rows of made-up ids of the given lengths."""
    rng = np.random.default_rng(seed)
    return [rng.integers(3, vocabulary, n, np.int32) for n in lengths]


def change_a_weight(folder: Path) -> None:
    """Another value for one weight of the model in a folder."""
    tensors = load_file(folder / "model.safetensors")
    tensors[min(tensors)].view(-1)[0] += 1
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
