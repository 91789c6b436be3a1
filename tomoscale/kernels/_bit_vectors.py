"""
Bits of 8 x `TOGETHER` samples transposed in vector instructions: from planes to one sample after the other.

The bits of eight bytes are transposed by swapping quarters three times. The bytes come into order by interleaving the
rows of one half with those of the other: the index of a byte, its row and its place in a lane, turns left by one bit
each time.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir  # type: ignore[import-untyped]
from numba import types
from numba.extending import intrinsic

TOGETHER = 32
"""Bytes of every plane at a time: a vector of AVX2; a longer one does not fit the registers."""
LANE = 16
"""Bytes that are shuffled in one instruction."""
_BYTES = ir.VectorType(ir.IntType(8), TOGETHER)
_PAIRS = ir.VectorType(ir.IntType(16), TOGETHER // 2)
"""Bytes are shifted in pairs, as processors do; what crosses from one to the other is masked."""


@intrinsic
def join(context: Any, planes: Any, at: Any, apart: Any, out: Any, to: Any) -> Any:
    """Join the bits of 8 x `TOGETHER` samples, whose planes are so far `apart`, and write them from byte `to` on."""
    itemsize = out.dtype.bitwidth // 8

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        source, target = (_address(context, builder, signature, arguments, i) for i in (0, 3))
        rows = [None] * 8 * itemsize
        for b in range(itemsize):
            offsets = [builder.mul(arguments[2], _of(arguments[2], 8 * b + i)) for i in range(8)]
            octet = [_load(builder, source, offset, _PAIRS) for offset in offsets]
            for i, row in enumerate(_transposed_bits(builder, octet)):
                rows[i * itemsize + b] = row
        for i, row in enumerate(_interleaved(builder, rows)):
            for half in range(TOGETHER // LANE):
                lane = builder.shuffle_vector(row, row, _numbers(range(LANE * half, LANE * half + LANE)))
                _store(builder, lane, target, _of(arguments[4], LANE * (i + len(rows) * half)))
        return context.get_dummy_value()

    return types.void(planes, at, apart, out, to), generate


def _address(context: Any, builder: Any, signature: Any, arguments: Any, which: int) -> Any:
    """Return the address of a byte of an array, the one that the next argument counts."""
    array = context.make_array(signature.args[which])(context, builder, arguments[which])
    return builder.gep(builder.bitcast(array.data, ir.IntType(8).as_pointer()), [arguments[which + 1]])


def _load(builder: Any, begin: Any, offset: Any, kind: Any) -> Any:
    row = builder.load(builder.bitcast(builder.gep(begin, [offset]), kind.as_pointer()))
    row.align = 1
    return row


def _store(builder: Any, row: Any, begin: Any, offset: Any) -> None:
    builder.store(row, builder.bitcast(builder.gep(begin, [offset]), row.type.as_pointer())).align = 1


def _transposed_bits(builder: Any, rows: list[Any]) -> list[Any]:
    """Return eight rows of bytes where bit i of byte k of row j was bit j of byte k of row i."""
    for step, mask in ((4, 0x0F0F), (2, 0x3333), (1, 0x5555)):
        shift, low = (ir.Constant(_PAIRS, [n] * _PAIRS.count) for n in (step, mask))
        for i in (i for i in range(8) if not i & step):
            above, below = rows[i], rows[i + step]
            swapped = builder.and_(builder.xor(builder.lshr(above, shift), below), low)
            rows[i + step] = builder.xor(below, swapped)
            rows[i] = builder.xor(above, builder.shl(swapped, shift))
    return [builder.bitcast(row, _BYTES) for row in rows]


def _interleaved(builder: Any, rows: list[Any]) -> list[Any]:
    """
    Interleave the rows of the first half with those of the second until lanes hold a byte of every row in turn.

    That is as many times as the number of a row has bits.
    """
    lanes = range(0, TOGETHER, LANE)
    halves = [
        _numbers(
            k for lane in lanes for j in range(8) for k in (lane + 8 * h + j, TOGETHER + lane + 8 * h + j)
        )
        for h in range(2)
    ]
    for _ in range(len(rows).bit_length() - 1):
        pairs = list(zip(rows, rows[len(rows) // 2 :], strict=False))
        rows = [builder.shuffle_vector(*pair, half) for pair in pairs for half in halves]
    return rows


def _numbers(values: Any) -> Any:
    values = list(values)
    return ir.Constant(ir.VectorType(ir.IntType(32), len(values)), values)


def _of(like: Any, value: int) -> Any:
    return ir.Constant(like.type, value)
