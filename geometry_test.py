"""Closed forms against quadrature, sampling and the paper's figures; measurement against NumPy."""

from decimal import Decimal, localcontext
from fractions import Fraction
from math import comb

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, stats

import geometry

GAUSSIAN = np.sqrt(2 / np.pi)


# ------------------------------------------------------------------------------------------------
# Random vectors and their binarized versions
# ------------------------------------------------------------------------------------------------

PI = Decimal("3.14159265358979323846264338327950288419716939937510582097494459230781640628620899")


def bernoulli(n):
    numbers = [Fraction(1)]
    for m in range(1, n + 1):
        numbers.append(-sum(comb(m + 1, k) * numbers[k] for k in range(m)) / (m + 1))
    return numbers


BERNOULLI = bernoulli(30)


def log_gamma(x):
    """Stirling's series, 50 digits: the argument is raised above 100 first."""
    shift = Decimal(1)
    while x < 100:
        shift *= x
        x += 1
    value = (x - Decimal("0.5")) * x.ln() - x + (2 * PI).ln() / 2
    for k in range(1, 16):
        b = BERNOULLI[2 * k]
        value += Decimal(b.numerator) / b.denominator / (2 * k * (2 * k - 1)) / x ** (2 * k - 1)
    return value - shift.ln()


def exact_cosine_moments(d):
    with localcontext() as context:
        context.prec = 60
        d = Decimal(d)
        ratio = (log_gamma(d / 2) - log_gamma((d + 1) / 2)).exp()
        mean = (d / PI).sqrt() * ratio
        variance = 1 / d + (1 - 1 / d) * 2 / PI - mean**2
        return float(mean), float(variance.sqrt())


DIMENSIONS = [*range(2, 60), 99, 128, 1152, 4608, 10**5, 10**6 + 1, 10**8, 999_999_999, 10**9]


def test_cosine_moments_against_60_digit_arithmetic():
    expected = np.transpose([exact_cosine_moments(d) for d in DIMENSIONS])
    np.testing.assert_allclose(geometry.cosine_moments(DIMENSIONS), expected, rtol=1e-12)


def test_cosine_moments_at_both_ends():
    mean, sd = geometry.cosine_moments(1)
    assert mean == pytest.approx(1, rel=1e-15) and sd == 0
    mean, sd = geometry.cosine_moments(1e9)
    assert mean == pytest.approx(GAUSSIAN, rel=1e-9)
    assert sd * np.sqrt(1e9) == pytest.approx(np.sqrt(1 - 3 / np.pi), rel=1e-8)


# d, E[cos], sd[cos], angle mean and sd in degrees, as published with the claims.
TABLE = [
    (3, 0.866025, 0.088014, 28.12, 10.91),
    (10, 0.818049, 0.061261, 34.64, 6.17),
    (27, 0.805305, 0.039524, 36.19, 3.83),
    (1152, 0.798058, 0.006250, 37.05, 0.59),
    (4608, 0.797928, 0.003127, 37.06, 0.30),
]


def test_moments_are_those_of_the_table():
    d, mean, sd, angle, angle_sd = np.transpose(TABLE)
    np.testing.assert_array_equal(np.round(geometry.cosine_moments(d), 6), [mean, sd])
    np.testing.assert_allclose(
        np.degrees(geometry.angle_moments(d)), [angle, angle_sd], rtol=0, atol=0.01
    )


def test_angle_moments_in_one_and_two_dimensions_are_exact():
    mean, sd = geometry.angle_moments([1, 2])
    np.testing.assert_allclose(mean, [0, np.pi / 8], rtol=1e-15)
    np.testing.assert_allclose(sd, [0, np.pi / 8 / np.sqrt(3)], rtol=1e-15)


def test_angle_moments_in_three_dimensions_against_the_octant():
    """Cube face x = 1 of the octant seen from the origin; its three faces are alike."""

    def moment(power):
        def integrand(z, y):
            square = 1 + y * y + z * z
            return np.arccos((1 + y + z) / np.sqrt(3 * square)) ** power / square**1.5

        return 3 * integrate.dblquad(integrand, 0, 1, 0, 1, epsabs=1e-9)[0] / (np.pi / 2)

    mean, sd = geometry.angle_moments(3)
    assert mean == pytest.approx(moment(1), abs=1e-6)
    assert sd == pytest.approx(np.sqrt(moment(2) - moment(1) ** 2), abs=1e-6)


