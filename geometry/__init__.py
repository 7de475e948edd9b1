"""The geometry of binarized vectors: what theory predicts, and how to measure it on a network.

Binarization turns a random vector of many dimensions by 37 degrees and keeps its dot products
almost proportional. Theory: `gaussian_angles`, `shape_angles`, `covariance` and `rotations`, with
`samples` to check it by sampling. Measurement: `units` on weights, `feature_maps` and `streaming`
on images and dot products that come in batches. Both rest on `vectors`: the angle, and the
quantizer θ. All angles are in radians.
"""

from .covariance import predicted_correlation, principal_axes, variance_spectrum, whitening
from .feature_maps import image_patches, split_border
from .gaussian_angles import (
    angle_density,
    angle_moments,
    binary_angle,
    cosine_moments,
    lloyd_max,
    optimal_ternary_threshold,
    quantizer_cosine,
    rate_distortion_angle,
    ternary_cosine,
    ternary_zero_fraction,
)
from .rotations import random_rotation, rotated_binarization
from .samples import (
    anisotropic_angles,
    binarization_angles,
    random_pair_angles,
    ternarization_angle,
)
from .shape_angles import NEAR, SPREAD_FACTOR, iid_cosine_sd, peaked_shape_angle, shape_angle
from .streaming import ColumnMoments, DotProductStatistics, PatchCovariance
from .units import (
    glorot_sd,
    near_threshold_share,
    saturated_share,
    scaling_exponent,
    unit_angles,
    unit_kurtosis,
)
from .vectors import angle, quantized

__all__ = [
    "NEAR",
    "SPREAD_FACTOR",
    "ColumnMoments",
    "DotProductStatistics",
    "PatchCovariance",
    "angle",
    "angle_density",
    "angle_moments",
    "anisotropic_angles",
    "binarization_angles",
    "binary_angle",
    "cosine_moments",
    "glorot_sd",
    "iid_cosine_sd",
    "image_patches",
    "lloyd_max",
    "near_threshold_share",
    "optimal_ternary_threshold",
    "peaked_shape_angle",
    "predicted_correlation",
    "principal_axes",
    "quantized",
    "quantizer_cosine",
    "random_pair_angles",
    "random_rotation",
    "rate_distortion_angle",
    "rotated_binarization",
    "saturated_share",
    "scaling_exponent",
    "shape_angle",
    "split_border",
    "ternarization_angle",
    "ternary_cosine",
    "ternary_zero_fraction",
    "unit_angles",
    "unit_kurtosis",
    "variance_spectrum",
    "whitening",
]
