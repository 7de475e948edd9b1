"""Closed forms for Gaussian vectors: their angles with each other and with their quantized forms.

The quantizers are the sign, the ternary quantizer, the best quantizer of any number of levels
(Lloyd–Max), and the limit of rate-distortion theory. Formulas without a source follow from the
definitions beside them.

References
----------
.. [1] A. G. Anderson, C. P. Berg, "The High-Dimensional Geometry of Binary Neural Networks",
   ICLR 2018, arXiv:1705.07199.
.. [2] J. Max, "Quantizing for minimum distortion", IRE Trans. Information Theory 6, 1960, and
   S. P. Lloyd, "Least squares quantization in PCM", IEEE Trans. Information Theory 28, 1982.
.. [3] T. M. Cover, J. A. Thomas, *Elements of Information Theory*, chapter 10.
"""

import functools

import numpy as np
from numpy.polynomial.legendre import leggauss
from numpy.typing import ArrayLike
from scipy.linalg import solve_banded
from scipy.optimize import brentq
from scipy.special import erf, erfcx, ndtr, ndtri, poch, xlog1py
from scipy.stats import norm

from utils import require

from .checks import real, whole

# --- Binary vectors ---------------------------------------------------------------------------


def angle_density(angle: ArrayLike, d: ArrayLike) -> np.ndarray:
    """Probability density of the angle between two independent random directions [1]_.

    Parameters
    ----------
    angle : array_like
        Radians.
    d : array_like
        Dimension, at least 2 (in one dimension the angle is 0 or π and has no density).

    Returns
    -------
    ndarray or float
        Γ(d/2) / (√π Γ((d−1)/2)) · sin^(d−2)(angle) on [0, π], zero elsewhere, per radian.

    Raises
    ------
    ValueError
        If d is below 2 or not finite.
    """
    angle, d = np.asarray(angle, dtype=np.float64), real(d, 2, "dimension d of a density")
    peak = np.sqrt(d - 1) / (np.pi * cosine_moments(d - 1)[0])
    # The power of the sine is computed from the cosine. The density is large where the sine is
    # near 1, and there the rounding error of the sine, raised to the power d − 2, would cost half
    # of the digits at d = 1e9.
    shape = np.exp(xlog1py(d - 2, -np.square(np.cos(angle))) / 2)
    return np.where((angle >= 0) & (angle <= np.pi), peak * shape, 0.0)[()]


def binary_angle() -> float:
    """Angle between a random vector and its binarized version as d → ∞: arccos √(2/π), 37.07°."""
    return np.arccos(np.sqrt(2 / np.pi))


def _gamma_excess(d):
    """e(d) = d·(π/2·E[cos]² − 1), which tends to 1/2, without cancellation at any d.

    π/2·E[cos]² is d/2·(Γ(d/2)/Γ((d+1)/2))². Brouncker's continued fraction gives the squared
    ratio as 4/(x + K), x = 2d − 1, K = 1²/(2x + 3²/(2x + 5²/(2x + …))), hence e = d(1 − K)/(x + K).
    The fraction converges slowly below d = 8; there the gamma function is evaluated directly.
    """
    x = 2 * d - 1
    fraction = np.zeros_like(d)
    for odd in range(79, 0, -2):
        fraction = odd**2 / (2 * x + fraction)
    direct = d * (d / 2 / np.square(poch(d / 2, 0.5)) - 1)
    return np.where(d < 8, direct, d * (1 - fraction) / (x + fraction))


def cosine_moments(d: ArrayLike) -> tuple:
    """Mean and standard deviation of cos(u, sign u), u a standard Gaussian vector [1]_.

    Parameters
    ----------
    d : array_like
        Dimension, at least 1. Between whole numbers the formulas interpolate.

    Returns
    -------
    mean, sd : ndarray or float
        Relative error below 1e-12 each, at every whole d from 1 to 1e9 and beyond.

    Raises
    ------
    ValueError
        If d is below 1 or not finite.

    Notes
    -----
    cos = ‖u‖₁/(√d ‖u‖₂), therefore E[cos] = √d Γ(d/2)/(√π Γ((d+1)/2)) → √(2/π) and
    E[cos²] = 1/d + (1 − 1/d)·2/π. The variance E[cos²] − E[cos]² tends to (1 − 3/π)/d. At large d
    this difference would lose all of its digits. With E[cos]² = 2/π·(1 + e/d) the variance is
    (1 − 2/π·(1 + e))/d, which keeps them.
    """
    d = real(d, 1, "dimension d")
    excess = _gamma_excess(d)
    mean = np.sqrt(2 / np.pi * (1 + excess / d))
    variance = (1 - 2 / np.pi * (1 + excess)) / d
    # In one dimension every vector is its own sign.
    return mean, np.where(d == 1, 0.0, np.sqrt(np.maximum(variance, 0)))[()]


_SERIES_FROM = 128


