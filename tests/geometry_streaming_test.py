"""Statistics of batches against NumPy on the whole, however the data are split."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import geometry

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
    # In float32 a value very close to an edge may be counted on the other side of it.
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


def test_column_moments_are_numpys_however_split():
    rows = np.random.default_rng(0).normal(1e3, [1, 5, 0], (400, 3))
    for cuts in ([], [1, 7, 7, 300]):
        moments = geometry.ColumnMoments()
        for part in np.split(rows, cuts):
            assert moments.update(part) is moments
        assert moments.count == 400
        np.testing.assert_allclose(moments.mean, rows.mean(axis=0), rtol=1e-14)
        np.testing.assert_allclose(moments.variance, rows.var(axis=0), rtol=1e-12)
