"""Angles near 0 and π; the quantizer on both sides of its threshold."""

import numpy as np
import pytest

import geometry


def test_angle_keeps_its_digits_at_both_ends():
    u = np.array([[3.0, 4.0, 12.0]])
    turned = u + 1e-9 * np.array([4.0, -3.0, 0.0])
    np.testing.assert_allclose(geometry.angle(u, turned), 5e-9 / 13, rtol=1e-6)
    assert geometry.angle(u, 7 * u) == 0
    assert geometry.angle(u, -u) == np.pi
    assert np.isnan(geometry.angle(u, 0 * u))
    assert geometry.angle(np.eye(2), np.ones((2, 1)), axis=0) == pytest.approx([np.pi / 4] * 2)


def test_the_binary_quantizer_is_the_sign_with_plus_at_zero():
    np.testing.assert_array_equal(geometry.quantized([-2, -0.0, 0, 1e-300]), [-1, 1, 1, 1])
    assert geometry.quantized(np.float32([[3]])).dtype == np.float64


def test_the_ternary_quantizer_is_zero_up_to_and_at_its_threshold():
    x = [-3, -0.5, -0.4, 0, 0.5, np.nextafter(0.5, 1)]
    np.testing.assert_array_equal(geometry.quantized(x, 0.5), [-1, 0, 0, 0, 0, 1])
