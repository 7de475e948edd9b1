"""Border and patches of small images, position by position."""

import numpy as np
import pytest

import geometry


@pytest.mark.parametrize(("width", "interior"), [(0, 15), (1, 3), (2, 0), (5, 0)])
def test_border_of_any_width(width, interior):
    x = np.arange(30.0).reshape(1, 3, 5, 2)
    inside, border = geometry.split_border(x, width)
    assert inside.size == 2 * interior
    np.testing.assert_array_equal(np.sort(np.r_[inside.ravel(), border.ravel()]), x.ravel())


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5])
def test_patches_are_what_a_same_convolution_sees(size):
    x = np.random.default_rng(0).integers(1, 255, (2, 4, 5, 3)).astype(np.uint8)
    patches = geometry.image_patches(x, size)
    assert patches.shape == (2, 4, 5, size * size * 3) and patches.dtype == np.uint8
    before = (size - 1) // 2
    for n, i, j in np.ndindex(2, 4, 5):
        patch = patches[n, i, j].reshape(size, size, 3)
        for a, b in np.ndindex(size, size):
            row, column = i + a - before, j + b - before
            inside = 0 <= row < 4 and 0 <= column < 5
            np.testing.assert_array_equal(patch[a, b], x[n, row, column] if inside else 0)


def test_valid_patches_are_the_interior_of_the_padded_ones():
    x = np.random.default_rng(0).standard_normal((2, 6, 5, 2))
    padded, whole = geometry.image_patches(x, 3), geometry.image_patches(x, 3, "VALID")
    np.testing.assert_array_equal(whole, padded[:, 1:-1, 1:-1])
