"""What the other files share: checks of arguments, and a division that may have no result."""

import numpy as np
from numpy.typing import ArrayLike

from utils import require


def real(value: ArrayLike, least: float, name: str) -> np.ndarray:
    """`value` as float64 array, if all of it is finite and at least `least`."""
    value = np.asarray(value, dtype=np.float64)
    valid = np.isfinite(value) & (value >= least)
    require(np.all(valid), f"{name} must be finite and at least {least}")
    return value


def whole(value: ArrayLike, least: float, name: str) -> np.ndarray:
    """`value` as float64 array, if all of it is whole numbers of at least `least`."""
    value = real(value, least, name)
    require(np.all(value == np.floor(value)), f"{name} must be a whole number")
    return value


def columns(w: ArrayLike) -> np.ndarray:
    """A kernel (HWIO, or inputs × units) as float64 array of shape (inputs, units)."""
    w = np.asarray(w, dtype=np.float64)
    require(w.ndim >= 2, "a kernel needs its units on the last of two or more axes")
    return w.reshape(-1, w.shape[-1])


def kernel_pair(wc: ArrayLike, wb: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """`columns` of a latent and a quantized kernel, if they have the same shape."""
    wc, wb = columns(wc), columns(wb)
    require(wc.shape == wb.shape, "latent and quantized kernel differ in shape")
    return wc, wb


def ratio(numerator: ArrayLike, denominator: ArrayLike) -> np.ndarray | np.floating:
    """Quotient, nan where the denominator is zero."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(denominator == 0, np.nan, np.divide(numerator, denominator))[()]
