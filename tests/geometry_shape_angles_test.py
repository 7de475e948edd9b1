"""Angles from the kurtosis against quadrature, sampling and the Gaussian closed form."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, stats

import geometry


def cosine_by_quadrature(density, tau):
    """E[|w|; |w| > t]/√(E[w²] P(|w| > t)) of a symmetric density with unit variance."""

    def tail(power, start):
        return 2 * integrate.quad(lambda w: w**power * density(w), start, np.inf, limit=200)[0]

    return tail(1, tau) / np.sqrt(tail(2, 0) * tail(0, tau))


def test_shape_angle_of_named_distributions():
    degrees = np.degrees(geometry.shape_angle([1, 1.8, 3, 6]))
    closed = np.degrees([0, np.pi / 6, geometry.binary_angle(), np.pi / 4])
    np.testing.assert_allclose(degrees, closed, atol=1e-5)


def test_shape_angle_reproduces_the_prototypes_figures():
    kurtosis = np.array([3.70, 3.48, 3.28, 3.37, 3.18])
    predicted = [39.67, 38.95, 38.19, 38.56, 37.83]
    # The kurtosis has two decimals, which limits the agreement.
    np.testing.assert_allclose(np.degrees(geometry.shape_angle(kurtosis)), predicted, atol=0.02)


@pytest.mark.parametrize("tau", [0.0, 0.11, 0.7, 1.6])
@pytest.mark.parametrize("beta", [0.6, 1.0, 2.0, 7.0, 20.0])
def test_shape_angle_against_quadrature_of_the_generalized_gaussian(beta, tau):
    scale = 1 / stats.gennorm.std(beta)
    kurtosis = 3 + stats.gennorm.stats(beta, moments="k")
    cosine = cosine_by_quadrature(lambda w: stats.gennorm.pdf(w, beta, scale=scale), tau)
    assert np.cos(geometry.shape_angle(kurtosis, tau)) == pytest.approx(cosine, rel=1e-6)


@pytest.mark.parametrize("tau", [0.0, 0.11, 0.7])
@pytest.mark.parametrize("b", [0.05, 0.5, 1.0])
def test_shape_angle_against_sampling_of_the_beta_distribution(b, tau):
    w = 2 * stats.beta(b, b).ppf((np.arange(10**6) + 0.5) / 10**6) - 1
    kept = np.abs(w) > tau * np.sqrt(np.mean(w**2))
    cosine = np.sum(np.abs(w[kept])) / np.sqrt(np.sum(w**2) * kept.sum())
    predicted = geometry.shape_angle(np.mean(w**4) / np.mean(w**2) ** 2, tau)
    assert np.cos(predicted) == pytest.approx(cosine, abs=2e-4)


@pytest.mark.parametrize("tau", [0.0, 0.07, 0.3, 0.612, 0.9])
@pytest.mark.parametrize("beta", [1.2, 2.0, 8.0])
@pytest.mark.parametrize("peak", [0.0, 0.02, 0.12])
def test_peaked_shape_angle_finds_the_weights_at_the_threshold(peak, beta, tau):
    w = stats.gennorm.ppf((np.arange(10**5) + 0.5) / 10**5, beta)
    # t = τσ, σ of all weights together with the peak.
    t = tau * w.std() * np.sqrt((1 - peak) / (1 - peak * tau**2))
    gathered = np.resize(t * np.array([1 + 1e-9, 1 - 1e-9]), round(len(w) * peak / (1 - peak)))
    w = np.r_[w, gathered][:, None]
    quantized = np.where(np.abs(w) > t, np.sign(w), 0) if tau else np.where(w >= 0, 1, -1)
    kurtosis, near = geometry.unit_kurtosis(w)[0], geometry.near_threshold_share(w, t)
    angle, found = geometry.peaked_shape_angle(kurtosis, near, tau)
    assert found == pytest.approx(peak, abs=3e-4)
    assert angle == pytest.approx(geometry.angle(w, quantized, axis=0)[0], abs=3e-4)
    if peak == 0.12:
        assert np.degrees(angle - geometry.shape_angle(kurtosis, tau)) > 0.8


def test_peaked_shape_angle_with_too_few_weights_at_the_threshold_and_with_too_many():
    for tau in (0, 0.3, 1.2):
        assert geometry.peaked_shape_angle(3, 0, tau) == (
            pytest.approx(geometry.shape_angle(3, tau)),
            0,
        )
        assert geometry.peaked_shape_angle(1.5, 0.5, tau) == (geometry.shape_angle(1.5, tau), 0)
    angle, peak = geometry.peaked_shape_angle(2.4, 0.9)
    assert peak == pytest.approx(0.25)
    assert np.cos(angle) == pytest.approx(np.sqrt(3) / 2 * np.sqrt(0.75))
    with pytest.raises(ValueError, match="tau"):
        geometry.peaked_shape_angle(3, 0.1, -0.1)
    # 2/9 of the weights at 1.5 standard deviations have half of the variance.
    assert geometry.peaked_shape_angle(30, 1, 1.5)[1] == pytest.approx(2 / 9)


def test_shape_angle_is_continuous_at_the_uniform_distribution():
    tau = np.array([0, 0.11, 1.0, 1.7])
    edge = tau / np.sqrt(3)
    uniform = np.arccos(np.sqrt(3) / 2 * np.sqrt(1 - edge) * (1 + edge))
    for kurtosis in (1.8 - 1e-7, 1.8, 1.8 + 1e-14, 1.8 + 1e-10, 1.8 + 1e-7):
        np.testing.assert_allclose(geometry.shape_angle(kurtosis, tau), uniform, atol=1e-4)


def test_shape_angle_of_a_gaussian_is_the_ternary_closed_form():
    tau = np.array([[0.0], [0.1111], [0.612], [5.0], [12.0]])
    np.testing.assert_allclose(
        np.cos(geometry.shape_angle([[3.0, 3.0]], tau)),
        np.repeat(geometry.ternary_cosine(tau), 2, axis=1),
        rtol=1e-7,
        atol=1e-15,
    )


def test_shape_angle_at_its_limits():
    np.testing.assert_array_equal(geometry.shape_angle([1.0, 1.5, 1.8], 2.0), np.pi / 2)
    assert geometry.shape_angle(1.0, 0.5) == pytest.approx(0, abs=1e-5)
    assert np.isnan(geometry.shape_angle(np.nan))


@settings(deadline=None)
@given(st.lists(st.floats(1, 1e6), min_size=2, max_size=8))
def test_heavier_tails_always_widen_the_binary_angle(kurtosis):
    angles = geometry.shape_angle(np.sort(kurtosis))
    assert np.all(np.diff(angles) >= -1e-9)
    assert np.all((angles >= 0) & (angles < np.pi / 2))


@pytest.mark.parametrize("shape", ["norm", "laplace", "uniform"])
def test_iid_cosine_sd_against_sampled_vectors(shape):
    w = getattr(stats, shape).rvs(size=(4000, 400), random_state=3)
    cosine = np.abs(w).mean(axis=1) / np.sqrt(np.mean(w**2, axis=1))
    assert geometry.iid_cosine_sd(w, 400) == pytest.approx(cosine.std(), rel=0.05)


def test_iid_cosine_sd_is_the_published_formula():
    w = np.random.default_rng(0).standard_t(9, size=100_000)
    m1, m2 = np.mean(np.abs(w)), np.mean(w**2)
    (aa, ab), (_, bb) = np.cov(np.abs(w), w**2, bias=True)
    d = np.array([27, 4608])
    expected = np.sqrt((aa - m1 / m2 * ab + m1**2 / (4 * m2**2) * bb) / m2 / d)
    np.testing.assert_allclose(geometry.iid_cosine_sd(w, d), expected, rtol=1e-10)
    assert geometry.iid_cosine_sd(np.sign(w), 27) == pytest.approx(0, abs=1e-12)
    gaussian = stats.norm.ppf((np.arange(10**5) + 0.5) / 10**5)
    assert geometry.iid_cosine_sd(gaussian, 1) == pytest.approx(np.sqrt(1 - 3 / np.pi), rel=1e-3)
