"""What the covariance of a layer's inputs determines: correlations, principal axes, whitening."""

import numpy as np
from numpy.typing import ArrayLike
from scipy.linalg import eigh, eigvalsh

from utils import require

from .checks import kernel_pair, ratio, real


def _symmetric(covariance):
    """`covariance` as float64 array, if it is square, finite and symmetric."""
    covariance = np.asarray(covariance, dtype=np.float64)
    square = covariance.ndim == 2 and covariance.shape[0] == covariance.shape[1]
    require(square, f"a covariance must be a square matrix, not of shape {covariance.shape}")
    scale = np.max(np.abs([covariance.max(initial=0), covariance.min(initial=0)]))
    require(np.isfinite(scale), "the covariance holds NaN or infinity")
    # Some rows at a time: a wide layer's covariance takes 170 MB, and so would each temporary.
    for start in range(0, len(covariance), 256):
        block = slice(start, start + 256)
        difference = np.abs(covariance[block] - covariance[:, block].T)
        require(difference.max() <= 1e-6 * scale, "a covariance must be symmetric")
    return covariance


def predicted_correlation(wc: ArrayLike, wb: ArrayLike, covariance: ArrayLike) -> np.ndarray:
    """Correlation of a·wᵇ with a·wᶜ over inputs a with the given covariance.

    Parameters
    ----------
    wc, wb : array_like, shape (…, units) or (d,)
        Latent and quantized kernel (HWIO, or inputs × units), or one vector each.
    covariance : array_like, shape (d, d)
        Centred covariance C of the inputs, in the order of the flattened kernel's inputs.

    Returns
    -------
    ndarray, shape (units,), or float
        wᵇᵀCwᶜ/√(wᵇᵀCwᵇ · wᶜᵀCwᶜ). If C is the identity, this is the cosine of the angle
        between wᵇ and wᶜ. nan where either dot product does not vary.

    Raises
    ------
    ValueError
        If the shapes do not match or the covariance is not square, symmetric and finite.
    """
    if np.ndim(wc) == np.ndim(wb) == 1:
        return predicted_correlation(np.c_[wc], np.c_[wb], covariance)[0]
    wc, wb = kernel_pair(wc, wb)
    covariance = _symmetric(covariance)
    d = len(covariance)
    require(len(wc) == d, f"kernels of fan-in {len(wc)} need a covariance of that size, not {d}")
    along_c, along_b = covariance @ wc, covariance @ wb
    cc, bb, cb = (np.sum(w * a, axis=0) for w, a in ((wc, along_c), (wb, along_b), (wb, along_c)))
    # Rounding can make a variance of zero negative.
    return np.clip(ratio(cb, np.sqrt(np.maximum(cc, 0)) * np.sqrt(np.maximum(bb, 0))), -1, 1)


def principal_axes(covariance: ArrayLike) -> np.ndarray:
    """Orthogonal matrix whose rows are the principal axes, greatest variance first.

    As the rotation R of `rotated_binarization` it turns vectors into principal components.

    Parameters
    ----------
    covariance : array_like, shape (d, d)

    Returns
    -------
    ndarray, shape (d, d)

    Raises
    ------
    ValueError
        If the covariance is not square, symmetric and finite.
    """
    return eigh(_symmetric(covariance))[1][:, ::-1].T


def variance_spectrum(covariance: ArrayLike) -> tuple:
    """Eigenvalues of a covariance, greatest first, and the share of the variance of each.

    Parameters
    ----------
    covariance : array_like, shape (d, d)

    Returns
    -------
    eigenvalues, shares : ndarray, shape (d,)
        The shares add up to 1; nan if there is no variance.

    Raises
    ------
    ValueError
        If the covariance is not square, symmetric and finite.
    """
    # Rounding can make an eigenvalue of zero negative.
    eigenvalues = np.maximum(eigvalsh(_symmetric(covariance))[::-1], 0)
    return eigenvalues, ratio(eigenvalues, eigenvalues.sum())


def whitening(covariance: ArrayLike, epsilon: float) -> np.ndarray:
    """ZCA whitening matrix (C + εI)^(−1/2).

    Of all matrices that whiten, this symmetric one changes the vectors least: a whitened image
    patch still looks like the patch.

    Parameters
    ----------
    covariance : array_like, shape (d, d)
    epsilon : float
        Added to every eigenvalue (units of variance), at least 0. It keeps directions that hold
        only noise from being amplified.

    Returns
    -------
    ndarray, shape (d, d)
        Z; vectors x along the last axis are whitened by (x − mean) @ Z.

    Raises
    ------
    ValueError
        If epsilon is negative, or zero with a singular covariance, or the covariance is not
        square, symmetric and finite.
    """
    epsilon = real(epsilon, 0, "epsilon")
    eigenvalues, axes = eigh(_symmetric(covariance))
    eigenvalues = np.maximum(eigenvalues, 0) + epsilon
    rounding = np.finfo(float).eps * len(eigenvalues) * eigenvalues.max(initial=0)
    regular = np.all(eigenvalues > rounding)
    require(regular, "the covariance is singular: whiten it with a larger epsilon")
    return (axes / np.sqrt(eigenvalues)) @ axes.T
