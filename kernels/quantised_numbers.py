"""Arithmetic that a compiler may not change: rounding to integers, division, and products that join no sum.

What must equal a circuit, or torch, bit for bit is written with these. `x * y + z` may become one rounding or two.
Triton's interpreter rounds `tl.fma` twice: there the last place of `divided` may be wrong, unless a test repairs it.
"""

import triton
import triton.language as tl

TO_INTEGER = tl.constexpr(1.5 * 2**23)


@triton.jit
def nearest(x):
    """The nearest integer, ties to even, of fp32 with |x| <= 2^22: the sum has no digits behind the point."""
    return (x + TO_INTEGER) - TO_INTEGER


@triton.jit
def quotient(x, y):
    """x / y as IEEE rounds it, of any shapes that broadcast; `/` is off by up to two units of the last place."""
    x, y = tl.broadcast(x, y)
    return tl.div_rn(x, y)


@triton.jit
def divisor(y):
    """(power, y power, its inverse) of a positive normal number or infinity: what `divided` takes. The power of 2
    brings y to 1 .. 2 (.. 4 at the upper end), so that nothing on the way is too small or too large."""
    exponent = (y.to(tl.int32, bitcast=True) >> 23) & 255
    power = (tl.maximum(254 - exponent, 1) << 23).to(tl.float32, bitcast=True)
    y = y * power
    return power, y, quotient(tl.full([1], 1.0, tl.float32), y)


@triton.jit
def divided(x, power, y, inverse):
    """x / y as IEEE rounds it where the result is a normal number, for one inverse and many x: a third of the
    instructions of a division. The second correction starts within a unit of the last place, from a remainder that is
    exact, with an inverse rounded correctly (P. Markstein, IBM J. Res. Dev. 34 (1), 1990)."""
    x, y = tl.broadcast(x * power, y)
    x, inverse = tl.broadcast(x, inverse)
    q = x * inverse
    q = tl.fma(tl.fma(-q, y, x), inverse, q)
    return tl.fma(tl.fma(-q, y, x), inverse, q)


@triton.jit
def product(x, y):
    """x y rounded once, whatever is added to it later; a zero has no sign."""
    x, y = tl.broadcast(x, y)
    return tl.fma(x, y, tl.zeros_like(x))


@triton.jit
def saturated(x, BITS: tl.constexpr):
    """Within two's complement of so many bits."""
    return tl.minimum(tl.maximum(x, -(1 << (BITS - 1))), (1 << (BITS - 1)) - 1)
