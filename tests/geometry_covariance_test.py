"""Predicted correlations, principal axes and whitening against NumPy on a sample."""

import numpy as np
import pytest

import geometry


def correlated_inputs(n=500, d=18, seed=0):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((n, d)) @ rng.standard_normal((d, d)) + rng.standard_normal(d)


def test_predicted_correlation_is_exact_for_the_sample_that_gave_the_covariance():
    a = correlated_inputs()
    kernel = np.random.default_rng(1).standard_normal((3, 3, 2, 5))
    covariance = np.cov(a, rowvar=False)
    predicted = geometry.predicted_correlation(kernel, np.sign(kernel), covariance)
    flat = kernel.reshape(18, 5)
    direct = [np.corrcoef(a @ w, a @ np.sign(w))[0, 1] for w in flat.T]
    np.testing.assert_allclose(predicted, direct, rtol=1e-10)
    one = geometry.predicted_correlation(flat[:, 2], np.sign(flat[:, 2]), covariance)
    assert one == pytest.approx(direct[2], rel=1e-10)


def test_predicted_correlation_of_isotropic_inputs_is_the_cosine():
    w = np.random.default_rng(2).standard_normal((40, 6))
    w[:, 3] = 0
    r = geometry.predicted_correlation(w, np.sign(w), 0.25 * np.eye(40))
    cosine = np.cos(geometry.unit_angles(w, np.sign(w)))
    np.testing.assert_allclose(r, cosine, rtol=1e-12)
    np.testing.assert_array_equal(np.isnan(r), np.arange(6) == 3)


def test_principal_axes_sort_and_decorrelate():
    a = correlated_inputs()
    covariance = np.cov(a, rowvar=False)
    axes = geometry.principal_axes(covariance)
    eigenvalues, shares = geometry.variance_spectrum(covariance)
    assert np.all(np.diff(eigenvalues) < 0)
    np.testing.assert_allclose(np.cov(a @ axes.T, rowvar=False), np.diag(eigenvalues), atol=1e-9)
    np.testing.assert_allclose(shares, eigenvalues / np.trace(covariance), rtol=1e-10)
    np.testing.assert_allclose(axes @ axes.T, np.eye(18), atol=1e-12)


def test_spectrum_of_a_flat_covariance_has_no_negative_eigenvalues():
    direction = np.random.default_rng(0).standard_normal((6, 1))
    eigenvalues, shares = geometry.variance_spectrum(direction @ direction.T)
    assert eigenvalues.min() >= 0
    np.testing.assert_allclose(shares, [1, 0, 0, 0, 0, 0], atol=1e-12)
    assert np.all(np.isnan(geometry.variance_spectrum(np.zeros((2, 2)))[1]))


def test_whitening_whitens_symmetrically():
    a = correlated_inputs()
    covariance = np.cov(a, rowvar=False)
    z = geometry.whitening(covariance, 0)
    np.testing.assert_allclose(z, z.T, atol=1e-12)
    np.testing.assert_allclose(np.cov(a @ z, rowvar=False), np.eye(18), atol=1e-7)
    damped = geometry.whitening(covariance, 0.5)
    np.testing.assert_allclose(
        damped @ damped @ (covariance + 0.5 * np.eye(18)), np.eye(18), atol=1e-9
    )
