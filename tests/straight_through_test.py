"""Quantizers against NumPy: values, gradients, levels, and how they are saved."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from oracles import gradient, numpy_sign, numpy_ternary
from scipy import stats

import geometry
import graph_ops
import straight_through
from straight_through import Clip, LloydMax, Registered, Sign, Ternary, Uniform, get_quantizer

BELOW, ABOVE = (np.nextafter(np.float32(1), np.float32(to)) for to in (0, 2))
EDGES = np.array(
    [-2, -ABOVE, -1, -BELOW, -0.5, -0.0, 0, 1e-30, 0.5, BELOW, 1, ABOVE, 2], np.float32
)
NORMAL = np.random.default_rng(0).standard_normal((300, 8)).astype(np.float32)


@straight_through.register_quantizer("half_sign", activations="binary")
def half_sign(x, threshold=0.0):
    return straight_through.straight_through(x, straight_through.ternarize(x, threshold) / 2)


# --- Functions --------------------------------------------------------------------------------


def test_binarize_takes_zero_to_plus_one():
    np.testing.assert_array_equal(straight_through.binarize(EDGES), numpy_sign(EDGES))


def test_ternarize_keeps_the_open_band_at_zero():
    x = np.array([-0.5, -0.02, -0.019, 0, 0.02, 0.021], np.float32)
    ternary = straight_through.ternarize(x, np.float32(0.02))
    np.testing.assert_array_equal(ternary, [-1, 0, 0, 0, 0, 1])


@pytest.mark.parametrize(
    "function",
    [
        straight_through.binarize,
        lambda x: straight_through.ternarize(x, 0.3),
        straight_through.clip,
    ],
    ids=["binary", "ternary", "clip"],
)
def test_gradient_passes_up_to_and_including_one(function):
    upstream = np.arange(1, len(EDGES) + 1, dtype=np.float32)
    expected = np.where(np.abs(EDGES) <= 1, upstream, 0)
    np.testing.assert_array_equal(gradient(function, EDGES, upstream), expected)


def test_gradients_keep_bfloat16():
    x = tf.constant(EDGES, tf.bfloat16)
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = straight_through.binarize(x)
    assert y.dtype == tape.gradient(y, x).dtype == tf.bfloat16


@pytest.mark.parametrize("quantizer", ["ternary", Ternary(0.4)])
def test_quantizer_curve_shows_both_functions(quantizer):
    forward, slope = straight_through.quantizer_curve(quantizer, EDGES, 0.4)
    np.testing.assert_array_equal(forward, numpy_ternary(EDGES, 0.4))
    np.testing.assert_array_equal(slope, np.abs(EDGES) <= 1)


# --- Quantizers -------------------------------------------------------------------------------


def numpy_uniform(x, bits, scale):
    steps = np.float32(2 ** (bits - 1) - 1)
    scale = np.float32(scale)
    return np.clip(np.rint(x / scale * steps), -steps, steps) * (scale / steps)


def numpy_lloyd_max(x, levels, scale):
    """Lloyd's algorithm on the Gaussian density, from even quantiles on."""
    values = stats.norm.ppf((np.arange(levels) + 0.5) / levels)
    for _ in range(3000):
        ends = np.r_[-np.inf, (values[1:] + values[:-1]) / 2, np.inf]
        values = -np.diff(stats.norm.pdf(ends)) / np.diff(stats.norm.cdf(ends))
    return values[np.searchsorted(ends[1:-1], x / scale)] * scale


