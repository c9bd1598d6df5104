"""Compiled loops over whole columns; `kernel` compiles one. Imports numba, so import it inside functions only."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba


def kernel(function: Callable[..., Any]) -> Any:
    """Compile `function` without the GIL, cached on disk where some cache folder can be written."""
    try:
        return numba.njit(nogil=True, cache=True)(function)
    except RuntimeError:  # numba's "no locator available": neither the package nor the user's cache is writable
        return numba.njit(nogil=True)(function)


def inline(function: Callable[..., Any]) -> Any:
    """Compile `function` as a part of each kernel that calls it, however large that makes it."""
    return numba.njit(nogil=True, forceinline=True)(function)
