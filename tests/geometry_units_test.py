"""Measures of weights against NumPy and known distributions."""

import numpy as np
import pytest
from scipy import stats

import geometry


def test_unit_measures_of_a_kernel_are_those_of_its_columns():
    kernel = np.random.default_rng(0).laplace(size=(3, 3, 4, 7)).astype(np.float32)
    kernel[..., 6] = 0
    quantized = np.sign(kernel)
    angles, kurtosis = geometry.unit_angles(kernel, quantized), geometry.unit_kurtosis(kernel)
    assert angles.shape == kurtosis.shape == (7,)
    for unit in range(6):
        w = kernel[..., unit].ravel().astype(np.float64)
        cosine = np.abs(w).sum() / np.sqrt(w.size * np.sum(w**2))
        assert angles[unit] == pytest.approx(np.arccos(cosine), rel=1e-10)
        assert kurtosis[unit] == pytest.approx(np.mean(w**4) / np.mean(w**2) ** 2, rel=1e-10)
    assert np.isnan(angles[6]) and np.isnan(kurtosis[6])


def test_kurtosis_is_taken_about_zero():
    w = 5 + np.random.default_rng(0).standard_normal((1000, 1))
    expected = stats.norm.moment(4, loc=5) / stats.norm.moment(2, loc=5) ** 2
    assert geometry.unit_kurtosis(w) == pytest.approx(expected, rel=0.02)


def test_near_threshold_share_is_of_each_units_own_scale():
    w = np.r_[np.linspace(-1, 1, 10**5)][:, None] * [1, 30]
    assert geometry.near_threshold_share(w) == pytest.approx(0.1 / np.sqrt(3), abs=1e-4)
    about_half = geometry.near_threshold_share(w[:, :1], 0.5)
    assert about_half == pytest.approx(0.2 / np.sqrt(3), abs=1e-4)


def test_saturated_share_counts_both_ends_only():
    assert geometry.saturated_share([[1, -1, 0.5], [np.nextafter(1, 0), 0, -0.999]]) == 1 / 3


def test_scaling_exponent_of_a_power_law():
    d = np.array([27, 1152, 1152, 2304, 4608])
    assert geometry.scaling_exponent(d, 3 * d**-0.42) == pytest.approx(-0.42)
    assert geometry.scaling_exponent(d, geometry.angle_moments(d)[1]) == pytest.approx(
        -0.5, abs=0.01
    )