LARGEST = np.abs(NORMAL).max(axis=0)
RMS = np.sqrt(np.mean(np.float64(NORMAL) ** 2, axis=0))
# What each makes of NORMAL, how many values it has and up to where its gradient passes.
QUANTIZERS = {
    "sign": (Sign(), numpy_sign(NORMAL), 2, 1),
    "ternary": (Ternary(), numpy_ternary(NORMAL, 0.02), 3, 1),
    "ternary 0.5": (Ternary(0.5), numpy_ternary(NORMAL, 0.5), 3, 1),
    "ternary 0": (Ternary(0), numpy_ternary(NORMAL, 0), 3, 1),
    "ternary sigma": (Ternary(sigma=0.612), numpy_ternary(NORMAL, 0.612 * NORMAL.std()), 3, 1),
    "clip": (Clip(), np.clip(NORMAL, -1, 1), None, 1),
    "registered": (Registered("half_sign", 0.3), numpy_ternary(NORMAL, 0.3) / 2, None, 1),
    "uniform 2": (Uniform(2), numpy_uniform(NORMAL, 2, LARGEST), 3, LARGEST),
    "uniform 5": (Uniform(5), numpy_uniform(NORMAL, 5, LARGEST), 31, LARGEST),
    "uniform whole": (
        Uniform(4, per_unit=False),
        numpy_uniform(NORMAL, 4, LARGEST.max()),
        15,
        LARGEST.max(),
    ),
    "uniform fixed": (Uniform(4, scale=1.5), numpy_uniform(NORMAL, 4, 1.5), 15, 1.5),
    "lloyd-max 2": (LloydMax(2), numpy_lloyd_max(NORMAL, 2, RMS), 2, 1),
    "lloyd-max 3": (LloydMax(3), numpy_lloyd_max(NORMAL, 3, RMS), 3, 1.224 * RMS),
    "lloyd-max 8": (LloydMax(8), numpy_lloyd_max(NORMAL, 8, RMS), 8, 2.152 * RMS),
    "lloyd-max fixed": (LloydMax(4, scale=0.5), numpy_lloyd_max(NORMAL, 4, 0.5), 4, 1),
}


@pytest.mark.parametrize("name", QUANTIZERS)
def test_a_quantizer_does_what_numpy_does(name):
    quantizer, expected, levels, limit = QUANTIZERS[name]
    values = quantizer(NORMAL)
    assert values.dtype == tf.float32
    np.testing.assert_allclose(values, expected, rtol=1e-5, atol=1e-6)
    assert quantizer.levels == levels
    if levels is not None:
        each = [len(np.unique(np.round(column, 5))) for column in np.transpose(values)]
        assert max(each) <= levels <= 2**quantizer.bits
    # Beside the limit itself, which rounds.
    inside, outside = (np.abs(NORMAL) <= limit * factor for factor in (1 - 1e-3, 1 + 1e-3))
    passed = gradient(quantizer, NORMAL, np.full_like(NORMAL, 2))
    assert np.all(passed[inside] == 2)
    assert np.all(passed[~outside] == 0)
    half = tf.cast(NORMAL, tf.bfloat16)
    assert quantizer(half).dtype == tf.bfloat16


@pytest.mark.parametrize("name", QUANTIZERS)
def test_a_quantizer_is_saved_and_is_equal_to_its_like(name):
    quantizer = QUANTIZERS[name][0]
    again = type(quantizer).from_config(quantizer.get_config())
    opened = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(quantizer))
    assert quantizer == again == opened
    assert hash(quantizer) == hash(again)
    np.testing.assert_array_equal(again(NORMAL), quantizer(NORMAL))
    others = [other for key, (other, *_) in QUANTIZERS.items() if key != name]
    assert all(quantizer != other for other in others)


@pytest.mark.parametrize("name", QUANTIZERS)
def test_keras_saves_a_layer_with_its_quantizer(name, tmp_path):
    quantizer = QUANTIZERS[name][0]
    inputs = None if quantizer.follows_data else quantizer
    model = keras.Sequential(
        [keras.Input((6,)), graph_ops.QuantDense(5, inputs, kernel_quantizer=quantizer)]
    )
    model.save(tmp_path / "model.keras")
    opened = keras.models.load_model(tmp_path / "model.keras")
    assert opened.layers[0].kernel_quantizer == quantizer
    assert opened.layers[0].input_quantizer == inputs
    np.testing.assert_array_equal(opened(NORMAL[:, :6]), model(NORMAL[:, :6]))


def test_two_levels_make_the_angle_of_the_sign():
    w = np.random.default_rng(1).standard_normal((100_000, 1)).astype(np.float32)
    angles = [geometry.unit_angles(w, quantizer(w).numpy()) for quantizer in (LloydMax(2), Sign())]
    assert angles[0] == pytest.approx(angles[1], abs=1e-6)
    assert angles[0] == pytest.approx(np.arccos(np.sqrt(2 / np.pi)), abs=5e-3)


