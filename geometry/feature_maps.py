"""Parts of images and feature maps: interior and border, and the patches that a filter sees."""

import numpy as np
from numpy.typing import ArrayLike

from utils import require

from .checks import whole


def split_border(x: ArrayLike, width: int = 1) -> tuple:
    """Split feature maps into their interior and their border.

    At the border zero padding makes the dot products smaller. Statistics of interior and border
    can be merged: the result is that of the whole feature map.

    Parameters
    ----------
    x : array_like, shape (images, height, width, units)
    width : int
        Width of the border in positions. Padding reaches filter size // 2.

    Returns
    -------
    interior : ndarray, shape (images, height − 2·width, width − 2·width, units)
        A view; empty if the border is everything.
    border : ndarray, shape (images, positions, units)

    Raises
    ------
    ValueError
        If x is not a batch of feature maps, or width is negative or not whole.
    """
    x, width = np.asarray(x), int(whole(width, 0, "border width"))
    require(x.ndim == 4, f"expected images × height × width × units, not shape {x.shape}")
    rows, columns = (slice(width, max(size - width, width)) for size in x.shape[1:3])
    border = np.ones(x.shape[1:3], dtype=bool)
    border[rows, columns] = False
    return x[:, rows, columns], x[:, border]


def image_patches(x: ArrayLike, size: int, padding: str = "SAME") -> np.ndarray:
    """All patches of images that a convolution with stride 1 multiplies with its kernel.

    Parameters
    ----------
    x : array_like, shape (images, height, width, channels)
    size : int
        Side of the square filter.
    padding : {"SAME", "VALID"}
        SAME puts zeros around the image so that every position has a patch. For an even size
        there is one more zero after the image than before it, as in TensorFlow. VALID takes only
        patches that lie wholly inside the image.

    Returns
    -------
    ndarray, shape (images, positions down, positions across, size·size·channels)
        Same type as x. The entries have the order of a flattened HWIO kernel, so that
        `patches @ kernel.reshape(-1, units)` is the convolution.

    Raises
    ------
    ValueError
        If x is not a batch of images, size is not a whole number of at least 1, size is larger
        than an unpadded image, or padding is unknown.
    """
    x, size = np.asarray(x), int(whole(size, 1, "filter size"))
    require(x.ndim == 4, f"expected images × height × width × channels, not shape {x.shape}")
    require(padding in ("SAME", "VALID"), f"padding must be SAME or VALID, not {padding}")
    if padding == "SAME":
        around = ((size - 1) // 2, size // 2)
        x = np.pad(x, ((0, 0), around, around, (0, 0)))
    require(size <= min(x.shape[1:3]), f"images of shape {x.shape[1:3]} hold no patch of {size}")
    windows = np.lib.stride_tricks.sliding_window_view(x, (size, size), axis=(1, 2))
    patches = windows.transpose(0, 1, 2, 4, 5, 3)
    return patches.reshape(*patches.shape[:3], -1)
