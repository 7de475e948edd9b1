"""Look for an image that gets another label, without a solver.

The search changes squares of pixels to the ends of what is allowed and keeps what brings another
class nearer, as in the Square Attack (Andriushchenko et al. 2020, arXiv 1912.00049). It asks for
scores only, and pixels are whole numbers throughout.
"""

from collections.abc import Callable

import numpy as np

BATCH = 100
ROUNDS = 20


def search(
    predict: Callable[[np.ndarray], np.ndarray],
    image: np.ndarray,
    label: int,
    radius: int,
    seed: int = 0,
) -> np.ndarray | None:
    """An image within `radius` of `image` that gets another label, or None.

    Parameters
    ----------
    predict : callable
        Takes uint8 images (n, height, width, channels) to scores (n, classes).
    image : ndarray of uint8, shape (height, width, channels)
    label : int
    radius : int
        The most that a pixel may differ.
    seed : int

    Returns
    -------
    ndarray of uint8 or None
    """
    if radius == 0:
        return None
    rng = np.random.default_rng(seed)
    ends = np.stack([np.clip(image.astype(int) + d, 0, 255) for d in (-radius, radius)])
    ends = ends.astype(np.uint8)
    best, least = None, np.inf
    for number in range(ROUNDS):
        # Smaller squares toward the end.
        side = max(1, round(max(image.shape) * 0.5 * (1 - number / ROUNDS)))
        images = np.stack([_changed(rng, best, ends, side) for _ in range(BATCH)])
        margins = _margins(predict(images), label)
        lowest = margins.argmin()
        if margins[lowest] < 0:
            return images[lowest]
        if margins[lowest] <= least:
            best, least = images[lowest], margins[lowest]
    return None


def _changed(rng, image, ends, side):
    """`image` with one square at an end of what is allowed; stripes of ends without an image."""
    _, rows, columns, channels = ends.shape
    if image is None:
        stripes = rng.integers(0, 2, (1, columns, channels)).astype(bool)
        return np.where(stripes, *ends)
    row, column = (rng.integers(max(1, size - side + 1)) for size in (rows, columns))
    square = np.s_[row : row + side, column : column + side]
    changed = image.copy()
    changed[square] = np.where(rng.integers(0, 2, channels).astype(bool), *ends[:, *square])
    return changed


def _margins(scores, label):
    """How far the label leads; negative where another class is the answer."""
    others = np.delete(scores, label, axis=1)
    margins = scores[:, label] - others.max(axis=1)
    # Of equal scores the first class is the answer.
    ties = (margins == 0) & (scores.argmax(axis=1) != label)
    return np.where(ties, -np.finfo(np.float32).tiny, margins)