@pytest.mark.parametrize("levels", [2, 3, 4, 5, 17, 256])
def test_lloyd_max_is_odd_and_takes_zero_up(levels):
    quantizer = LloydMax(levels, scale=1.0)
    np.testing.assert_array_equal(quantizer(-NORMAL), -quantizer(NORMAL))
    zero = float(quantizer(np.zeros(1, np.float32))[0])
    assert zero == 0 if levels % 2 else zero > 0


@pytest.mark.parametrize("quantizer", [Uniform(4), LloydMax(3), LloydMax(4)])
def test_units_of_nothing_but_zeros_stay_finite(quantizer):
    values = quantizer(np.zeros((5, 2), np.float32)).numpy()
    assert np.isfinite(values).all()


def test_thresholds_are_where_a_quantizer_leaves_zero():
    for quantizer in (
        *(Ternary(0.5), Ternary(sigma=0.6), LloydMax(3, scale=0.7), LloydMax(5, 2)),
        *(Uniform(2, scale=1.0), Uniform(4, scale=3.0)),
    ):
        threshold = float(quantizer.threshold(tf.constant(NORMAL)))
        zero, beyond = threshold * 0.999, threshold * 1.001
        # Among the others, of which the standard deviation is taken.
        x = np.concatenate([NORMAL.ravel(), np.float32([zero, beyond])])[:, None]
        values = quantizer(x).numpy()[-2:, 0]
        assert values[0] == 0 < values[1]
    assert Sign().threshold(NORMAL) == LloydMax(2).threshold(NORMAL) == 0
    # A unit each, also of an array.
    x = np.float32([[0.1, 2.0], [1.0, -4.0]])
    np.testing.assert_allclose(Uniform(3).threshold(x), [[1 / 6, 4 / 6]])
    assert LloydMax(3).threshold(x).shape == (1, 2)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Ternary(-0.1), "threshold must be a number of at least 0, not -0.1"),
        (lambda: Ternary(float("nan")), "threshold must be a number of at least 0, not nan"),
        (lambda: Ternary(sigma=float("inf")), "sigma must be a number of at least 0"),
        (lambda: Ternary(0.1, sigma=0.6), "exclude each other"),
        (lambda: Uniform(1), "bits must be a whole number from 2 to 16, not 1"),
        (lambda: Uniform(17), "bits must be a whole number"),
        (lambda: Uniform(2.5), "bits must be a whole number"),
        (lambda: Uniform(4, scale=0), "scale must be a number above 0, not 0"),
        (lambda: LloydMax(1), "levels must be a whole number from 2 to 256, not 1"),
        (lambda: LloydMax(257), "levels must be a whole number"),
        (lambda: LloydMax(2, scale=-1.0), "scale must be a number above 0"),
        (lambda: Registered("no such"), "no quantizer named 'no such'; known are binary"),
        (lambda: get_quantizer("no such"), "no quantizer named 'no such'"),
        (lambda: get_quantizer(3), "a quantizer is Sign.*not 3"),
        (lambda: straight_through.register_quantizer("sign"), "a quantizer 'sign' already"),
        (lambda: straight_through.register_quantizer("half_sign"), "already"),
        (
            lambda: straight_through.register_quantizer("new", activations="no such"),
            "no quantizer named 'no such'",
        ),
    ],
)
def test_bad_parameters_are_refused_in_one_line(make, message):
    with pytest.raises(ValueError, match=message) as refusal:
        make()
    assert "\n" not in str(refusal.value)


# --- By name ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("identifier", "thresholds", "expected"),
    [
        ("binary", {}, Sign()),
        ("sign", {"threshold": 0.0}, Sign()),
        ("clip", {}, Clip()),
        ("ternary", {}, Ternary(0.02)),
        ("ternary", {"threshold": 0.0}, Ternary(0)),
        ("ternary", {"sigma": 0.6}, Ternary(sigma=0.6)),
        ("half_sign", {"threshold": 0.3}, Registered("half_sign", 0.3)),
        (Uniform(4), {}, Uniform(4)),
        (None, {}, None),
    ],
)
def test_quantizers_have_names(identifier, thresholds, expected):
    assert get_quantizer(identifier, **thresholds) == expected


def test_a_registered_quantizer_names_that_of_the_activations():
    assert straight_through.activation_quantizer_of("half_sign") == "binary"
    assert straight_through.activation_quantizer_of("ternary") == "ternary"
