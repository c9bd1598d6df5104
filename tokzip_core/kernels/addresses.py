"""Loads from, and copies between, addresses inside kernels; little-endian machines only. Imports numba and llvmlite.

For mapped files of which there are many: an array for each would make one call of a kernel each.
"""

from __future__ import annotations

import sys
from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

if sys.byteorder != "little":
    raise ImportError("tokzip's kernels need a little-endian processor")


def _word_at(typing_context, address):  # type: ignore[no-untyped-def]
    """The 8 bytes at `address` as one uint64; unchecked."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        pointer = builder.inttoptr(arguments[0], ir.IntType(64).as_pointer())
        return builder.load(pointer, align=1)

    return types.uint64(types.uint64), generate


word_at: Any = intrinsic(_word_at)


def _byte_at(typing_context, address):  # type: ignore[no-untyped-def]
    """The byte at `address` as uint64; unchecked."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        pointer = builder.inttoptr(arguments[0], ir.IntType(8).as_pointer())
        return builder.zext(builder.load(pointer), ir.IntType(64))

    return types.uint64(types.uint64), generate


byte_at: Any = intrinsic(_byte_at)


def _copy(typing_context, to, source, size):  # type: ignore[no-untyped-def]
    """Copy `size` bytes from address `source` to address `to`, which must not overlap; unchecked."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        byte = ir.IntType(8).as_pointer()
        to, source = (builder.inttoptr(a, byte) for a in arguments[:2])
        cgutils.raw_memcpy(builder, to, source, arguments[2], 1)
        return context.get_dummy_value()

    return types.void(types.uint64, types.uint64, types.uint64), generate


copy: Any = intrinsic(_copy)
