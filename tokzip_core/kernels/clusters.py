"""The inner loop of clustering. Imports numpy and kernels only."""

from __future__ import annotations

import numpy as np

from tokzip_core.kernels import kernel


@kernel
def nearest(contexts, bounds, successors, weights, costs, of):  # type: ignore[no-untyped-def]
    """Set `of[c]` for each of `contexts` to the cluster whose code is shortest for what follows c.

    Context c is followed by `successors[bounds[c]:bounds[c + 1]]`, `weights` (float32) often; costs: float32 bits,
    [successor, cluster].
    """
    total = np.empty(costs.shape[1], np.float32)
    for context in contexts:
        total[:] = 0
        for i in range(bounds[context], bounds[context + 1]):
            row, weight = costs[successors[i]], weights[i]
            for k in range(total.size):
                total[k] += weight * row[k]
        of[context] = np.argmin(total)
