"""How many bits of a word are set, inside kernels. Imports numba only."""

from __future__ import annotations

from typing import Any

from numba.core import types
from numba.extending import intrinsic


def _popcount(typing_context, word):  # type: ignore[no-untyped-def]
    """The number of ones in a uint64, as uint64."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        return builder.ctpop(arguments[0])

    return types.uint64(types.uint64), generate


popcount: Any = intrinsic(_popcount)
