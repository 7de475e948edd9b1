"""Closed forms for Gaussian vectors against quadrature, sampling and the paper's figures."""

from decimal import Decimal, localcontext
from fractions import Fraction
from math import comb

import numpy as np
import pytest
from scipy import integrate, stats

import geometry

GAUSSIAN = np.sqrt(2 / np.pi)


PI = Decimal("3.14159265358979323846264338327950288419716939937510582097494459230781640628620899")


def bernoulli(n):
    numbers = [Fraction(1)]
    for m in range(1, n + 1):
        numbers.append(-sum(comb(m + 1, k) * numbers[k] for k in range(m)) / (m + 1))
    return numbers


BERNOULLI = bernoulli(30)


def log_gamma(x):
    """Stirling's series, 50 digits, after the recurrence has raised the argument above 100."""
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


# d, E[cos], sd[cos], mean and sd of the angle in degrees, as published.
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
    """Integrate over the face x = 1 of a cube, seen from the origin; the other two are alike."""

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
    # Both moments are smooth in 1/d, so a parabola through d < 128 predicts those from 128 on.
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


@pytest.mark.parametrize("tau", [0.0, 0.1111, 0.612, 1.5, 4.0])
def test_ternary_forms_against_quadrature(tau):
    first = integrate.quad(lambda u: u * stats.norm.pdf(u), tau, np.inf)[0]
    share = integrate.quad(stats.norm.pdf, tau, np.inf)[0]
    expected = 2 * first / np.sqrt(2 * share)
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
