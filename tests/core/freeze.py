"""Write a codec's frozen file, once for each version of it: `python tests/core/freeze.py CODEC`.

Files in frozen/ stand for what released versions wrote; they are never written again.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa

import tokzip_core as tz

FROZEN = Path(__file__).with_name("frozen")


def frozen_name(codec: str, version: int | str) -> str:
    return f"{codec}-{version}.json"


def freeze(codec: str) -> None:
    rng = np.random.default_rng(0)
    ids = (rng.zipf(1.3, 6_000) % 60).tolist()
    sample = [ids[i : i + 20] + [0] * (32 - 20) for i in range(0, 6_000, 20)]
    codebook = tz.train(pa.array(sample), codec)
    rows = [*sample[:4], [], None, ids[:100], [3], [0] * 32, [7] * 5_000, [60, 61, 2**31 - 1, 0, 5], [2**31 - 1] * 3]
    blobs = tz.encode(pa.array(rows, pa.list_(pa.int32())), codebook).storage
    frozen = {
        "codebook": codebook.to_bytes().hex(),
        "tokens": rows,
        "blobs": [None if blob is None else blob.hex() for blob in blobs.to_pylist()],
    }
    FROZEN.mkdir(exist_ok=True)
    with (FROZEN / frozen_name(codec, codebook.version)).open("x") as file:
        file.write(json.dumps(frozen))


if __name__ == "__main__":
    freeze(sys.argv[1])
