"""Angles between weights and their quantized versions, from the shape of their distribution.

The shape is given by the kurtosis (`shape_angle`), by the kurtosis and the share of the weights
at the quantizer's threshold (`peaked_shape_angle`), or by a sample (`iid_cosine_sd`).
"""

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import brentq, elementwise
from scipy.special import betainc, gammaincc, gammaln

from utils import require

from .checks import real


def _thresholded(first, square, share):
    """cos = E[|w|; |w| > t]/√(E[w²]·P(|w| > t)), 0 where no weight passes the threshold."""
    norms = np.sqrt(square * share)
    return np.divide(first, norms, out=np.zeros_like(norms), where=norms != 0)


def _generalized_gaussian_moments(kurtosis, tau):
    """E[|w|; |w| > t], E[w²] and P(|w| > t), the first two in units of α and α².

    The density is ∝ exp(−|w/α|^β), with a kurtosis of at least 1.8 (β = ∞). As functions of
    ε = 1/β all terms stay finite at the uniform distribution, ε = 0:
    κ = 9/5·Γ(1+5ε)Γ(1+ε)/Γ(1+3ε)² and, without a threshold,
    cos = √3/2·Γ(1+2ε)/√(Γ(1+ε)Γ(1+3ε)).
    The weights above a threshold t hold the share Q(kε, s) of a moment, Q the regularized upper
    incomplete gamma function and s = (t/α)^β: k = 2 for E|w|, k = 1 for the number of weights.
    """

    def excess(shape, kurtosis):
        logs = gammaln(1 + 5 * shape) + gammaln(1 + shape) - 2 * gammaln(1 + 3 * shape)
        return np.log(1.8) + logs - np.log(kurtosis)

    largest = 20.0
    require(np.all(~(excess(largest, kurtosis) < 0)), "kurtosis must be at most 1e13")
    bracket = (np.zeros_like(kurtosis), np.full_like(kurtosis, largest))
    shape = elementwise.find_root(excess, bracket, args=(kurtosis,)).x
    g1, g2, g3 = (np.exp(gammaln(1 + k * shape)) for k in (1, 2, 3))
    edge = tau * np.sqrt(g3 / (3 * g1))  # t/α

    with np.errstate(all="ignore"):
        s = np.where(edge > 0, np.exp(np.log(edge) / shape), 0.0)

    def kept(k):
        # Near the uniform distribution s underflows, but s^(kε) = (t/α)^k does not.
        near = 1 - edge**k / np.exp(gammaln(1 + k * shape))
        return np.where(s < 1e-9, near, gammaincc(k * shape, s))

    return g2 / 2 * kept(2), g1 * g3 / 3, kept(1)


def _symmetric_beta_cosine(kurtosis, tau):
    """cos(w, θ(w)) for the density ∝ (1 − w²)^(b−1) on [−1, 1], kurtosis from 1 (b = 0) to 1.8."""
    b = np.maximum(1.5 * (kurtosis - 1) / (3 - kurtosis), 1e-30)
    square = 1 / (2 * b + 1)
    inside = np.maximum(1 - np.square(tau) * square, 0)
    first = np.exp(gammaln(b + 0.5) - gammaln(b + 1)) / np.sqrt(np.pi) * inside**b
    return _thresholded(np.where(inside > 0, first, 0), square, betainc(b, 0.5, inside))


def shape_angle(kurtosis: ArrayLike, tau: ArrayLike = 0) -> np.ndarray:
    """Angle between a layer's weights and their quantized version, from their kurtosis alone.

    Parameters
    ----------
    kurtosis : array_like
        E[w⁴]/E[w²]², at least 1: 1.8 for a uniform distribution, 3 Gaussian, 6 Laplace. nan
        gives nan.
    tau : array_like
        Threshold over the weights' standard deviation, t/σ; 0 is the binary quantizer.

    Returns
    -------
    ndarray or float
        Radians: the angle, as d → ∞, of i.i.d. weights from the generalized Gaussian distribution
        with that kurtosis. 30° at 1.8, 37.07° at 3, 45° at 6. Where the threshold is above every
        weight it is π/2, the limit.

    Raises
    ------
    ValueError
        If the kurtosis is below 1 (no distribution has such a kurtosis) or above 1e13, or tau is
        negative or not finite.

    Notes
    -----
    From κ = 1.8 up the density is ∝ exp(−|w/α|^β), with κ = Γ(5/β)Γ(1/β)/Γ(3/β)² and
    cos = Γ(2/β)/√(Γ(1/β)Γ(3/β)). At κ = 1.8, β = ∞, it is the uniform distribution. A layer whose
    weights were just initialized uniformly, or are largely saturated at ±1, can have a kurtosis
    below 1.8. There the density is that of the symmetric beta distribution, ∝ (1 − w²)^(b−1). At
    b = 1 it is uniform too, so the angle is continuous. As b → 0 all weights move to ±1 (κ = 1,
    0°).
    """
    kurtosis, tau = np.broadcast_arrays(
        np.asarray(kurtosis, dtype=np.float64), real(tau, 0, "threshold tau")
    )
    require(np.all(~(kurtosis < 1)), "kurtosis is below 1, which no distribution has")
    cosine = np.where(
        kurtosis <= 1.8,
        _symmetric_beta_cosine(np.minimum(kurtosis, 1.8), tau),
        _thresholded(*_generalized_gaussian_moments(np.maximum(kurtosis, 1.8), tau)),
    )
    return np.arccos(np.minimum(cosine, 1))[()]