@functools.cache
def _low_angle_moments():
    """Mean and sd of angle(u, sign u) for d = 0 … 127 (entry 0 unused), by quadrature.

    A random direction x in k dimensions is (sin φ·y, cos φ), y a random direction in k − 1 and φ
    with density ∝ sin^(k−2). On the positive orthant ‖x‖₁ = sin φ·‖y‖₁ + cos φ. Therefore the
    angle ψ to the diagonal is a Markov chain in k. Each step from k − 1 to k computes a
    quadrature rule for the distribution of ψ: weights on the Gauss nodes of its range
    [0, arccos(1/√k)], by integration of the nodes' Lagrange polynomials. The chain starts at
    k = 2, where ψ is uniform.
    """
    nodes, weights = leggauss(64)
    barycentric = (-1.0) ** np.arange(nodes.size) * np.sqrt((1 - nodes**2) * weights)
    nodes, weights = (nodes + 1) / 2, weights / 2
    phi, phi_weights = leggauss(96)
    phi = (phi + 1) * np.pi / 4
    psi = np.pi / 4 * nodes
    means, sds = [0.0, 0.0, np.pi / 8], [0.0, 0.0, np.pi / 8 / np.sqrt(3)]
    for k in range(3, _SERIES_FROM):
        mass = phi_weights * np.sin(phi) ** (k - 2)
        cosine = np.sqrt(1 - 1 / k) * np.outer(np.cos(psi), np.sin(phi)) + np.cos(phi) / np.sqrt(k)
        psi = np.arccos(1 / np.sqrt(k)) * nodes
        distance = np.arccos(np.minimum(cosine, 1)).reshape(-1, 1) - psi
        distance[distance == 0] = np.finfo(float).tiny
        lagrange = barycentric / distance
        joint = np.outer(weights, mass / mass.sum()).ravel()
        weights = (joint / lagrange.sum(axis=1)) @ lagrange
        means.append(weights @ psi)
        sds.append(np.sqrt(weights @ (psi - means[-1]) ** 2))
    return np.array(means), np.array(sds)


def angle_moments(d: ArrayLike) -> tuple:
    """Mean and standard deviation of the angle between a Gaussian vector and its sign [1]_.

    The mean is that of the angle itself, not the arccos of the mean cosine. Examples: 28.12° ±
    10.91° at d = 3, 36.19° ± 3.83° at 27, 37.05° ± 0.59° at 1152.

    Parameters
    ----------
    d : array_like
        Dimension, a whole number, at least 1.

    Returns
    -------
    mean, sd : ndarray or float
        Radians. Exact at d = 1 (0 ± 0) and 2 (uniform on [0, π/4]). The error of either is below
        2e-5 degrees up to d = 127. It is below 3e-4 degrees at 128 and falls from there, as
        d^(−2) for the mean and as d^(−5/2) for the sd.

    Raises
    ------
    ValueError
        If d is below 1, not whole or not finite.

    Notes
    -----
    Below d = 128 by quadrature. From there by expansion of arccos about the mean m of the cosine:
    the mean is arccos m + g''s²/2 and the variance g'²s² + g'g''μ₃ + s⁴(g''²/2 + g'g''').
    Here s² is the variance of the cosine, μ₃ = √(2/π)·(25/(2π) − 4)/d² its third central moment,
    and g', g'', g''' are the derivatives of arccos at m.
    """
    d = whole(d, 1, "dimension d")
    low = [moment[np.minimum(d, _SERIES_FROM - 1).astype(int)] for moment in _low_angle_moments()]
    large = np.maximum(d, _SERIES_FROM)
    m, s = cosine_moments(large)
    third = np.sqrt(2 / np.pi) * (12.5 / np.pi - 4) / large**2
    sine = np.sqrt(1 - m**2)
    g1, g2, g3 = -1 / sine, -m / sine**3, -(1 + 2 * m**2) / sine**5
    mean = np.arccos(m) + g2 * s**2 / 2
    variance = (g1 * s) ** 2 + g1 * g2 * third + s**4 * (g2**2 / 2 + g1 * g3)
    series = mean, np.sqrt(variance)
    return tuple(np.where(d < _SERIES_FROM, a, b)[()] for a, b in zip(low, series, strict=True))


# --- Ternary vectors --------------------------------------------------------------------------


def ternary_cosine(tau: ArrayLike) -> np.ndarray | np.floating:
    """Cosine between a Gaussian vector and its ternary version as d → ∞.

    Parameters
    ----------
    tau : array_like
        Threshold over standard deviation, t/σ, at least 0.

    Returns
    -------
    ndarray or float
        2φ(τ)/√(2(1 − Φ(τ))), φ and Φ the standard Gaussian's density and distribution function:
        √(2/π) at τ = 0, greatest at `optimal_ternary_threshold`, falling to 0 for τ → ∞.

    Raises
    ------
    ValueError
        If tau is negative or not finite.
    """
    tau = real(tau, 0, "threshold tau")
    # erfcx(x) = exp(x²)·erfc(x). With φ and 1 − Φ themselves, numerator and denominator would
    # both underflow at large τ.
    return np.sqrt(2 / np.pi) * np.exp(-np.square(tau) / 4) / np.sqrt(erfcx(tau / np.sqrt(2)))


