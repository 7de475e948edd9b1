"""The two operations on vectors that everything else rests on: their angle, and the quantizer θ."""

import numpy as np
from numpy.typing import ArrayLike

from .checks import real


def angle(u: ArrayLike, v: ArrayLike, axis: int = -1) -> np.ndarray:
    """Angle between the vectors that lie along an axis of two arrays.

    Parameters
    ----------
    u, v : array_like
        Arrays of vectors; they broadcast.
    axis : int
        The axis along which a vector's entries lie.

    Returns
    -------
    ndarray or float
        Radians in [0, π], without that axis; nan where a vector is zero.

    Notes
    -----
    2·atan2(‖û − v̂‖, ‖û + v̂‖) of the unit vectors û, v̂ (W. Kahan). Unlike the arccos of the
    cosine it keeps all digits near 0 and π. The angle of a vector with itself is exactly 0.
    """
    u, v = (np.asarray(w, dtype=np.float64) for w in (u, v))
    with np.errstate(invalid="ignore"):
        u, v = (w / np.linalg.norm(w, axis=axis, keepdims=True) for w in (u, v))
    return 2 * np.arctan2(np.linalg.norm(u - v, axis=axis), np.linalg.norm(u + v, axis=axis))


def quantized(x: ArrayLike, threshold: float = 0) -> np.ndarray:
    """The quantizer θ: binary without a threshold, ternary with one.

    Parameters
    ----------
    x : array_like
        Values to quantize.
    threshold : float
        t, at least 0, in the units of x.

    Returns
    -------
    ndarray of float64
        For t = 0 the sign, with θ(0) = +1. For t > 0 sign(x)·[|x| > t], which is −1, 0 or 1.

    Raises
    ------
    ValueError
        If the threshold is negative or not finite.
    """
    x = np.asarray(x, dtype=np.float64)
    if real(threshold, 0, "threshold") == 0:
        return np.where(x >= 0, 1.0, -1.0)
    return np.sign(x) * (np.abs(x) > threshold)
