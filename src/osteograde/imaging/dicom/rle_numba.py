"""RLE Lossless at the speed of C, for environments that have numba; the package does not ask for it.

A run is copied 64 bytes at a time and may be written beyond its end, onto what the next run overwrites or into spare
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

STEP = 64
SPARE = STEP  # bytes behind a plane, and words behind the pixels, that the last copy may reach
_BYTES, _PAIRED = ir.VectorType(ir.IntType(8), STEP), ir.VectorType(ir.IntType(8), 2 * STEP)
_LANES, _PAIRED_LANES = ir.VectorType(ir.IntType(32), STEP), ir.VectorType(ir.IntType(32), 2 * STEP)


def _pointer(context, builder, kind, array, index, block=_BYTES):
    data = cgutils.create_struct_proxy(kind)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [index]), block.as_pointer())


def _spread(builder, value):
    """A block of one byte, STEP times."""
    empty = ir.Constant(_BYTES, ir.Undefined)
    one = builder.insert_element(empty, value, ir.Constant(ir.IntType(32), 0))
    return builder.shuffle_vector(one, empty, ir.Constant(_LANES, [0] * STEP))


def _store_words(context, builder, kinds, words, at, low, upper):
    """words[at : at + STEP] = upper[at : at + STEP] << 8 | low, a block of STEP bytes."""
    high = builder.load(_pointer(context, builder, kinds[1], upper, at), align=1)
    order = [lane for pair in zip(range(STEP), range(STEP, 2 * STEP), strict=True) for lane in pair]
    both = builder.shuffle_vector(low, high, ir.Constant(_PAIRED_LANES, order))
    builder.store(both, _pointer(context, builder, kinds[0], words, at, _PAIRED), align=1)


@intrinsic
def _copy(_, target, at, source, start):
    """target[at : at + STEP] = source[start : start + STEP], of bytes and without a check."""

    def made(context, builder, signature, values):
        first, _, second, _ = signature.args
        block = builder.load(_pointer(context, builder, second, values[2], values[3]), align=1)
        builder.store(block, _pointer(context, builder, first, values[0], values[1]), align=1)
        return context.get_dummy_value()

    return types.void(target, types.intp, source, types.intp), made


@intrinsic
def _fill(_, target, at, value):
    """target[at : at + STEP] = value, of bytes and without a check."""

    def made(context, builder, signature, values):
        block = _spread(builder, values[2])
        builder.store(block, _pointer(context, builder, signature.args[0], values[0], values[1]), align=1)
        return context.get_dummy_value()

    return types.void(target, types.intp, types.uint8), made


@intrinsic
def _copy_words(_, words, at, source, start, upper):
    """words[at : at + STEP] = upper[at : at + STEP] << 8 | source[start : start + STEP], without a check."""

    def made(context, builder, signature, values):
        kinds = signature.args
        low = builder.load(_pointer(context, builder, kinds[2], values[2], values[3]), align=1)
        _store_words(context, builder, (kinds[0], kinds[4]), values[0], values[1], low, values[4])
        return context.get_dummy_value()

    return types.void(words, types.intp, source, types.intp, upper), made


@intrinsic
def _fill_words(_, words, at, value, upper):
    """words[at : at + STEP] = upper[at : at + STEP] << 8 | value, without a check."""

    def made(context, builder, signature, values):
        kinds = signature.args
        low = _spread(builder, values[2])
        _store_words(context, builder, (kinds[0], kinds[3]), values[0], values[1], low, values[3])
        return context.get_dummy_value()

    return types.void(words, types.intp, types.uint8, upper), made


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
def _words(source, start, end, upper, words, size):
    """The same for the low plane, each byte put below that of ``upper`` at once; words has SPARE words more."""
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
                    words[at + i] = np.uint16(upper[at + i]) << 8 | np.uint16(source[start + i])
            else:
                for i in range(0, count, STEP):
                    _copy_words(words, at + i, source, start + i, upper)
            start += count
            at += count  # type: ignore[assignment]
        elif code > 128:
            count = 257 - code
            if start >= end or at + count > size:
                return False
            for i in range(0, count, STEP):
                _fill_words(words, at + i, source[start], upper)
            start += 1
            at += count  # type: ignore[assignment]
    return at == size


@_compiled
def _frame(source, high, low, upper, words, size):
    """Two planes, (start, length) each, to words; whether both are whole."""
    return _plane(source, high[0], high[0] + high[1], upper, size) and _words(
        source, low[0], low[0] + low[1], upper, words, size
    )


def decode(buffer: bytearray | memoryview, strips: list[tuple[int, int]], rows: int, columns: int) -> np.ndarray | None:
    """(rows, columns) uint16 of the PackBits of the high and the low plane, each (start, length) in the buffer.

    None where one of them is not exactly rows x columns bytes. The interpreter's lock is released meanwhile.
    """
    (high, low), size = strips, rows * columns
    source = np.frombuffer(buffer, np.uint8)
    if min(*high, *low) < 0 or max(sum(high), sum(low)) > source.size:
        return None
    upper, words = np.empty(size + SPARE, np.uint8), np.empty(size + SPARE, np.uint16)
    return words[:size].reshape(rows, columns) if _frame(source, high, low, upper, words, size) else None


def works() -> bool:
    """Compile it and try it: literals, repeats, and three frames that are damaged."""
    literal = bytes(range(100))
    behind = bytes(STEP)  # or no run would be copied in blocks, for want of room
    buffer = bytearray(b"\x81\x07" + b"\x63" + literal + b"\x80" + b"\xe5\xff" + b"\x81\x07" * 2 + behind)
    high, low, longer = (0, 2), (2, 104), (106, 4)
    words = np.frombuffer(literal + b"\xff" * 28, np.uint8).reshape(8, 16) + np.uint16(0x0700)
    try:
        found = decode(buffer, [high, low], 8, 16)
        damaged = [decode(buffer, [longer, low], 16, 16), decode(buffer, [high, (2, 50)], 8, 16)]
        damaged.append(decode(buffer, [high, low], 8, 15))
    except (NumbaError, AttributeError, TypeError, OSError):  # made for another numba
        return False
    return found is not None and np.array_equal(found, words) and all(one is None for one in damaged)
