"""One step of a tensor core's sums for 16 columns at once, written in LLVM's vector instructions.

numba does not vectorize the loops of `qdx.kernels.compiled_sums` by itself: it gathers, and converts number
by number. Here every operation is one on 16 lanes, which LLVM turns into what this CPU has (AVX-512, two of
AVX2, four of SSE or NEON). No operation may be fused or reordered, so results are the same everywhere.
"""

from __future__ import annotations

from functools import cache
from typing import Any

LANES = 16


@cache
def instructions(
    products: int,
    columns: int,
    fraction_bits: int,
    result_bits: int,
    nearest: bool,
    normal: float,
    floor: float,
    ceiling: float,
    clamped: bool,
) -> tuple[Any, Any]:
    """Return two functions for numba's compiled code.

    Parameters
    ----------
    products : int
        That one step adds.
    columns : int
        Of a block: the stride of `factor` and `power`.
    fraction_bits, result_bits : int
        That are kept of aligned numbers and of the result.
    nearest : bool
        Round the result to nearest, as float16 accumulators do; else cut it.
    normal : float
        The least power of two of a factor.
    floor, ceiling : float
        Between which a step's largest power of two must lie.
    clamped : bool
        Whether the card itself takes no smaller power than `floor`.

    Returns
    -------
    tuple
        ``prepare(weight, at, factor, power, place)`` copies 16 weights and their powers of two and says
        whether one is infinite or undefined (int32). ``advance(x, x_power, at, factor, power, lane, held,
        marked, place)`` adds one step to 16 accumulators, and marks those whose sums are not valid.
    """
    from llvmlite import ir
    from numba import types
    from numba.extending import intrinsic

    float32, int32, int64 = ir.FloatType(), ir.IntType(32), ir.IntType(64)
    floats, ints = ir.VectorType(float32, LANES), ir.VectorType(int32, LANES)
    doubles, longs = ir.VectorType(ir.DoubleType(), LANES), ir.VectorType(int64, LANES)
    zeros = ir.Constant(ints, [0] * LANES)

    def every(kind: Any, value: float | int) -> Any:
        return ir.Constant(kind, [value] * LANES)

    def address(context: Any, builder: Any, kind: Any, array: Any, at: Any) -> Any:
        return builder.gep(context.make_array(kind)(context, builder, array).data, [at])

    def load(builder: Any, where: Any, kind: Any) -> Any:
        return builder.load(builder.bitcast(where, kind.as_pointer()), align=4)

    def store(builder: Any, value: Any, where: Any) -> None:
        builder.store(value, builder.bitcast(where, value.type.as_pointer()), align=4)

    def spread(builder: Any, where: Any) -> Any:
        one = builder.insert_element(ir.Constant(floats, ir.Undefined), builder.load(where), int32(0))
        return builder.shuffle_vector(one, ir.Constant(floats, ir.Undefined), zeros)

    def greater(builder: Any, a: Any, b: Any) -> Any:
        return builder.select(builder.fcmp_ordered(">", a, b), a, b)

    @intrinsic  # type: ignore[untyped-decorator]
    def prepare(typing: Any, weight: Any, at: Any, factor: Any, power: Any, place: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
            kinds = signature.args
            value = load(builder, address(context, builder, kinds[0], given[0], given[1]), floats)
            bits = builder.and_(builder.bitcast(value, ints), every(ints, 0x7F800000))
            wild = builder.icmp_signed("==", bits, every(ints, 0x7F800000))
            size = greater(builder, builder.bitcast(bits, floats), every(floats, normal))
            # unordered: an undefined weight is not zero
            other = builder.fcmp_unordered("!=", value, every(floats, 0.0))
            size = builder.select(other, size, every(floats, 0.0))
            store(builder, value, address(context, builder, kinds[2], given[2], given[4]))
            store(builder, size, address(context, builder, kinds[3], given[3], given[4]))
            some = builder.icmp_unsigned(
                "!=", builder.bitcast(wild, ir.IntType(LANES)), ir.Constant(ir.IntType(LANES), 0)
            )
            return builder.zext(some, int32)

        return types.int32(weight, types.int64, factor, power, types.int64), generate

    @intrinsic  # type: ignore[untyped-decorator]
    def advance(
        typing: Any,
        x: Any,
        x_power: Any,
        at: Any,
        factor: Any,
        power: Any,
        lane: Any,
        held: Any,
        marked: Any,
        place: Any,
    ) -> Any:
        def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
            kinds = signature.args
            own_x, own_power = (address(context, builder, kinds[i], given[i], given[2]) for i in (0, 1))
            factors, powers = (address(context, builder, kinds[i], given[i], given[5]) for i in (3, 4))
            held_at = address(context, builder, kinds[6], given[6], given[8])
            marked_at = address(context, builder, kinds[7], given[7], given[8])
            steps = [(int64(k), int64(k * columns)) for k in range(products)]
            before = load(builder, held_at, floats)
            top = builder.bitcast(
                builder.and_(builder.bitcast(before, ints), every(ints, 0x7F800000)), floats
            )
            if nearest:  # a subnormal float16 accumulator has the least normal one's exponent
                least = every(floats, 2.0**-14)
                kept = builder.or_(
                    builder.fcmp_ordered(">", top, least),
                    builder.fcmp_ordered("==", before, every(floats, 0.0)),
                )
                top = builder.select(kept, top, least)
            for k, row in steps:
                power_k = load(builder, builder.gep(powers, [row]), floats)
                top = greater(
                    builder, builder.fmul(spread(builder, builder.gep(own_power, [k])), power_k), top
                )
            wrong = builder.fcmp_unordered(">", top, every(floats, ceiling))
            if not clamped:
                low = builder.and_(
                    builder.fcmp_ordered("<", top, every(floats, floor)),
                    builder.fcmp_ordered(">", top, every(floats, 0.0)),
                )
                wrong = builder.or_(wrong, low)
            top = greater(builder, top, every(floats, floor))
            scale = builder.sub(every(ints, 127 << 23), builder.bitcast(top, ints))
            scale = builder.bitcast(builder.add(scale, every(ints, (127 + fraction_bits) << 23)), floats)
            total = zeros
            for k, row in steps:
                product = builder.fmul(
                    spread(builder, builder.gep(own_x, [k])),
                    load(builder, builder.gep(factors, [row]), floats),
                )
                total = builder.add(total, builder.fptosi(builder.fmul(product, scale), ints))
            aligned = builder.fptosi(builder.fmul(before, scale), ints)
            exact = builder.fadd(builder.sitofp(total, doubles), builder.sitofp(aligned, doubles))
            unit = builder.fmul(builder.fpext(top, doubles), every(doubles, 2.0**-fraction_bits))
            exact = builder.fmul(exact, unit)
            bits = builder.bitcast(exact, longs)
            if nearest:
                # Adding and taking off 1.5 · 2^52 units leaves whole units, rounded to nearest.
                size = builder.bitcast(builder.and_(bits, every(longs, 0x7FF << 52)), doubles)
                size = greater(builder, size, every(doubles, 2.0**-14))
                unit = builder.fmul(size, every(doubles, 1.5 * 2.0 ** (52 - result_bits)))
                after = builder.fptrunc(builder.fsub(builder.fadd(exact, unit), unit), floats)
                magnitude = builder.bitcast(
                    builder.and_(builder.bitcast(after, ints), every(ints, 0x7FFFFFFF)), floats
                )
                wrong = builder.or_(wrong, builder.fcmp_unordered(">=", magnitude, every(floats, 2.0**16)))
            else:
                cut = builder.and_(bits, every(longs, -1 << (52 - result_bits)))
                after = builder.fptrunc(builder.bitcast(cut, doubles), floats)
            store(builder, after, held_at)
            marks = builder.or_(load(builder, marked_at, ints), builder.zext(wrong, ints))
            store(builder, marks, marked_at)
            return context.get_dummy_value()

        signature = types.void(x, x_power, types.int64, factor, power, types.int64, held, marked, types.int64)
        return signature, generate

    return prepare, advance
