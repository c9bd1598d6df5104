"""Unaligned 8-byte loads and stores inside kernels; little-endian machines only. Imports numba and llvmlite."""

from __future__ import annotations

import sys
from typing import Any

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

if sys.byteorder != "little":
    raise ImportError("tokzip's kernels need a little-endian processor")


def _pointer(context: Any, builder: Any, array_type: Any, array: Any, index: Any) -> Any:
    data = context.make_array(array_type)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [index]), ir.IntType(64).as_pointer())


def _load(typing_context, array, index):  # type: ignore[no-untyped-def]
    """`array[index : index + 8]` (uint8, contiguous) as one uint64; unchecked."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        pointer = _pointer(context, builder, signature.args[0], *arguments)
        return builder.load(pointer, align=1)

    return types.uint64(array, types.uint64), generate


load: Any = intrinsic(_load)


def _store(typing_context, array, index, word):  # type: ignore[no-untyped-def]
    """`array[index : index + 8] = word` (uint8, contiguous); unchecked."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        array, index, word = arguments
        builder.store(word, _pointer(context, builder, signature.args[0], array, index), align=1)
        return context.get_dummy_value()

    return types.void(array, types.uint64, types.uint64), generate


store: Any = intrinsic(_store)