@pytest.mark.parametrize("d", [4, 7, 27, 127, 128])
def test_angle_moments_against_sampling(d):
    u = np.random.default_rng(d).standard_normal((4_000_000 // (d + 16), d))
    angles = geometry.angle(u, np.sign(u))
    mean, sd = geometry.angle_moments(d)
    assert angles.mean() == pytest.approx(mean, abs=4 * sd / np.sqrt(len(u)))
    assert angles.std() == pytest.approx(sd, rel=4 / np.sqrt(2 * len(u)))


def test_angle_moments_join_where_quadrature_gives_way_to_the_series():
    # In 1/d both moments are so smooth that a parabola through three points predicts the fourth.
    d = np.array([116, 120, 124, 127, 128, 132])
    for moment in np.multiply(geometry.angle_moments(d), [np.ones(6), np.sqrt(d)]):
        inside = np.polyval(np.polyfit(1 / d[:4], moment[:4], 2), 1 / d[4:])
        np.testing.assert_allclose(np.degrees(moment[4:] - inside), 0, atol=4e-3)


def test_angle_moments_tend_to_the_limit():
    mean, sd = geometry.angle_moments(10**9)
    assert mean == pytest.approx(geometry.binary_angle(), abs=1e-8)
    limit = np.sqrt((1 - 3 / np.pi) / (1 - 2 / np.pi))
    assert sd * np.sqrt(1e9) == pytest.approx(limit, rel=1e-8)
    assert limit == pytest.approx(0.3522, abs=5e-5)
    assert np.degrees(geometry.binary_angle()) == pytest.approx(37.07, abs=5e-3)


@pytest.mark.parametrize("d", [2, 3, 10, 1152, 10**6, 10**9])
def test_angle_density_is_normalized_with_the_variance_of_the_cosine(d):
    half = min(np.pi / 2, 12 / np.sqrt(d))

    def moment(f):
        def integrand(offset):
            return f(offset) * geometry.angle_density(np.pi / 2 + offset, d)

        return 2 * integrate.quad(integrand, 0, half, epsabs=0)[0]

    assert moment(lambda offset: 1.0) == pytest.approx(1, rel=1e-8)
    assert moment(lambda offset: np.sin(offset) ** 2) == pytest.approx(1 / d, rel=1e-6)


def test_angle_density_in_low_dimensions_and_off_its_range():
    angle = np.linspace(0, np.pi, 7)
    np.testing.assert_allclose(geometry.angle_density(angle, 2), 1 / np.pi, rtol=1e-12)
    np.testing.assert_allclose(
        geometry.angle_density(angle, 3), np.sin(angle) / 2, rtol=1e-12, atol=1e-15
    )
    np.testing.assert_array_equal(geometry.angle_density([-0.1, 3.2], 3), 0)


def test_angle_density_is_that_of_sampled_pairs():
    u, v = np.random.default_rng(1).standard_normal((2, 20_000, 10))
    grid = np.linspace(0, np.pi, 2001)
    cdf = integrate.cumulative_simpson(geometry.angle_density(grid, 10), x=grid, initial=0)
    test = stats.kstest(geometry.angle(u, v), lambda angle: np.interp(angle, grid, cdf))
    assert test.pvalue > 0.01


def test_angle_keeps_its_digits_at_both_ends():
    u = np.array([[3.0, 4.0, 12.0]])
    turned = u + 1e-9 * np.array([4.0, -3.0, 0.0])
    np.testing.assert_allclose(geometry.angle(u, turned), 5e-9 / 13, rtol=1e-6)
    assert geometry.angle(u, 7 * u) == 0
    assert geometry.angle(u, -u) == np.pi
    assert np.isnan(geometry.angle(u, 0 * u))
    assert geometry.angle(np.eye(2), np.ones((2, 1)), axis=0) == pytest.approx([np.pi / 4] * 2)


# ------------------------------------------------------------------------------------------------
# Ternary vectors, other distributions, finer quantizers
# ------------------------------------------------------------------------------------------------


def cosine_by_quadrature(density, tau):
    """E[|w|; |w| > t]/√(E[w²] P(|w| > t)) of a symmetric density with unit variance."""

    def tail(power, start):
        return 2 * integrate.quad(lambda w: w**power * density(w), start, np.inf, limit=200)[0]

    return tail(1, tau) / np.sqrt(tail(2, 0) * tail(0, tau))


@pytest.mark.parametrize("tau", [0.0, 0.1111, 0.612, 1.5, 4.0])
def test_ternary_forms_against_quadrature(tau):
    expected = cosine_by_quadrature(stats.norm.pdf, tau)
    assert geometry.ternary_cosine(tau) == pytest.approx(expected, rel=1e-7)
    zeros = integrate.quad(stats.norm.pdf, -tau, tau)[0]
    assert geometry.ternary_zero_fraction(tau) == pytest.approx(zeros, abs=1e-9)


def test_ternary_forms_give_the_published_figures():
    tau = geometry.optimal_ternary_threshold()
    degrees = np.degrees(np.arccos(geometry.ternary_cosine([0.1111, 0.101, tau])))
    np.testing.assert_array_equal(np.round(degrees, 2), [33.84, 34.12, 25.85])
    assert np.arccos(geometry.ternary_cosine(0.101)) == pytest.approx(0.5956, abs=2e-4)
    assert round(100 * geometry.ternary_zero_fraction(0.1111), 1) == 8.8
    assert tau == pytest.approx(0.612, abs=5e-4)


def test_ternary_cosine_far_out_neither_underflows_nor_divides_by_zero():
    tau = np.array([10.0, 30.0, 45.0])
    tail = np.exp(-np.square(tau) / 4) * np.sqrt(2 * tau / np.sqrt(2 * np.pi))
    np.testing.assert_allclose(geometry.ternary_cosine(tau) / tail, 1, atol=0.01)
    assert geometry.ternary_cosine(1e9) == 0


def test_optimal_threshold_beats_its_neighbours():
    best = geometry.optimal_ternary_threshold()
    grid = np.linspace(0, 3, 3001)
    assert np.abs(grid[np.argmax(geometry.ternary_cosine(grid))] - best) < 1e-3
    assert geometry.ternary_cosine(best) >= geometry.ternary_cosine(grid).max()


def lloyd(levels):
    """Lloyd's own iteration, by quadrature: slow and independent."""
    centroids = np.linspace(-2, 2, levels)
    for _ in range(400):
        edges = np.r_[-np.inf, (centroids[1:] + centroids[:-1]) / 2, np.inf]
        mass = np.diff(stats.norm.cdf(edges))
        centroids = -np.diff(stats.norm.pdf(edges)) / mass
    distortion = sum(
        integrate.quad(lambda x, c=c: (x - c) ** 2 * stats.norm.pdf(x), low, high)[0]
        for c, low, high in zip(centroids, edges[:-1], edges[1:], strict=True)
    )
    return np.sqrt(1 - distortion)


@pytest.mark.parametrize("levels", [2, 3, 5, 8])
def test_quantizer_cosine_against_lloyds_iteration(levels):
    assert geometry.quantizer_cosine(levels) == pytest.approx(lloyd(levels), rel=1e-7)


def test_quantizer_cosine_gives_the_published_figures():
    cosine = geometry.quantizer_cosine([[2, 3, 4]])
    np.testing.assert_allclose(1 - cosine**2, [[1 - 2 / np.pi, 0.1902, 0.1175]], atol=5e-5)
    degrees = np.degrees(np.arccos(cosine))
    np.testing.assert_allclose(degrees, [[37.07, 25.85, 20.05]], atol=0.0101)
    best = geometry.ternary_cosine(geometry.optimal_ternary_threshold())
    assert geometry.quantizer_cosine(3) == pytest.approx(best, rel=1e-14)


def test_many_levels_follow_panter_and_dite_and_stay_above_the_rate_distortion_limit():
    levels = 2 ** np.arange(1, 17)
    angles = np.arccos(geometry.quantizer_cosine(levels))
    assert np.all(angles > geometry.rate_distortion_angle(np.log2(levels)))
    assert np.all(np.diff(angles) < 0)
    constants = (np.sin(angles) * levels) ** 2 / (np.sqrt(3) * np.pi / 2)
    assert np.all(np.diff(constants) > 0)
    np.testing.assert_allclose(constants[[9, 15]], 1, rtol=3e-3)


def test_rate_distortion_limit():
    degrees = np.degrees(geometry.rate_distortion_angle([0, 1, 2]))
    np.testing.assert_allclose(degrees, [90, 30, 14.48], atol=5e-3)


def test_shape_angle_of_named_distributions():
    degrees = np.degrees(geometry.shape_angle([1, 1.8, 3, 6]))
    closed = np.degrees([0, np.pi / 6, geometry.binary_angle(), np.pi / 4])
    np.testing.assert_allclose(degrees, closed, atol=1e-5)


def test_shape_angle_predicts_what_the_prototype_was_predicted():
    kurtosis = np.array([3.70, 3.48, 3.28, 3.37, 3.18])
    predicted = [39.67, 38.95, 38.19, 38.56, 37.83]
    # As close as two decimals of the kurtosis allow.
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
    # With t = τσ over all, peak included.
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
    # Weights at 1.5 standard deviations have half of the variance where they are 2/9 of all.
    assert geometry.peaked_shape_angle(30, 1, 1.5)[1] == pytest.approx(2 / 9)


def test_near_threshold_share_is_of_each_units_own_scale():
    w = np.r_[np.linspace(-1, 1, 10**5)][:, None] * [1, 30]
    assert geometry.near_threshold_share(w) == pytest.approx(0.1 / np.sqrt(3), abs=1e-4)
    about_half = geometry.near_threshold_share(w[:, :1], 0.5)
    assert about_half == pytest.approx(0.2 / np.sqrt(3), abs=1e-4)


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


# ------------------------------------------------------------------------------------------------
# Correlated inputs, rotations
# ------------------------------------------------------------------------------------------------


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


# ------------------------------------------------------------------------------------------------
# Measurement: weights
# ------------------------------------------------------------------------------------------------


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


def test_saturated_share_counts_both_ends_only():
    assert geometry.saturated_share([[1, -1, 0.5], [np.nextafter(1, 0), 0, -0.999]]) == 1 / 3


def test_scaling_exponent_of_a_power_law():
    d = np.array([27, 1152, 1152, 2304, 4608])
    assert geometry.scaling_exponent(d, 3 * d**-0.42) == pytest.approx(-0.42)
    assert geometry.scaling_exponent(d, geometry.angle_moments(d)[1]) == pytest.approx(
        -0.5, abs=0.01
    )


# ------------------------------------------------------------------------------------------------
# Measurement: dot products
# ------------------------------------------------------------------------------------------------

EXTENT = (-3.0, 4.0, -20.0, 30.0)


def pairs(shape, seed=0, dtype=np.float64):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(shape) + np.arange(shape[-1]) / 2
    y = 5 * x + 4 * rng.standard_normal(shape) - np.arange(shape[-1])
    return x.astype(dtype), y.astype(dtype)


def gathered(x, y, cuts=(), extent=EXTENT, bins=20):
    statistics = geometry.DotProductStatistics(x.shape[-1], extent, bins)
    for part in zip(np.split(x, cuts), np.split(y, cuts), strict=True):
        statistics.update(*part)
    return statistics


def assert_same(one, other, rtol=1e-12):
    assert one.count == other.count
    for measure in ("correlation", "unit_correlations", "slope", "sign_changes"):
        np.testing.assert_allclose(getattr(one, measure)(), getattr(other, measure)(), rtol=rtol)
    np.testing.assert_allclose(one.mean, other.mean, rtol=rtol, atol=1e-13)
    np.testing.assert_allclose(one.comoments, other.comoments, rtol=rtol)
    np.testing.assert_array_equal(one.histogram, other.histogram)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("chunk", [1, 700, 2**17])
def test_statistics_are_numpys(monkeypatch, dtype, chunk):
    monkeypatch.setattr(geometry.DotProductStatistics, "_CHUNK", chunk)
    x, y = pairs((20, 4, 5, 3), dtype=dtype)
    statistics = gathered(x, y)
    x, y = x.astype(np.float64), y.astype(np.float64)
    assert statistics.correlation() == pytest.approx(np.corrcoef(x.ravel(), y.ravel())[0, 1])
    assert statistics.slope() == pytest.approx(np.polyfit(x.ravel(), y.ravel(), 1)[0])
    assert statistics.sign_changes() == np.mean(x * y < 0)
    x, y = x.reshape(-1, 3), y.reshape(-1, 3)
    np.testing.assert_allclose(statistics.mean, [x.mean(axis=0), y.mean(axis=0)], rtol=1e-12)
    for unit in range(3):
        (xx, xy), (_, yy) = np.cov(x[:, unit], y[:, unit], bias=True)
        np.testing.assert_allclose(
            statistics.comoments[:, unit] / statistics.count, [xx, yy, xy], rtol=1e-12
        )
        r = np.corrcoef(x[:, unit], y[:, unit])[0, 1]
        assert statistics.unit_correlations()[unit] == pytest.approx(r, rel=1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_histogram_is_numpys_and_drops_what_lies_outside(dtype):
    x, y = pairs((5000, 4), dtype=dtype)
    ranges = (EXTENT[:2], EXTENT[2:])
    expected, *_ = np.histogram2d(x.ravel(), y.ravel(), bins=20, range=ranges)
    assert 0 < expected.sum() < x.size
    # A value within float32 rounding of an edge may fall on its other side.
    allowed = 0 if dtype == np.float64 else 4
    difference = np.abs(gathered(x, y).histogram - expected).sum()
    assert difference <= allowed


def test_histogram_cells_are_closed_below_and_open_above():
    x = np.array([[-3.0], [-2.65], [4.0], [0.5]])
    y = np.array([[-20.0], [30.0], [0.0], [29.9]])
    expected = np.zeros((20, 20))
    expected[0, 0] = expected[10, 19] = 1
    np.testing.assert_array_equal(gathered(x, y).histogram, expected)


@settings(max_examples=60, deadline=None)
@given(
    cuts=st.lists(st.integers(0, 60), max_size=6).map(sorted),
    offset=st.floats(-1e3, 1e3),
    dtype=st.sampled_from([np.float32, np.float64]),
)
def test_the_split_into_batches_does_not_matter(cuts, offset, dtype):
    x, y = pairs((60, 3, 4), dtype=dtype)
    x, y = x + dtype(offset), y - dtype(offset)
    assert_same(gathered(x, y, cuts), gathered(x, y), rtol=1e-10)


def test_a_large_mean_costs_no_digits():
    x, y = pairs((4000, 2))
    far_x, far_y = x + 2.0**30, y - 2.0**30
    near = gathered(far_x - 2.0**30, far_y + 2.0**30)
    far = gathered(far_x, far_y)
    np.testing.assert_allclose(far.unit_correlations(), near.unit_correlations(), rtol=1e-12)
    assert far.correlation() == pytest.approx(near.correlation(), rel=1e-8)


def test_interior_and_border_merged_are_the_whole():
    x, y = pairs((6, 5, 7, 3), dtype=np.float32)
    parts = [gathered(*part) for part in zip(*map(geometry.split_border, (x, y)), strict=True)]
    inside = gathered(x[:, 1:-1, 1:-1], y[:, 1:-1, 1:-1])
    assert_same(parts[0], inside)
    assert parts[1].count == 6 * (5 * 7 - 3 * 5)
    assert_same(parts[1].merge(parts[0]), gathered(x, y))


@pytest.mark.parametrize(("width", "interior"), [(0, 15), (1, 3), (2, 0), (5, 0)])
def test_border_of_any_width(width, interior):
    x = np.arange(30.0).reshape(1, 3, 5, 2)
    inside, border = geometry.split_border(x, width)
    assert inside.size == 2 * interior
    np.testing.assert_array_equal(np.sort(np.r_[inside.ravel(), border.ravel()]), x.ravel())


def test_merging_with_an_empty_instance_changes_nothing():
    x, y = pairs((30, 2))
    empty = geometry.DotProductStatistics(2, EXTENT, 20)
    assert_same(gathered(x, y).merge(empty), gathered(x, y))
    assert empty.merge(geometry.DotProductStatistics(2, EXTENT, 20)).count == 0
    assert_same(empty.merge(gathered(x, y)), gathered(x, y))


def test_what_does_not_vary_has_no_correlation():
    x, y = pairs((100, 3))
    x[:, 1] = 0.1
    y[:, 2] = 1 / 3
    statistics = gathered(x, y, cuts=[17, 60])
    np.testing.assert_array_equal(np.isnan(statistics.unit_correlations()), [False, True, True])
    nothing = geometry.DotProductStatistics(3)
    assert np.isnan([nothing.correlation(), nothing.slope(), nothing.sign_changes()]).all()
    assert nothing.update(x[:0], y[:0]).count == 0 and nothing.histogram is None


def test_proportional_pairs_correlate_fully_and_integers_are_taken():
    x = np.arange(-20, 20).reshape(-1, 2)
    statistics = gathered(x, -3 * x)
    assert statistics.correlation() == pytest.approx(-1, rel=1e-14)
    assert statistics.slope() == pytest.approx(-3)
    # The pair (0, 0) has a product of zero: no change of sign.
    assert statistics.sign_changes() == 39 / 40


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_bad_value_is_refused_and_leaves_no_trace(bad, monkeypatch):
    monkeypatch.setattr(geometry.DotProductStatistics, "_CHUNK", 20)
    x, y = pairs((100, 2))
    statistics = gathered(x, y)
    broken = x.copy()
    broken[90, 1] = bad
    with pytest.raises(ValueError, match="NaN or infinity"):
        statistics.update(broken, y)
    assert_same(statistics, gathered(x, y))


# ------------------------------------------------------------------------------------------------
# Measurement: input patches
# ------------------------------------------------------------------------------------------------


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


@pytest.mark.parametrize("dtype", [np.float32, np.uint8])
def test_patch_covariance_is_numpys_however_split(monkeypatch, dtype):
    patches = np.random.default_rng(0).uniform(0, 200, (300, 12)).astype(dtype)
    expected = np.cov(patches, rowvar=False, bias=True, dtype=np.float64)
    for chunk, cuts in ((2**24, []), (50, []), (2**24, [1, 7, 200])):
        monkeypatch.setattr(geometry.PatchCovariance, "_CHUNK", chunk)
        accumulated = geometry.PatchCovariance(12)
        for part in np.split(patches, cuts):
            accumulated.update(part.reshape(-1, 1, 12))
        assert accumulated.count == 300
        np.testing.assert_allclose(accumulated.mean, patches.mean(axis=0, dtype=float), rtol=1e-13)
        np.testing.assert_allclose(accumulated.covariance, expected, atol=1e-9)


def test_patch_covariance_of_signs_is_the_same_to_the_last_bit():
    patches = np.random.default_rng(0).integers(-1, 2, (999, 40)).astype(np.float32)
    whole = geometry.PatchCovariance(40).update(patches)
    parts = geometry.PatchCovariance(40)
    for part in np.array_split(patches, 7):
        parts.update(part)
    np.testing.assert_array_equal(whole.covariance, parts.covariance)
    integers = patches.astype(np.int64)
    product = integers.T @ integers / 999 - np.outer(integers.mean(axis=0), integers.mean(axis=0))
    np.testing.assert_array_equal(whole.covariance, product)


def test_a_bad_patch_is_refused_and_leaves_no_trace():
    accumulated = geometry.PatchCovariance(2).update([[1.0, 2.0], [3.0, 5.0]])
    before = accumulated.covariance
    with pytest.raises(ValueError, match="NaN or infinity"):
        accumulated.update([[1.0, np.nan]])
    np.testing.assert_array_equal(accumulated.covariance, before)


# ------------------------------------------------------------------------------------------------
# Bad input
# ------------------------------------------------------------------------------------------------

W = np.ones((4, 2))

BAD = {
    "d below 1": (lambda: geometry.cosine_moments([3, 0.5]), "dimension"),
    "d nan": (lambda: geometry.cosine_moments(np.nan), "dimension"),
    "d infinite": (lambda: geometry.angle_moments(np.inf), "dimension"),
    "d not whole": (lambda: geometry.angle_moments(2.5), "whole"),
    "no density in one dimension": (lambda: geometry.angle_density(1.0, 1), "at least 2"),
    "negative tau": (lambda: geometry.ternary_cosine(-0.1), "tau"),
    "tau nan": (lambda: geometry.ternary_zero_fraction(np.nan), "tau"),
    "one level": (lambda: geometry.quantizer_cosine([1, 2]), "levels"),
    "2.5 levels": (lambda: geometry.quantizer_cosine(2.5), "whole"),
    "too many levels": (lambda: geometry.quantizer_cosine(2**16 + 1), "65536"),
    "negative bits": (lambda: geometry.rate_distortion_angle(-1), "bits"),
    "impossible kurtosis": (lambda: geometry.shape_angle([3, 0.99]), "kurtosis"),
    "infinite kurtosis": (lambda: geometry.shape_angle(np.inf), "kurtosis"),
    "kurtosis with negative tau": (lambda: geometry.shape_angle(3, -1), "tau"),
    "weights all zero": (lambda: geometry.iid_cosine_sd(np.zeros(5), 5), "zero"),
    "weights nan": (lambda: geometry.iid_cosine_sd([1, np.nan], 5), "NaN"),
    "no weights": (lambda: geometry.iid_cosine_sd([], 5), "zero"),
    "covariance not square": (lambda: geometry.predicted_correlation(W, W, W), "square"),
    "covariance of other size": (lambda: geometry.predicted_correlation(W, W, np.eye(3)), "3"),
    "covariance not symmetric": (lambda: geometry.principal_axes([[1, 2], [0, 1]]), "symmetric"),
    "covariance not symmetric far down": (
        lambda: geometry.principal_axes(np.eye(600) + np.eye(600, k=-599)),
        "symmetric",
    ),
    "covariance nan": (lambda: geometry.variance_spectrum([[np.nan]]), "NaN"),
    "kernels differ": (lambda: geometry.unit_angles(W, W[:3]), "differ"),
    "kernel without units": (lambda: geometry.unit_kurtosis(np.ones(4)), "units"),
    "rotation of no dimension": (lambda: geometry.random_rotation(0, 0), "dimension"),
    "rotation not square": (lambda: geometry.rotated_binarization(W, W), "square"),
    "rotation not orthogonal": (
        lambda: geometry.rotated_binarization(W, 2 * np.eye(2)),
        "orthogonal",
    ),
    "rotation of other size": (lambda: geometry.rotated_binarization(W, np.eye(3)), "rotated"),
    "singular whitening": (lambda: geometry.whitening(np.ones((2, 2)), 0), "singular"),
    "negative epsilon": (lambda: geometry.whitening(np.eye(2), -1), "epsilon"),
    "slope of one fan-in": (lambda: geometry.scaling_exponent([27, 27], [1, 2]), "two different"),
    "slope of a zero spread": (lambda: geometry.scaling_exponent([27, 9], [0, 1]), "positive"),
    "slope of unequal lists": (lambda: geometry.scaling_exponent([27, 9], [1]), "one length"),
    "no units": (lambda: geometry.DotProductStatistics(0), "units"),
    "too many bins": (lambda: geometry.DotProductStatistics(1, EXTENT, 600), "512"),
    "empty extent": (lambda: geometry.DotProductStatistics(1, (0, 0, 0, 1)), "extent"),
    "short extent": (lambda: geometry.DotProductStatistics(1, (0, 1)), "extent"),
    "pairs of other shape": (lambda: geometry.DotProductStatistics(2).update(W, W[:3]), "paired"),
    "pairs of other units": (lambda: geometry.DotProductStatistics(3).update(W, W), "units"),
    "merging other bins": (lambda: gathered(W, W).merge(gathered(W, W, bins=9)), "merged"),
    "negative border": (lambda: geometry.split_border(np.ones((1, 3, 3, 1)), -1), "width"),
    "border of a matrix": (lambda: geometry.split_border(W), "shape"),
    "patches of a matrix": (lambda: geometry.image_patches(W, 3), "shape"),
    "patch larger than image": (
        lambda: geometry.image_patches(np.ones((1, 2, 9, 1)), 3, "VALID"),
        "no patch",
    ),
    "unknown padding": (lambda: geometry.image_patches(np.ones((1, 4, 4, 1)), 3, "same"), "SAME"),
    "vectors of other length": (lambda: geometry.PatchCovariance(3).update(W), "3"),
    "covariance of nothing": (lambda: geometry.PatchCovariance(3).covariance, "no patches"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_in_one_line(case):
    call, reason = BAD[case]
    with pytest.raises(ValueError, match=reason) as error:
        call()
    assert "\n" not in str(error.value)


# --- Sampling ---------------------------------------------------------------------------------


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
