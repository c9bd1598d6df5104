"""Find what belongs to an id. Imports kernels only."""

from __future__ import annotations

from tokzip_core.kernels import kernel


@kernel
def entry_of(token, ids, entries):  # type: ignore[no-untyped-def]
    """The entry of `token` among the rising `ids`, 0 where it is not one of them."""
    low, high = 0, ids.size
    while low < high:
        middle = (low + high) >> 1
        if ids[middle] < token:
            low = middle + 1
        else:
            high = middle
    return entries[low] if low < ids.size and ids[low] == token else entries.dtype.type(0)
