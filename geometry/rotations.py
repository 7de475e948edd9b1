"""Random rotations, and binarization in a rotated basis.

References
----------
.. [1] A. G. Anderson, C. P. Berg, "The High-Dimensional Geometry of Binary Neural Networks",
   ICLR 2018, arXiv:1705.07199.
"""

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import special_ortho_group

from utils import require

from .checks import whole
from .vectors import quantized


def random_rotation(d: int, rng: np.random.Generator | int) -> np.ndarray:
    """Rotation drawn uniformly (Haar measure) from all rotations in d dimensions.

    Parameters
    ----------
    d : int
        Dimension, at least 1.
    rng : numpy.random.Generator or int
        Source of randomness, or a seed.

    Returns
    -------
    ndarray, shape (d, d)
        Orthogonal, determinant +1.

    Raises
    ------
    ValueError
        If d is below 1 or not whole.
    """
    d = int(whole(d, 1, "dimension d"))
    return special_ortho_group.rvs(d, random_state=np.random.default_rng(rng)).reshape(d, d)


def rotated_binarization(x: ArrayLike, rotation: ArrayLike) -> np.ndarray:
    """Rotate, binarize and rotate back: the "generalized binarization" of [1]_.

    If a few directions hold most of the variance, the plain sign loses the direction of x. After
    a random rotation all axes have a similar variance, and the sign keeps the direction.

    Parameters
    ----------
    x : array_like, shape (…, d)
        Vectors along the last axis.
    rotation : array_like, shape (d, d)
        Orthogonal matrix R.

    Returns
    -------
    ndarray, shape (…, d)
        θ_R(x) = Rᵀθ(Rx), θ the sign.

    Raises
    ------
    ValueError
        If the rotation is not square, not orthogonal (to 1e-4) or not of the size of x.
    """
    x, rotation = np.asarray(x, dtype=np.float64), np.asarray(rotation, dtype=np.float64)
    require(rotation.ndim == 2, "a rotation must be a matrix")
    rows, d = rotation.shape
    orthogonal = rows == d and np.allclose(rotation @ rotation.T, np.eye(d), rtol=0, atol=1e-4)
    require(orthogonal, "a rotation must be a square orthogonal matrix")
    require(x.shape[-1:] == (d,), f"vectors of shape {x.shape} cannot be rotated in {d} dimensions")
    return quantized(x @ rotation.T) @ rotation
