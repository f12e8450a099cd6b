"""RLE Lossless at the speed of C, for environments that have numba; the package does not ask for it.

A run is copied 16 bytes at a time and may be written beyond its end, onto what the next run overwrites or into spare
room behind the plane: most runs are short, and copying byte by byte takes ten times longer. Whatever is not exactly one
plane per segment is left to the other decoders. Importing this module without numba is an ImportError.
"""

from __future__ import annotations

import numba
import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.core.errors import NumbaError
from numba.extending import intrinsic

STEP = 16
SPARE = STEP  # bytes behind a plane that the last copy may reach
_BYTES = ir.VectorType(ir.IntType(8), STEP)


def _pointer(context, builder, kind, array, index):
    data = cgutils.create_struct_proxy(kind)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [index]), _BYTES.as_pointer())


@intrinsic
def _copy(_, target, at, source, start):
    """target[at : at + 16] = source[start : start + 16], of bytes and without a check."""

    def made(context, builder, signature, values):
        first, _, second, _ = signature.args
        block = builder.load(_pointer(context, builder, second, values[2], values[3]), align=1)
        builder.store(block, _pointer(context, builder, first, values[0], values[1]), align=1)
        return context.get_dummy_value()

    return types.void(target, types.intp, source, types.intp), made


@intrinsic
def _fill(_, target, at, value):
    """target[at : at + 16] = value, of bytes and without a check."""

    def made(context, builder, signature, values):
        empty = ir.Constant(_BYTES, ir.Undefined)
        one = builder.insert_element(empty, values[2], ir.Constant(ir.IntType(32), 0))
        block = builder.shuffle_vector(one, empty, ir.Constant(ir.VectorType(ir.IntType(32), STEP), [0] * STEP))
        builder.store(block, _pointer(context, builder, signature.args[0], values[0], values[1]), align=1)
        return context.get_dummy_value()

    return types.void(target, types.intp, types.uint8), made


def _compiled(function):
    try:
        return numba.njit(nogil=True, cache=True)(function)
    except RuntimeError:  # no folder to keep the code in: compiled anew by every process
        return numba.njit(nogil=True)(function)


@_compiled
def _plane(source, start, end, target, size):
    """Unpack source[start:end] into target[:size], which has SPARE bytes more; whether it is exactly that."""
    at = np.int64(0)
    while start < end and at < size:
        code = np.int64(source[start])
        start += 1
        if code < 128:
            count = code + 1
            if start + count > end or at + count > size:
                return False
            if start + count + STEP > source.size:
                for i in range(count):
                    target[at + i] = source[start + i]
            else:
                for i in range(0, count, STEP):
                    _copy(target, at + i, source, start + i)
            start += count
            at += count  # type: ignore[assignment]
        elif code > 128:
            count = 257 - code
            if start >= end or at + count > size:
                return False
            for i in range(0, count, STEP):
                _fill(target, at + i, source[start])
            start += 1
            at += count  # type: ignore[assignment]
    return at == size


@_compiled
def _frame(source, high, low, scratch, pixels):
    """Two planes, (start, length) each, to words; whether both are whole."""
    size = pixels.size
    upper, lower = scratch[: size + SPARE], scratch[size + SPARE :]
    if not _plane(source, high[0], high[0] + high[1], upper, size):
        return False
    if not _plane(source, low[0], low[0] + low[1], lower, size):
        return False
    for i in range(size):
        pixels[i] = np.uint16(upper[i]) << 8 | np.uint16(lower[i])
    return True


def decode(buffer: bytearray, strips: list[tuple[int, int]], rows: int, columns: int) -> np.ndarray | None:
    """(rows, columns) uint16 of the PackBits of the high and the low plane, each (start, length) in the buffer.

    None where one of them is not exactly rows x columns bytes. The interpreter's lock is released meanwhile.
    """
    (high, low), size = strips, rows * columns
    source = np.frombuffer(buffer, np.uint8)
    if min(*high, *low) < 0 or max(sum(high), sum(low)) > source.size:
        return None
    scratch, pixels = np.empty(2 * (size + SPARE), np.uint8), np.empty(size, np.uint16)
    return pixels.reshape(rows, columns) if _frame(source, high, low, scratch, pixels) else None


def works() -> bool:
    """Compile it and try it: literals, repeats, and three frames that are damaged."""
    literal = bytes(range(100))
    buffer = bytearray(b"\x81\x07" + b"\x63" + literal + b"\x80" + b"\xe5\xff" + b"\x81\x07" * 2)
    high, low, longer = (0, 2), (2, 104), (106, 4)
    words = np.frombuffer(literal + b"\xff" * 28, np.uint8).reshape(8, 16) + np.uint16(0x0700)
    try:
        found = decode(buffer, [high, low], 8, 16)
        damaged = [decode(buffer, [longer, low], 16, 16), decode(buffer, [high, (2, 50)], 8, 16)]
        damaged.append(decode(buffer, [high, low], 8, 15))
    except (NumbaError, AttributeError, TypeError, OSError):  # made for another numba
        return False
    return found is not None and np.array_equal(found, words) and all(one is None for one in damaged)
