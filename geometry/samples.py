"""Angles of random vectors by sampling (Monte Carlo), to compare with the closed forms."""

import numpy as np

from .rotations import random_rotation, rotated_binarization
from .vectors import angle, quantized


def random_pair_angles(d: int, count: int, rng: np.random.Generator | int) -> np.ndarray:
    """Angles in radians between `count` pairs of independent Gaussian vectors, shape (count,)."""
    return angle(*rng.standard_normal((2, count, d)))


def binarization_angles(d: int, count: int, rng: np.random.Generator | int) -> np.ndarray:
    """Angles in radians between `count` Gaussian vectors and their signs, shape (count,)."""
    u = rng.standard_normal((count, d))
    return angle(u, quantized(u))


def ternarization_angle(tau: float, d: int, rng: np.random.Generator | int) -> float:
    """Angle in radians of one Gaussian vector to its ternary form, and its share of zeros."""
    u = rng.standard_normal(d)
    ternary = quantized(u, tau)
    return angle(u, ternary), np.mean(ternary == 0)


def anisotropic_angles(d: int, count: int, rng: np.random.Generator, k: float = 0.1) -> tuple:
    """Angles of plain and of rotated binarization where the axes differ in spread.

    Parameters
    ----------
    d, count : int
        Dimension, and number of vectors.
    rng : numpy.random.Generator
    k : float
        The standard deviation along axis i is exp(k(i − d/2)).

    Returns
    -------
    plain, rotated : ndarray, shape (count,)
        Radians; rotated with one random rotation for all vectors.
    """
    x = rng.standard_normal((count, d)) * np.exp(k * (np.arange(d) - d / 2))
    rotation = random_rotation(d, rng)
    return angle(x, quantized(x)), angle(x, rotated_binarization(x, rotation))
