"""Compiled loops over whole columns; `kernel` compiles one. Imports numba, so import it inside functions only."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba


def _cache_folder() -> str:
    """Where compiled kernels are kept: a folder for each state of the sources.

    numba itself looks at the one file that defines a kernel, and would go on with what the others held before.
    Empty, for numba's own choice, where the package's folder cannot be written.
    """
    package = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for source in sorted(package.rglob("*.py")):
        data = source.read_bytes()
        digest.update(f"{source.relative_to(package).as_posix()} {len(data)} ".encode() + data)
    chosen = numba.config.CACHE_DIR
    folder = Path(chosen) if chosen else Path(__file__).parent / "__pycache__"
    able = chosen or os.access(folder if folder.exists() else folder.parent, os.W_OK)
    return str(folder / digest.hexdigest()[:16]) if able else ""


_CACHE_FOLDER = _cache_folder()


def kernel(function: Callable[..., Any]) -> Any:
    """Compile `function` without the GIL, cached on disk where some cache folder can be written."""
    before = numba.config.CACHE_DIR
    numba.config.CACHE_DIR = _CACHE_FOLDER
    try:
        return numba.njit(nogil=True, cache=True)(function)
    except RuntimeError:  # numba's "no locator available": neither the package nor the user's cache is writable
        return numba.njit(nogil=True)(function)
    finally:
        numba.config.CACHE_DIR = before


def inline(function: Callable[..., Any]) -> Any:
    """Compile `function` as a part of each kernel that calls it, however large that makes it."""
    return numba.njit(nogil=True, forceinline=True)(function)