# Distance from the threshold, in root mean squares of the weights, up to which
# `near_threshold_share` and `peaked_shape_angle` call a weight near.
NEAR = 0.1
# How far the sd of a layer's cosines may be from that of i.i.d. weights, as a factor. An exponent
# of d that is 0.15 off changes the ratio of the sds at d = 27 and at d = 4608 by its square.
SPREAD_FACTOR = 1.5


def peaked_shape_angle(kurtosis: float, near: float, tau: float = 0) -> tuple:
    """Angle between weights and their quantized version, with a peak of weights at the threshold.

    The quantizer jumps at zero (binary) or at ±t (ternary). Trained layers have more weights there
    than the generalized Gaussian of the same kurtosis, and `shape_angle` does not see them. This
    model puts the share p of the weights exactly at the jump; with a ternary quantizer half of
    these are just above t and half just below. The other weights follow a generalized Gaussian.
    The model chooses p so that the share of the weights near the threshold is the given one.

    Parameters
    ----------
    kurtosis, near : float
        Of all the weights: E[w⁴]/E[w²]², and the share whose magnitude lies within `NEAR` root
        mean squares of the threshold.
    tau : float
        Threshold over the weights' standard deviation, t/σ; 0 is the binary quantizer.

    Returns
    -------
    angle : float
        Radians.
    peak : float
        p. It is 0 if the generalized Gaussian alone already has the given share of weights near
        the threshold, or more. It is never so large that the other weights have a kurtosis below
        the uniform distribution's, or that the peak has more than half of the variance.

    Raises
    ------
    ValueError
        As `shape_angle`, or if near is not between 0 and 1.

    Notes
    -----
    With E[w²] = 1 the other weights have the variance s² = (1 − pτ²)/(1 − p) and the kurtosis
    (κ − pτ⁴)/((1 − p)s⁴). The peak contributes pτ/2 to E[|w|; |w| > t] and p/2 to P(|w| > t);
    with the binary quantizer these are 0 and p.
    """
    near = real(near, 0, "the share near the threshold")
    require(np.all(near <= 1), "the share near the threshold must be at most 1")
    tau = float(real(tau, 0, "threshold tau"))
    if kurtosis <= 1.8:
        return shape_angle(kurtosis, tau), 0.0

    def others(peak):
        """Kurtosis and standard deviation of the other weights."""
        scale = np.sqrt((1 - peak * tau**2) / (1 - peak))
        return (kurtosis - peak * tau**4) / ((1 - peak) * scale**4), scale

    def moments(peak, edge):
        """E[|w|; |w| > edge] and P(|w| > edge) of the other weights, times their share 1 − p."""
        shape, scale = others(peak)
        first, square, share = _generalized_gaussian_moments(max(shape, 1.8), edge / scale)
        return (1 - peak) * first / np.sqrt(square) * scale, (1 - peak) * share

    def surplus(peak):
        """Given share near the threshold minus that of the model."""
        inside, outside = (moments(peak, edge)[1] for edge in (max(tau - NEAR, 0), tau + NEAR))
        return near - peak - (inside - outside)

    most = min(near, 1 - 1e-9, 0.5 / max(tau, 1e-9) ** 2)
    if others(most)[0] < 1.8:
        most = brentq(lambda peak: others(peak)[0] - 1.8, 0.0, most)
    peak = most if surplus(0.0) > 0 else 0.0
    if surplus(most) < 0 < surplus(0.0):
        peak = brentq(surplus, 0.0, most)
    first, share = moments(peak, tau)
    cosine = (first + peak * tau / 2) / np.sqrt(share + (peak / 2 if tau else peak))
    return np.arccos(min(cosine, 1)), peak


def iid_cosine_sd(w: ArrayLike, d: ArrayLike) -> np.ndarray | np.floating:
    """Standard deviation of cos(u, sign u) over vectors u of d entries drawn from w at random.

    Compare it with the spread measured over a layer's units. If the units' distributions differ
    in shape, the measured spread is wider than this one, which draws every unit from all weights
    of the layer together.

    Parameters
    ----------
    w : array_like
        Sample of the entries' distribution, of any shape: all latent weights of a layer.
    d : array_like
        Dimension of the vectors, at least 1.

    Returns
    -------
    ndarray or float
        To first order in 1/d (delta method). √((1 − 3/π)/d) for a Gaussian sample, 0 if all
        entries have the same magnitude.

    Raises
    ------
    ValueError
        If w holds only zeros or a value that is not finite, or d is below 1.

    Notes
    -----
    d·Var[cos] = Var[|w| − m₁w²/(2m₂)]/m₂ with m₁ = E|w|, m₂ = E[w²].
    """
    d = real(d, 1, "dimension d")
    magnitude = np.abs(np.asarray(w, dtype=np.float64)).ravel()
    require(np.isfinite(magnitude).all(), "the weights hold NaN or infinity")
    require(magnitude.any(), "there is no weight but zero: a zero vector has no direction")
    square = np.mean(magnitude**2)
    influence = magnitude - magnitude.mean() / (2 * square) * magnitude**2
    return np.sqrt(influence.var() / square / d)
