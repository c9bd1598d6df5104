"""A hint to the processor to fetch what will be looked up soon. Imports llvmlite and numba only."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic


def _prefetch(typing_context, array, index):  # type: ignore[no-untyped-def]
    """Begin to load `array[index]` into the caches; harmless for any index, and without a result."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        array, index = arguments
        data = context.make_array(signature.args[0])(context, builder, array).data
        byte, number = ir.IntType(8).as_pointer(), ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [byte, number, number, number])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0i8")
        pointer = builder.bitcast(builder.gep(data, [index]), byte)
        builder.call(function, [pointer, number(0), number(3), number(1)])
        return context.get_dummy_value()

    return types.void(array, types.uint64), generate


prefetch: Any = intrinsic(_prefetch)
