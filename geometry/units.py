"""Measures of a layer's weights: per output unit, over the layer, and over several layers."""

import numpy as np
from numpy.typing import ArrayLike

from utils import require

from .checks import columns, kernel_pair, ratio, real
from .shape_angles import NEAR
from .vectors import angle


def unit_angles(wc: ArrayLike, wb: ArrayLike) -> np.ndarray:
    """Angle between latent and quantized weights of each output unit.

    Parameters
    ----------
    wc, wb : array_like, shape (…, units)
        Latent and quantized kernel, HWIO or (inputs, units).

    Returns
    -------
    ndarray, shape (units,)
        Radians; nan for a unit without a non-zero weight.

    Raises
    ------
    ValueError
        If the shapes differ or have no units axis.
    """
    return angle(*kernel_pair(wc, wb), axis=0)


def unit_kurtosis(w: ArrayLike) -> np.ndarray:
    """Kurtosis E[w⁴]/E[w²]² about zero of each output unit's weights.

    `shape_angle` takes the kurtosis about zero, not about the mean, because the quantizer is
    symmetric about zero.

    Parameters
    ----------
    w : array_like, shape (…, units)
        Kernel, HWIO or (inputs, units).

    Returns
    -------
    ndarray, shape (units,)
        nan for a unit of zeros.

    Raises
    ------
    ValueError
        If w has no units axis.
    """
    square = np.square(columns(w))
    return ratio(np.mean(square**2, axis=0), np.mean(square, axis=0) ** 2)


def near_threshold_share(w: ArrayLike, threshold: float = 0) -> float:
    """Share of the weights that are near the threshold.

    Near means that |w| differs from the threshold by less than `NEAR` times the root mean square
    of the unit's weights.

    Parameters
    ----------
    w : array_like, shape (…, units)
        Kernel, HWIO or (inputs, units).
    threshold : float
        Of the ternary quantizer, in the same units as w; 0 for the sign.

    Returns
    -------
    float
        With threshold 0 it is 7.97 % for a Gaussian and 5.77 % for a uniform distribution.

    Raises
    ------
    ValueError
        If w has no units axis, or the threshold is negative or not finite.
    """
    w, threshold = columns(w), real(threshold, 0, "threshold")
    scale = np.sqrt(np.mean(np.square(w), axis=0))
    return np.mean(np.abs(np.abs(w) - threshold) < NEAR * scale)


def saturated_share(w: ArrayLike) -> float:
    """Share of the latent weights, an array of any shape, that clipping holds at ±1."""
    return np.mean(np.abs(w) >= 1)


def glorot_sd(shape: tuple) -> float:
    """Standard deviation of latent weights at the start, by Glorot's uniform initialization.

    σ = √(2/(fan-in + fan-out)) (Glorot and Bengio 2010, eq. 16). Fan-in is a filter's positions
    times its inputs, fan-out its positions times its units.

    Parameters
    ----------
    shape : tuple of int
        Of the kernel, HWIO or (inputs, units).

    Returns
    -------
    float
    """
    *field, inputs, units = shape
    return np.sqrt(2 / (np.prod(field) * (inputs + units)))


def scaling_exponent(d: ArrayLike, sd: ArrayLike) -> float:
    """Exponent p of the power law sd ∝ d^p: the slope of a straight line fit to the logarithms.

    Parameters
    ----------
    d, sd : array_like, shape (layers,)
        Fan-in of each layer, and standard deviation of its units' angles. At least two different
        fan-ins.

    Returns
    -------
    float
        Theory: −1/2.

    Raises
    ------
    ValueError
        If they differ in shape, are not positive or hold fewer than two different fan-ins.
    """
    d, sd = np.asarray(d, dtype=np.float64), np.asarray(sd, dtype=np.float64)
    require(d.shape == sd.shape and d.ndim == 1, "fan-ins and spreads must be lists of one length")
    valid = (d > 0) & (sd > 0) & np.isfinite(d * sd)
    require(np.all(valid), "fan-ins and spreads must be positive")
    require(np.unique(d).size > 1, "a slope needs two different fan-ins or more")
    return np.polyfit(np.log(d), np.log(sd), 1)[0]
