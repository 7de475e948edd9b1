"""Samplers agree with the closed forms."""

import numpy as np
import pytest

import geometry


@pytest.mark.parametrize("d", [3, 27, 300])
def test_samplers_follow_theory(d):
    rng, count = np.random.default_rng(5), 4000
    mean, sd = geometry.angle_moments(d)
    angles = geometry.binarization_angles(d, count, rng)
    assert angles.shape == (count,)
    assert abs(angles.mean() - mean) < 4 * sd / np.sqrt(count)
    pairs = geometry.random_pair_angles(d, count, rng)
    assert abs(pairs.mean() - np.pi / 2) < 4 * pairs.std() / np.sqrt(count)


def test_ternary_samples_lie_on_the_curve():
    rng = np.random.default_rng(6)
    for tau in (0.0, 0.612, 1.5):
        angle, zeros = geometry.ternarization_angle(tau, 200_000, rng)
        assert abs(np.cos(angle) - geometry.ternary_cosine(tau)) < 0.005
        assert abs(zeros - geometry.ternary_zero_fraction(tau)) < 0.005


def test_rotation_restores_the_angle_of_an_anisotropic_gaussian():
    plain, rotated = geometry.anisotropic_angles(100, 500, np.random.default_rng(7))
    limit = geometry.binary_angle()
    assert abs(rotated.mean() - limit) < np.radians(3)
    assert plain.mean() - limit > np.radians(20)
