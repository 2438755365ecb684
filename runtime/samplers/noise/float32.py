"""Compute logarithm, sine and cosine in float32 exactly as PyTorch's kernels of normal numbers for AVX2 do.

PyTorch takes them from avx_mathfun.h (Pommier's and Garberoglio's port of Moshier's Cephes), compiled so that a product
and the sum after it are one operation, rounded once. NumPy has no such operation, so it is computed from float64.
"""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
_F = np.float32

_SQRT_HALF = _F(0.707106781186547524)
_LOG = (
    7.0376836292e-2, -1.1514610310e-1, 1.1676998740e-1, -1.2420140846e-1, 1.4249322787e-1, -1.6668057665e-1,
    2.0000714765e-1, -2.4999993993e-1, 3.3333331174e-1,
)  # fmt: skip
_LOG_2 = (-2.12194440e-4, 0.693359375)  # the sum of both, the second in few bits
_FOUR_OVER_PI = _F(1.27323954473516)
_MINUS_PI_OVER_4 = (-0.78515625, -2.4187564849853515625e-4, -3.77489497744594108e-8)  # the sum of all
_COS = (2.443315711809948e-5, -1.388731625493765e-3, 4.166664568298827e-2)
_SIN = (-1.9515295891e-4, 8.3321608736e-3, -1.6666654611e-1)


def multiply_add(a: Floats, b: Floats | np.float32, c: Floats | np.float32) -> Floats:
    """Return a * b + c, rounded once.

    The product of two float32 is exact in float64. Their sum with c is rounded to odd there, so that rounding it again
    to float32 gives what one rounding would (Boldo & Melquiond 2008, "Emulation of FMA and correctly rounded sums").
    """
    product, added = np.multiply(a, b, dtype=np.float64), np.asarray(c, np.float64)
    total = product + added
    back = total - product
    lost = (product - (total - back)) + (added - back)  # what rounding took (Knuth's TwoSum)
    to_odd = (lost != 0) & ((total.view(np.int64) & 1) == 0)
    odd = np.nextafter(total, np.copysign(np.inf, lost))
    return np.where(to_odd, odd, total).astype(np.float32)


def log(x: Floats) -> Floats:
    """Return the natural logarithm of normal positive numbers."""
    mantissa, exponent = np.frexp(x)
    low = mantissa < _SQRT_HALF
    e = exponent.astype(np.float32) - low.astype(np.float32)
    x = (mantissa - _F(1)) + np.where(low, mantissa, _F(0))
    squared = x * x
    y = _polynomial(_LOG, x) * x
    y = multiply_add(y, squared, e * _F(_LOG_2[0])) - squared * _F(0.5)
    return multiply_add(e, _F(_LOG_2[1]), x + y)


def sin_cos(x: Floats) -> tuple[Floats, Floats]:
    """Return sine and cosine of angles from 0 on."""
    octant = ((x * _FOUR_OVER_PI).astype(np.int32) + 1) & ~1
    y = octant.astype(np.float32)
    for part in _MINUS_PI_OVER_4:
        x = multiply_add(y, _F(part), x)
    squared = x * x
    cosine = _polynomial(_COS, squared) * squared
    cosine = multiply_add(cosine, squared, -(squared * _F(0.5))) + _F(1)
    sine = multiply_add(_polynomial(_SIN, squared) * squared, x, x)
    swapped = (octant & 2) != 0
    of_sine = np.where(octant & 4, _F(-1), _F(1))
    of_cosine = np.where((octant - 2) & 4, _F(1), _F(-1))
    return of_sine * np.where(swapped, cosine, sine), of_cosine * np.where(swapped, sine, cosine)


def _polynomial(coefficients: tuple[float, ...], x: Floats) -> Floats:
    """Evaluate a polynomial, the coefficient of the highest power first."""
    y = np.full_like(x, coefficients[0])
    for coefficient in coefficients[1:]:
        y = multiply_add(y, x, _F(coefficient))
    return y
