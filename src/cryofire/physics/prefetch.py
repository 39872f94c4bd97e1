"""Asking memory for a value ahead of its use, inside compiled kernels.

A kernel that reads all over a large grid waits for memory. The processor guesses what is read next only where that lies in a row.
"""

from __future__ import annotations

from typing import Any

import numba
from llvmlite import ir
from numba.core.cgutils import get_or_insert_function
from numba.extending import intrinsic

LINE = 16
"""Single-precision numbers in a cache line."""


def _typed_prefetch(context, values, index):
    """Ask for the cache line of a value of a contiguous array, without waiting for it."""

    def generate(target, builder, signature, arguments):
        pointer = ir.IntType(8).as_pointer()
        integer = ir.IntType(32)
        values = target.make_array(signature.args[0])(target, builder, arguments[0])
        address = builder.bitcast(builder.gep(values.data, [arguments[1]]), pointer)
        kind = ir.FunctionType(ir.VoidType(), [pointer, integer, integer, integer])
        function = get_or_insert_function(builder.module, kind, "llvm.prefetch.p0i8")
        builder.call(function, [address, integer(0), integer(3), integer(1)])  # to read, keep in all caches, data
        return target.get_dummy_value()

    return numba.types.void(values, index), generate


prefetch: Any = intrinsic(_typed_prefetch)
