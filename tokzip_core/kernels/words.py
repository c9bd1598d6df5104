"""Unaligned 8-byte loads and stores, and prefetches, inside kernels; little-endian machines only.

Imports numba, llvmlite and kernels only.
"""

from __future__ import annotations

import sys
from typing import Any

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from tokzip_core.kernels import inline

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


def _prefetch(typing_context, array, index):  # type: ignore[no-untyped-def]
    """Have the processor bring `array[index]` into its caches, which may lie beyond the array's end."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        array, index = arguments
        data = context.make_array(signature.args[0])(context, builder, array).data
        pointer = builder.bitcast(builder.gep(data, [index]), ir.IntType(8).as_pointer())
        number = ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [pointer.type, number, number, number])
        function = builder.module.declare_intrinsic("llvm.prefetch", [pointer.type], kind)
        builder.call(function, [pointer, number(0), number(3), number(1)])  # to read, into all caches, of data
        return context.get_dummy_value()

    return types.void(array, types.uint64), generate


prefetch: Any = intrinsic(_prefetch)


@inline
def prefetch_all(table):  # type: ignore[no-untyped-def]
    """`prefetch` all of an array: sooner done than waiting for each part of it when first needed."""
    for i in range(types.uint64(0), types.uint64(table.size), types.uint64(64 // table.itemsize)):
        prefetch(table, i)