def ternary_zero_fraction(tau: ArrayLike) -> np.ndarray:
    """Share of a Gaussian vector's entries that a threshold turns to 0.

    Parameters
    ----------
    tau : array_like
        Threshold over standard deviation, t/σ, at least 0.

    Returns
    -------
    ndarray or float
        2Φ(τ) − 1.

    Raises
    ------
    ValueError
        If tau is negative or not finite.
    """
    return erf(real(tau, 0, "threshold tau") / np.sqrt(2))


def optimal_ternary_threshold() -> float:
    """Threshold τ = t/σ with the least angle for a Gaussian, 0.612: the root of φ = 2τ(1 − Φ).

    At this threshold the ternary quantizer is the Lloyd–Max quantizer of three levels. The angle
    is 25.85°.
    """
    return brentq(lambda tau: norm.pdf(tau) - 2 * tau * norm.sf(tau), 0.0, 2.0, xtol=1e-15)


# --- More levels, and the limit for any code --------------------------------------------------


def _lloyd_max_boundaries(levels):
    """The `levels` − 1 boundaries between the cells of the Lloyd–Max quantizer of a Gaussian [2]_.

    Each boundary lies halfway between the centroids of its two cells. Newton's method solves this
    system, whose Jacobian is tridiagonal. It starts at Panter and Dite's asymptotic solution and
    converges quadratically: after five steps only rounding errors are left, for any number of
    levels.
    """
    boundaries = np.sqrt(3) * ndtri(np.arange(1, levels) / levels)
    for _ in range(6):
        mass, density, centroid = _cells(boundaries)
        residual = boundaries - (centroid[:-1] + centroid[1:]) / 2
        # Derivatives of the centroids below and above a boundary with respect to the boundary.
        below = density * (boundaries - centroid[:-1]) / mass[:-1]
        above = density * (centroid[1:] - boundaries) / mass[1:]
        jacobian = np.zeros((3, levels - 1))
        jacobian[0, 1:] = -below[1:] / 2
        jacobian[1] = 1 - (below + above) / 2
        jacobian[2, :-1] = -above[:-1] / 2
        boundaries = boundaries - solve_banded((1, 1), jacobian, residual)
    return boundaries


def _cells(boundaries):
    """Of a Gaussian: probability of each cell, density at the boundaries, centroid of each cell."""
    density = norm.pdf(boundaries)
    mass = np.diff(ndtr(boundaries), prepend=0.0, append=1.0)
    return mass, density, -np.diff(density, prepend=0.0, append=0.0) / mass


def lloyd_max(levels: int) -> tuple:
    """The quantizer of `levels` values that is nearest to a standard Gaussian in mean square [2]_.

    Parameters
    ----------
    levels : int
        At least 2.

    Returns
    -------
    boundaries : ndarray, shape (levels − 1,)
    values : ndarray, shape (levels,)
        What stands for the numbers of each cell: their mean.
    """
    boundaries = _lloyd_max_boundaries(int(whole(levels, 2, "levels")))
    values = _cells(boundaries)[2]
    # Odd about zero to the last bit, so that the middle one is zero.
    return (boundaries - boundaries[::-1]) / 2, (values - values[::-1]) / 2


@functools.cache
def _lloyd_max_cosine(levels):
    mass, _, centroid = _cells(_lloyd_max_boundaries(int(levels)))
    return np.sqrt(np.sum(mass * centroid**2))


def quantizer_cosine(levels: ArrayLike) -> np.ndarray:
    """Cosine between a Gaussian vector and its best scalar quantization, as d → ∞ [2]_.

    Parameters
    ----------
    levels : array_like
        Number of levels, whole, from 2 to 65,536.

    Returns
    -------
    ndarray or float
        √(1 − D), D the mean squared distortion of the Lloyd–Max quantizer with that many levels.
        The angles are 37.07° at 2 levels, 25.85° at 3, 20.04° at 4.

    Raises
    ------
    ValueError
        If levels is out of range or not whole.
    """
    levels = whole(levels, 2, "the number of levels")
    require(np.all(levels <= 2**16), "the number of levels must be at most 65536")
    return np.vectorize(_lloyd_max_cosine, otypes=[float])(levels)[()]


def rate_distortion_angle(bits: ArrayLike) -> np.ndarray:
    """Least angle that a code with this many bits per weight can reach on a Gaussian vector [3]_.

    Parameters
    ----------
    bits : array_like
        Bits per weight, at least 0, not necessarily whole.

    Returns
    -------
    ndarray or float
        arcsin(2^(−bits)) radians, from D ≥ 2^(−2·bits) and cos = √(1 − D). 30° at one bit.

    Raises
    ------
    ValueError
        If bits is negative or not finite.
    """
    return np.arcsin(np.exp2(-real(bits, 0, "the number of bits")))
