"""Random rotations are rotations and uniform; binarization in a rotated basis."""

import numpy as np
import pytest
from scipy import stats

import geometry


def test_random_rotation_is_a_rotation_and_follows_its_seed():
    for d in (1, 2, 57):
        rotation = geometry.random_rotation(d, np.random.default_rng(5))
        np.testing.assert_allclose(rotation @ rotation.T, np.eye(d), atol=1e-12)
        assert np.linalg.det(rotation) == pytest.approx(1)
        np.testing.assert_array_equal(rotation, geometry.random_rotation(d, 5))


def test_random_rotations_of_space_follow_the_haar_measure():
    """The angle of a Haar rotation in three dimensions has distribution (ω − sin ω)/π."""
    rng = np.random.default_rng(0)
    traces = np.array([np.trace(geometry.random_rotation(3, rng)) for _ in range(2000)])
    angles = np.arccos(np.clip((traces - 1) / 2, -1, 1))
    assert stats.kstest(angles, lambda w: (w - np.sin(w)) / np.pi).pvalue > 0.01


def test_rotated_binarization_along_the_axes_is_the_sign_with_plus_at_zero():
    x = np.array([[-2.0, 0.0, -0.0], [1e-300, -1e-300, 5.0]])
    binarized = geometry.rotated_binarization(x, np.eye(3))
    np.testing.assert_array_equal(binarized, [[-1, 1, 1], [1, -1, 1]])


def test_rotated_binarization_is_the_formula_for_each_row():
    rng = np.random.default_rng(0)
    rotation, x = geometry.random_rotation(6, rng), rng.standard_normal((2, 4, 6))
    result = geometry.rotated_binarization(x, rotation)
    for index in np.ndindex(2, 4):
        expected = rotation.T @ np.sign(rotation @ x[index])
        np.testing.assert_allclose(result[index], expected, atol=1e-12)


@pytest.mark.parametrize("d", [100, 500])
def test_a_rotation_restores_the_angle_of_an_anisotropic_gaussian(d):
    rng = np.random.default_rng(d)
    x = rng.standard_normal((500, d)) * np.exp(0.1 * (np.arange(d) - d / 2))
    rotated = geometry.rotated_binarization(x, geometry.random_rotation(d, rng))
    plain = geometry.rotated_binarization(x, np.eye(d))
    limit = np.degrees(geometry.binary_angle())
    assert np.degrees(geometry.angle(x, rotated)).mean() == pytest.approx(limit, abs=3)
    assert np.degrees(geometry.angle(x, plain)).mean() > limit + 20
