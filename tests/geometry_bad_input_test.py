"""Every function refuses bad input with a ValueError of one line."""

import numpy as np
import pytest

import geometry

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
    "too many bins": (lambda: geometry.DotProductStatistics(1, bins=600), "512"),
    "empty extent": (lambda: geometry.DotProductStatistics(1, (0, 0, 0, 1)), "extent"),
    "short extent": (lambda: geometry.DotProductStatistics(1, (0, 1)), "extent"),
    "pairs of other shape": (lambda: geometry.DotProductStatistics(2).update(W, W[:3]), "paired"),
    "pairs of other units": (lambda: geometry.DotProductStatistics(3).update(W, W), "units"),
    "merging other bins": (
        lambda: geometry.DotProductStatistics(2).merge(geometry.DotProductStatistics(2, bins=9)),
        "merged",
    ),
    "negative border": (lambda: geometry.split_border(np.ones((1, 3, 3, 1)), -1), "width"),
    "border of a matrix": (lambda: geometry.split_border(W), "shape"),
    "patches of a matrix": (lambda: geometry.image_patches(W, 3), "shape"),
    "patch larger than image": (
        lambda: geometry.image_patches(np.ones((1, 2, 9, 1)), 3, "VALID"),
        "no patch",
    ),
    "unknown padding": (lambda: geometry.image_patches(np.ones((1, 4, 4, 1)), 3, "same"), "SAME"),
    "vectors of other length": (lambda: geometry.PatchCovariance(3).update(W), "3"),
    "rows of other length": (
        lambda: geometry.ColumnMoments().update(W).update(W[:, :1]),
        "number of columns",
    ),
    "rows that are a vector": (lambda: geometry.ColumnMoments().update([1, 2]), "matrix"),
    "mean of nothing": (lambda: geometry.ColumnMoments().mean, "no rows"),
    "variance of nothing": (lambda: geometry.ColumnMoments().variance, "no rows"),
    "quantizer of negative threshold": (lambda: geometry.quantized(W, -1), "threshold"),
    "covariance of nothing": (lambda: geometry.PatchCovariance(3).covariance, "no patches"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_in_one_line(case):
    call, reason = BAD[case]
    with pytest.raises(ValueError, match=reason) as error:
        call()
    assert "\n" not in str(error.value)
