"""Gradient masks, layer order, padding and the pipeline, against independent NumPy."""

import keras
import ml_dtypes
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import example, given, settings
from hypothesis import strategies as st

import graph_ops

BELOW, ABOVE = (np.nextafter(np.float32(1), np.float32(to)) for to in (0, 2))
EDGES = np.array(
    [-2, -ABOVE, -1, -BELOW, -0.5, -0.0, 0, 1e-30, 0.5, BELOW, 1, ABOVE, 2], np.float32
)


def gradient(function, x, upstream):
    x = tf.constant(x)
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = function(x)
    return tape.gradient(y, x, output_gradients=tf.constant(upstream)).numpy()


def test_binarize_takes_zero_to_plus_one():
    values = graph_ops.binarize(EDGES).numpy()
    np.testing.assert_array_equal(values, np.where(EDGES >= 0, 1, -1))


def test_ternarize_keeps_the_open_band_at_zero():
    x = np.array([-0.5, -0.02, -0.019, 0, 0.02, 0.021], np.float32)
    threshold = np.float32(0.02)
    np.testing.assert_array_equal(graph_ops.ternarize(x, threshold), [-1, 0, 0, 0, 0, 1])


@pytest.mark.parametrize(
    "function",
    [
        graph_ops.binarize,
        lambda x: graph_ops.ternarize(x, 0.3),
        graph_ops.clip,
    ],
    ids=["binary", "ternary", "clip"],
)
def test_gradient_passes_up_to_and_including_one(function):
    upstream = np.arange(1, len(EDGES) + 1, dtype=np.float32)
    expected = np.where(np.abs(EDGES) <= 1, upstream, 0)
    np.testing.assert_array_equal(gradient(function, EDGES, upstream), expected)


def test_quantizer_curve_shows_both_functions():
    forward, gradient = graph_ops.quantizer_curve("ternary", EDGES, 0.4)
    np.testing.assert_array_equal(forward, np.sign(EDGES) * (np.abs(EDGES) > 0.4))
    np.testing.assert_array_equal(gradient, np.abs(EDGES) <= 1)


def test_gradients_keep_bfloat16():
    x = tf.constant(EDGES, tf.bfloat16)
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = graph_ops.binarize(x)
    assert y.dtype == tape.gradient(y, x).dtype == tf.bfloat16


def test_no_gradient_flows_through_the_sigma_threshold():
    layer = graph_ops.BinaryDense(
        4, weight_quantizer="ternary", activation_quantizer=None, threshold_sigma=0.6
    )
    layer.build((None, 6))
    with tf.GradientTape() as tape:
        total = tf.reduce_sum(layer.quantized_kernel())
    # All latent weights start well inside [−1, 1], so each passes exactly the upstream 1.
    np.testing.assert_array_equal(tape.gradient(total, layer.latent_kernel.value), np.ones((6, 4)))


def test_sigma_threshold_follows_the_latent_weights():
    layer = graph_ops.BinaryDense(64, weight_quantizer="ternary", threshold_sigma=0.612)
    layer.build((None, 256))
    normal = np.random.default_rng(0).standard_normal((256, 64)).astype(np.float32)
    for scale in (0.01, 0.1):
        layer.latent_kernel.assign(scale * normal)
        zeros = np.mean(layer.quantized_kernel().numpy() == 0)
        assert zeros == pytest.approx(np.mean(np.abs(normal) <= 0.612 * normal.std()), abs=1e-3)


@pytest.mark.parametrize(
    ("thresholds", "activations"),
    [
        ({"threshold": 0.2}, 0.2),
        ({"threshold_sigma": 0.2}, 0.2),
        ({"threshold": 0.2, "activation_threshold": 0.5}, 0.5),
        ({"threshold_sigma": 0.2, "activation_threshold": 0.0}, 0.0),
    ],
)
def test_activations_have_the_weights_threshold_unless_given_another(thresholds, activations):
    both = {"weight_quantizer": "ternary", "activation_quantizer": "ternary"}
    layer = graph_ops.BinaryDense(8, **both, **thresholds)
    layer.build((None, 16))
    layer.latent_kernel.assign(np.linspace(-1, 1, 128, dtype=np.float32).reshape(16, 8))
    values = np.linspace(-1, 1, 41, dtype=np.float32)
    expected = np.sign(values) * (np.abs(values) > activations)
    np.testing.assert_array_equal(layer.quantized_output(tf.constant(values)), expected)
    latent = layer.latent_kernel.numpy()
    scale = latent.std() if "threshold_sigma" in thresholds else 1
    expected = np.sign(latent) * (np.abs(latent) > 0.2 * scale)
    np.testing.assert_array_equal(layer.quantized_kernel(), expected)


def numpy_convolution(x, kernel):
    """Correlation of NHWC images with an HWIO kernel under SAME zero padding, tap by tap."""
    size = kernel.shape[0]
    before = (size - 1) // 2
    padded = np.pad(x, ((0, 0), (before, size - 1 - before), (before, size - 1 - before), (0, 0)))
    _, height, width, _ = x.shape
    return sum(
        padded[:, i : i + height, j : j + width] @ kernel[i, j]
        for i in range(size)
        for j in range(size)
    )


def numpy_pool(x):
    n, height, width, channels = x.shape
    pad = ((0, 0), (0, height % 2), (0, width % 2), (0, 0))
    x = np.pad(x, pad, constant_values=-np.inf)
    return x.reshape(n, x.shape[1] // 2, 2, x.shape[2] // 2, 2, channels).max((2, 4))


@pytest.mark.parametrize("shape", [(5, 7), (6, 6), (1, 3)])
@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_convolution_pads_with_zeros_and_pooling_rounds_up(shape, size):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, *shape, 3)).astype(np.float32)
    layer = graph_ops.BinaryConv2D(4, size, pool=True)
    layer.build(x.shape)
    layer.batch_norm.moving_mean.assign(rng.standard_normal(4))
    layer.batch_norm.moving_variance.assign(rng.uniform(0.5, 2, 4))
    layer.batch_norm.beta.assign(rng.standard_normal(4))
    products = numpy_convolution(x, np.where(layer.latent_kernel.numpy() >= 0, 1, -1))
    mean, variance, beta = (
        v.numpy()
        for v in (
            layer.batch_norm.moving_mean,
            layer.batch_norm.moving_variance,
            layer.batch_norm.beta,
        )
    )
    expected = (numpy_pool(products) - mean) / np.sqrt(variance + 1e-3) + beta
    np.testing.assert_allclose(layer.pre_activation(x), expected, rtol=1e-4, atol=1e-4)
    assert layer.compute_output_shape(x.shape) == expected.shape


def test_pooling_comes_before_batch_norm_in_training():
    rng = np.random.default_rng(1)
    x = rng.standard_normal((4, 6, 6, 2)).astype(np.float32)
    layer = graph_ops.BinaryConv2D(3, pool=True, activation_quantizer=None)
    layer.build(x.shape)
    out = layer(x, training=True).numpy()
    pooled = numpy_pool(numpy_convolution(x, np.where(layer.latent_kernel.numpy() >= 0, 1, -1)))
    mean, variance = pooled.mean((0, 1, 2)), pooled.var((0, 1, 2))
    np.testing.assert_allclose(
        out, (pooled - mean) / np.sqrt(variance + 1e-3), rtol=1e-3, atol=1e-4
    )
    # The moving averages start at 0 and 1 and follow the batch's mean and biased variance.
    np.testing.assert_allclose(layer.batch_norm.moving_mean, 0.01 * mean, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(
        layer.batch_norm.moving_variance, 0.99 + 0.01 * variance, rtol=1e-3, atol=1e-5
    )


def test_batch_norm_gradient_is_that_of_keras():
    rng = np.random.default_rng(2)
    x, upstream = rng.standard_normal((2, 8, 5)).astype(np.float32)
    ours, theirs = (
        graph_ops.ShiftBatchNormalization(),
        keras.layers.BatchNormalization(scale=False),
    )
    for layer in (ours, theirs):
        layer.build(x.shape)
    got, expected = (
        gradient(lambda x, layer=layer: layer(x, training=True), x, upstream)
        for layer in (ours, theirs)
    )
    np.testing.assert_allclose(got, expected, atol=1e-5)


def test_uint8_means_two_x_over_255_minus_one():
    rng = np.random.default_rng(3)
    x = rng.integers(0, 256, (3, 5, 5, 2), dtype=np.uint8)
    layer = graph_ops.BinaryConv2D(4, activation_quantizer=None)
    layer.build(x.shape)
    scaled = (2 * x.astype(np.float32) - 255) / 255
    np.testing.assert_allclose(layer(x), layer(scaled), rtol=1e-5, atol=1e-5)
    products = layer.dot_products(x, layer.quantized_kernel()).numpy() * 255
    np.testing.assert_allclose(products, np.rint(products), atol=1e-3)


def test_inference_is_float32_under_mixed_precision():
    layer = graph_ops.BinaryDense(8, dtype="mixed_bfloat16")
    x = np.random.default_rng(4).standard_normal((5, 16)).astype(np.float32)
    assert layer(x, training=False).dtype == tf.float32
    twin = graph_ops.BinaryDense(8)
    twin.build(x.shape)
    twin.set_weights(layer.get_weights())
    np.testing.assert_array_equal(layer.pre_activation(x), twin.pre_activation(x))
    assert layer.latent_kernel.dtype == layer.batch_norm.moving_mean.dtype == "float32"


def test_layers_work_in_any_keras_model(tmp_path):
    model = keras.Sequential(
        [
            keras.layers.Input((8, 8, 1)),
            graph_ops.BinaryConv2D(4, pool=True),
            keras.layers.Flatten(),
            graph_ops.BinaryDense(3, weight_quantizer="ternary", threshold=0.05),
            keras.layers.Dense(2),
        ]
    )
    model.compile("adam", "mse")
    x, y = np.random.default_rng(5).standard_normal((2, 16, 8, 8, 1)).astype(np.float32)
    model.fit(x, y[:, :2, 0, 0], verbose=0)
    model.save(tmp_path / "model.keras")
    opened = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(opened.predict(x, verbose=0), model.predict(x, verbose=0))


def test_latent_weights_are_clipped_after_each_step():
    layer = graph_ops.BinaryDense(3, activation_quantizer=None)
    model = keras.Sequential([keras.layers.Input((4,)), layer])
    model.compile(keras.optimizers.SGD(100.0), "mse")
    layer.latent_kernel.assign(np.full((4, 3), 0.9))
    x = np.random.default_rng(6).standard_normal((8, 4)).astype(np.float32)
    model.fit(x, np.eye(3)[np.arange(8) % 3], verbose=0)
    assert np.abs(layer.latent_kernel.numpy()).max() == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weight_quantizer": "no such"}, "no quantizer named 'no such'"),
        ({"activation_quantizer": "no such"}, "no quantizer named 'no such'"),
        ({"threshold": -1.0}, "threshold must be"),
        ({"threshold": float("nan")}, "threshold must be"),
        ({"threshold": 0.1, "threshold_sigma": 0.6}, "exclude each other"),
        ({"activation_threshold": -0.1}, "activation_threshold must be"),
    ],
)
def test_layers_refuse_what_they_cannot_do(options, message):
    with pytest.raises(ValueError, match=message):
        graph_ops.BinaryDense(3, **options)


def test_squared_hinge_against_numpy():
    rng = np.random.default_rng(7)
    scores, labels = rng.normal(size=(6, 4)).astype(np.float32) * 2, np.array([0, 1, 2, 3, 3, 0])
    targets = np.full((6, 4), -1.0)
    targets[np.arange(6), labels] = 1
    expected = np.mean(np.maximum(0, 1 - targets * scores) ** 2, axis=1)
    np.testing.assert_allclose(graph_ops.squared_hinge(labels, scores), expected, rtol=1e-6)
    np.testing.assert_allclose(
        graph_ops.squared_hinge(labels[:, None], scores), expected, rtol=1e-6
    )


def test_softmax_loss_is_finite_for_scores_far_apart():
    loss = graph_ops.loss_named("softmax")
    scores = tf.constant([[1000.0, -1000.0], [-1000.0, 1000.0]])
    assert float(loss(tf.constant([0, 0]), scores)) == pytest.approx(1000.0)


def batches(**options):
    x = np.arange(10, dtype=np.uint8).reshape(10, 1, 1, 1)
    pairs = graph_ops.training_batches(x, np.arange(10), 3, **options).as_numpy_iterator()
    return [(images.ravel().tolist(), labels.tolist()) for images, labels in pairs]


def test_every_epoch_is_a_permutation_of_its_own():
    got = batches(seed=1, epochs=4)
    assert len(got) == 4 * (10 // 3)
    assert all(images == labels for images, labels in got)
    epochs = np.reshape([images for images, _ in got], (4, 9)).tolist()
    assert all(len(set(epoch)) == 9 for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4


def test_order_depends_on_seed_and_epoch_alone():
    assert batches(seed=1, epochs=4) == batches(seed=1, epochs=4)
    assert batches(seed=1, epochs=4)[6:] == batches(seed=1, epochs=4, initial_epoch=2)
    assert batches(seed=1, epochs=4) != batches(seed=2, epochs=4)


def shifted(image, down, right):
    margin = graph_ops.LARGEST_SHIFT
    padded = np.pad(image, ((margin, margin), (margin, margin), (0, 0)), "reflect")
    return padded[down : down + image.shape[0], right : right + image.shape[1]]


@pytest.mark.parametrize("kind, variants", [("flip", 2), ("crop-flip", 2 * 9 * 9)])
def test_augmented_images_are_mirrored_or_shifted_and_every_way_occurs(kind, variants):
    image = np.random.default_rng(0).integers(0, 256, (12, 11, 3)).astype(np.uint8)
    expected = [image, image[:, ::-1]]
    if kind == "crop-flip":
        expected = [shifted(v, i, j) for v in expected for i in range(9) for j in range(9)]
    place = {variant.tobytes(): index for index, variant in enumerate(expected)}
    assert len(place) == variants
    many = graph_ops.augmented(np.repeat(image[None], 3000, 0), kind, [1, 2]).numpy()
    counts = np.bincount([place[one.tobytes()] for one in many], minlength=variants)
    # Uniform: chi squared of `variants` cells, five standard deviations above its mean.
    mean = len(many) / variants
    degrees = variants - 1
    assert np.sum((counts - mean) ** 2 / mean) < degrees + 5 * np.sqrt(2 * degrees)


def test_augmentation_is_the_same_after_a_resume_and_another_in_every_epoch():
    x = np.random.default_rng(0).integers(0, 256, (20, 6, 6, 1)).astype(np.uint8)
    options = {"batch_size": 5, "seed": 3, "epochs": 3, "augment": "crop-flip"}
    labels = np.arange(20)
    whole = [b for b, _ in graph_ops.training_batches(x, labels, **options).as_numpy_iterator()]
    resumed = graph_ops.training_batches(x, labels, **options, initial_epoch=2)
    for (batch, _), expected in zip(resumed.as_numpy_iterator(), whole[8:], strict=True):
        np.testing.assert_array_equal(batch, expected)
    epochs = [np.sort(np.concatenate(whole[i : i + 4]).sum((1, 2, 3))) for i in (0, 4, 8)]
    assert not np.array_equal(epochs[0], epochs[1])
    assert not np.array_equal(epochs[1], epochs[2])


def test_latent_adam_is_keras_adam_on_clipped_gradients():
    rng = np.random.default_rng(0)
    # From gradients that ε drowns to gradients that are clipped.
    scales = 10.0 ** rng.integers(-9, 2, (50, 40))
    gradients = [(rng.standard_normal((50, 40)) * scales).astype(np.float32) for _ in range(20)]
    ends = []
    for optimizer in (
        keras.optimizers.Adam(0.01, beta_2=0.99, clipvalue=0.5),
        graph_ops.LatentAdam(0.01, 0.5),
    ):
        variable = keras.Variable(np.zeros((50, 40), np.float32))
        for value in gradients:
            optimizer.apply([tf.constant(value)], [variable])
        ends.append(variable.numpy())
    assert np.abs(ends[0]).min() > 0
    np.testing.assert_allclose(ends[1], ends[0], rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_filters_see_the_same_images_side_by_side(size):
    rng = np.random.default_rng(size)
    # Small whole numbers: every sum is exact in bfloat16's float32 accumulators.
    images = rng.integers(-1, 2, (13, 3, 6, 4)).astype(np.float32)
    upstream = rng.integers(-1, 2, (13, 3, 6, 2)).astype(np.float32)
    found = []
    for dtype in (tf.float32, tf.bfloat16):
        with tf.GradientTape() as tape:
            kernel = tf.zeros((size, size, 4, 2), dtype)
            tape.watch(kernel)
            products = graph_ops.convolve(tf.constant(images, dtype), kernel)
        found.append(tape.gradient(products, kernel, tf.constant(upstream, dtype)).numpy())
    assert np.abs(found[0]).max() > 5
    np.testing.assert_array_equal(*found)


def gradients_of(convolve, *tensors):
    """Gradients of convolve(images, kernel), for images, kernel and upstream gradient."""
    images, kernel, upstream = map(tf.constant, tensors)
    with tf.GradientTape() as tape:
        tape.watch([images, kernel])
        products = convolve(images, kernel)
    return [g.numpy() for g in tape.gradient(products, [images, kernel], upstream)]


def relative_error(found, expected):
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)


@pytest.mark.parametrize(
    ("rows", "columns", "channels", "filters"),
    [(8, 8, 40, 24), (5, 7, 32, 3), (1, 1, 33, 5), (14, 2, 32, 32), (32, 32, 64, 32)],
)
def test_winograd_gradients_are_those_of_the_convolution(rows, columns, channels, filters):
    rng = np.random.default_rng(rows)
    shapes = [(3, rows, columns, channels), (3, 3, channels, filters), (3, rows, columns, filters)]
    exact = [rng.standard_normal(shape) for shape in shapes]
    expected = gradients_of(lambda *tensors: tf.nn.conv2d(*tensors, 1, "SAME"), *exact)
    found = graph_ops.winograd_gradients(*[tf.constant(t, tf.float32) for t in exact])
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.shape == theirs.shape
        assert relative_error(ours.numpy(), theirs) < 1e-5


@pytest.mark.parametrize(
    ("size", "channels", "dtype", "used"),
    [
        (3, 32, "float32", True),
        (3, 31, "float32", False),
        (5, 32, "float32", False),
        (1, 32, "float32", False),
        (3, 32, "bfloat16", False),
    ],
)
def test_winograd_is_for_float32_filters_of_3_by_3_with_many_channels(
    size, channels, dtype, used, monkeypatch
):
    asked, winograd = [], graph_ops.winograd_gradients
    monkeypatch.setattr(
        graph_ops, "winograd_gradients", lambda *args: asked.append(args) or winograd(*args)
    )
    rng = np.random.default_rng(0)
    # Whole numbers small enough for bfloat16.
    images, kernel, upstream = (
        rng.integers(-1, 2, shape).astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
        for shape in ((2, 6, 6, channels), (size, size, channels, 2), (2, 6, 6, 2))
    )
    found = gradients_of(graph_ops.convolve, images, kernel, upstream)
    assert bool(asked) == used
    exact = [t.astype(np.float64) for t in (images, kernel, upstream)]
    expected = gradients_of(lambda *tensors: tf.nn.conv2d(*tensors, 1, "SAME"), *exact)
    for ours, theirs in zip(found, expected, strict=True):
        assert relative_error(ours.astype(np.float64), theirs) < 1e-5


def test_images_of_unknown_size_have_gradients_too():
    @tf.function(input_signature=[tf.TensorSpec((None, None, None, 32))])
    def gradient(images):
        return tf.gradients(graph_ops.convolve(images, tf.ones((3, 3, 32, 2))), images)[0]

    np.testing.assert_array_equal(
        gradient(tf.zeros((1, 3, 3, 32)))[0, :, :, 0], [[8, 12, 8], [12, 18, 12], [8, 12, 8]]
    )


# --- Precision --------------------------------------------------------------------------------

AMX = "amx_bf16 avx512_bf16 amx_tile"


def cpuinfo(tmp_path, flags, level=32):
    path = tmp_path / "cpuinfo"
    path.write_text(f"processor\t: 0\ncpuid level\t: {level}\nflags\t\t: fpu {flags}\n\n")
    return path


@pytest.mark.parametrize(
    ("flags", "level", "signs"),
    [
        (AMX, 32, "fast"),
        (AMX, 28, "doubtful"),
        ("avx512_bf16", 28, "doubtful"),
        ("avx2", 13, "none"),
    ],
)
def test_what_the_feature_bits_say(flags, level, signs, tmp_path):
    assert graph_ops.bfloat16_signs(cpuinfo(tmp_path, flags, level)) == signs


def test_without_cpuinfo_the_signs_are_doubtful(tmp_path):
    assert graph_ops.bfloat16_signs(tmp_path / "missing") == "doubtful"


@pytest.mark.parametrize(
    ("wanted", "flags", "level", "speedup", "policy"),
    [
        ("auto", AMX, 32, None, "mixed_bfloat16"),
        ("auto", "avx2", 13, None, "float32"),
        ("auto", AMX, 28, 0.0, "float32"),
        ("auto", AMX, 28, 3.0, "mixed_bfloat16"),
        ("auto", "avx512_bf16", 28, 1.1, "float32"),
        ("mixed_bfloat16", AMX, 28, 0.7, "mixed_bfloat16"),
        ("float32", AMX, 32, None, "float32"),
    ],
)
def test_precision_follows_signs_and_trial(
    wanted, flags, level, speedup, policy, tmp_path, monkeypatch
):
    def trial():
        assert speedup is not None, "no trial was due"
        return speedup

    monkeypatch.setattr(graph_ops, "bfloat16_speedup", trial)
    monkeypatch.setattr(graph_ops, "gpu_has_bfloat16", lambda: False)
    chosen, why = graph_ops.choose_precision(wanted, cpuinfo(tmp_path, flags, level))
    assert chosen == policy
    assert why


def test_a_killed_trial_refuses_bfloat16(tmp_path, monkeypatch):
    monkeypatch.setattr(graph_ops, "gpu_has_bfloat16", lambda: False)
    monkeypatch.setattr(
        graph_ops, "_TRIAL", "import os, signal; os.kill(os.getpid(), signal.SIGILL)"
    )
    with pytest.raises(ValueError, match="kills TensorFlow on this machine"):
        graph_ops.choose_precision("mixed_bfloat16", cpuinfo(tmp_path, AMX, 28))
    assert graph_ops.choose_precision("auto", cpuinfo(tmp_path, AMX, 28))[0] == "float32"


def cosine(a, b):
    a, b = np.ravel(a).astype(np.float64), np.ravel(b).astype(np.float64)
    return a @ b / np.sqrt((a @ a) * (b @ b))


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (lambda dtype: graph_ops.BinaryConv2D(64, dtype=dtype), (4, 16, 16, 64)),
        (lambda dtype: graph_ops.BinaryConv2D(64, pool=True, dtype=dtype), (4, 8, 8, 64)),
        # Side by side: more than a row of images, and a kernel that wants wider gaps.
        (lambda dtype: graph_ops.BinaryConv2D(32, 5, dtype=dtype), (13, 7, 6, 16)),
        (lambda dtype: graph_ops.BinaryDense(128, dtype=dtype), (64, 512)),
    ],
    ids=["conv", "conv and pool", "narrow conv", "dense"],
)
def test_one_layers_gradients_in_bfloat16_are_those_in_float32(layer, shape, runs_bfloat16):
    rng = np.random.default_rng(8)
    x = rng.choice([-1.0, 1.0], shape).astype(np.float32)
    gradients, latent, upstream = [], None, None
    for dtype in ("float32", "mixed_bfloat16"):
        made = layer(dtype)
        made.build(shape)
        latent = made.latent_kernel.numpy() if latent is None else latent
        made.latent_kernel.assign(latent)
        inputs = tf.constant(x, made.compute_dtype)
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            # Before the quantizer: which activations rounding moves across ±1 is not at issue.
            out = made.pre_activation(inputs, training=True)
        upstream = rng.standard_normal(out.shape) if upstream is None else upstream
        assert out.dtype == made.compute_dtype
        gradients.append(
            tape.gradient(
                out,
                [made.latent_kernel.value, inputs],
                output_gradients=tf.constant(upstream, out.dtype),
            )
        )
    for exact, rounded in zip(*gradients, strict=True):
        assert cosine(exact, tf.cast(rounded, tf.float32)) >= 0.995


def test_products_with_pixels_in_bfloat16_are_those_in_float32(runs_bfloat16):
    x = tf.constant(np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), np.uint8))
    products = []
    for dtype in ("float32", "mixed_bfloat16"):
        initializer = keras.initializers.GlorotUniform(1)
        layer = graph_ops.BinaryConv2D(64, kernel_initializer=initializer, dtype=dtype)
        layer.build(x.shape)
        products.append(tf.cast(layer.pooled_products(x, training=True), tf.float32).numpy())
    np.testing.assert_allclose(products[1], products[0], rtol=0.01, atol=0.01)


# --- XNOR-popcount against NumPy's integers, which know nothing of bits, words or lanes --------

INT32 = np.iinfo(np.int32)
# Every new shape is compiled, so examples are few; the explicit ones are the corners.
few = settings(max_examples=5, deadline=None)
seeds = st.integers(0, 2**32 - 1)
depths = st.integers(1, 200)


def signs(rng, *shape):
    return rng.choice(np.array([-1, 1], np.int32), shape)


def ternaries(rng, *shape):
    return rng.choice(np.array([-1, 0, 1], np.int32), shape)


def unpacked(words, depth):
    """0/1 flags of packed words; whatever lies past `depth` must be zero."""
    words = np.ascontiguousarray(words)
    flags = np.unpackbits(words.view(np.uint8), axis=-1, bitorder="little").astype(np.int32)
    assert not flags[..., depth:].any()
    return flags[..., :depth]


def unpacked_signs(words, depth):
    return 2 * unpacked(words, depth) - 1


def unpacked_ternaries(planes, depth):
    nonzero, sign = (unpacked(plane, depth) for plane in planes)
    # A zero must have its sign bit cleared: zeros then have one code only.
    assert not (sign & ~nonzero).any()
    return nonzero * (2 * sign - 1)


def numpy_conv2d(images, kernel):
    """SAME zero padding, stride 1, tap by tap in int64."""
    images, kernel = images.astype(np.int64), kernel.astype(np.int64)
    height, width = kernel.shape[:2]
    rows, columns = images.shape[1:3]
    top, left = (height - 1) // 2, (width - 1) // 2
    padded = np.pad(images, [(0, 0), (top, height - 1 - top), (left, width - 1 - left), (0, 0)])
    return sum(
        padded[:, y : y + rows, x : x + columns] @ kernel[y, x]
        for y in range(height)
        for x in range(width)
    )


def numpy_max_pool(x):
    """2×2, SAME: a border window of an odd size holds what is there."""
    rows, columns = x.shape[1:3]
    return np.stack(
        [
            np.stack(
                [x[:, y : y + 2, c : c + 2].max(axis=(1, 2)) for c in range(0, columns, 2)], axis=1
            )
            for y in range(0, rows, 2)
        ],
        axis=1,
    )


def packed_kernel(kernel):
    """An HWIO ±1 kernel as `xnor_conv2d` takes it."""
    return graph_ops.arrange_kernel(graph_ops.pack_bits(kernel.transpose(0, 1, 3, 2)))


def packed_ternary_kernel(kernel):
    planes = graph_ops.pack_ternary(kernel.transpose(0, 1, 3, 2))
    return tuple(graph_ops.arrange_kernel(plane) for plane in planes)


# --- Packing ----------------------------------------------------------------------------------


@pytest.mark.parametrize("depth", [1, 31, 63, 64, 65, 130])
def test_packed_bits_are_the_signs_in_order_and_zero_past_the_end(depth):
    x = np.random.default_rng(depth).standard_normal((3, 2, depth)).astype(np.float32)
    words = graph_ops.pack_bits(x).numpy()
    assert words.dtype == np.uint64
    assert words.shape == (3, 2, -(-depth // 64))
    assert np.array_equal(unpacked(words, depth), x >= 0)


def test_zero_of_either_sign_packs_to_one():
    assert graph_ops.pack_bits(np.float32([0.0, -0.0, -1e-30, 1e-30])).numpy() == [0b1011]


@pytest.mark.parametrize("depth", [1, 64, 70])
def test_ternary_planes_hold_the_values(depth):
    x = ternaries(np.random.default_rng(depth), 4, depth)
    planes = [plane.numpy() for plane in graph_ops.pack_ternary(x)]
    assert np.array_equal(unpacked_ternaries(planes, depth), x)


# --- Products ---------------------------------------------------------------------------------


@few
@given(seeds, st.integers(1, 9), st.integers(1, 80), depths)
@example(0, 1, 1, 1)
@example(0, 1, 33, 64)
@example(0, 5, 64, 65)
@example(0, 3, 10, 1000)
def test_xnor_matmul_is_the_integer_product(seed, m, n, depth):
    rng = np.random.default_rng(seed)
    a, w = signs(rng, m, depth), signs(rng, n, depth)
    result = graph_ops.xnor_matmul(graph_ops.pack_bits(a), graph_ops.pack_bits(w), depth)
    assert result.dtype == tf.int32
    assert np.array_equal(result, a @ w.T)


@few
@given(seeds, st.integers(1, 9), st.integers(1, 80), depths)
@example(0, 1, 1, 1)
@example(0, 4, 40, 1000)
def test_ternary_matmul_is_the_integer_product(seed, m, n, depth):
    rng = np.random.default_rng(seed)
    a, w = ternaries(rng, m, depth), ternaries(rng, n, depth)
    result = graph_ops.ternary_matmul(graph_ops.pack_ternary(a), graph_ops.pack_ternary(w))
    assert result.dtype == tf.int32
    assert np.array_equal(result, a @ w.T)


convolutions = given(
    seed=seeds,
    images=st.tuples(st.integers(1, 3), st.integers(1, 7), st.integers(1, 7)),
    size=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    channels=st.integers(1, 130),
    filters=st.integers(1, 70),
)
one_channel = example(seed=0, images=(1, 5, 5), size=(3, 3), channels=1, filters=1)
kernel_larger_than_image = example(seed=0, images=(1, 1, 2), size=(5, 5), channels=3, filters=33)
whole_words = example(seed=0, images=(2, 4, 4), size=(3, 3), channels=64, filters=64)


@few
@convolutions
@one_channel
@kernel_larger_than_image
@whole_words
def test_xnor_conv2d_is_the_integer_convolution(seed, images, size, channels, filters):
    rng = np.random.default_rng(seed)
    x, kernel = signs(rng, *images, channels), signs(rng, *size, channels, filters)
    result = graph_ops.xnor_conv2d(graph_ops.pack_bits(x), packed_kernel(kernel), channels, filters)
    assert result.dtype == tf.int32
    assert np.array_equal(result, numpy_conv2d(x, kernel))


@few
@convolutions
@one_channel
@kernel_larger_than_image
@whole_words
def test_ternary_conv2d_is_the_integer_convolution(seed, images, size, channels, filters):
    rng = np.random.default_rng(seed)
    x, kernel = ternaries(rng, *images, channels), ternaries(rng, *size, channels, filters)
    result = graph_ops.ternary_conv2d(
        graph_ops.pack_ternary(x), packed_ternary_kernel(kernel), filters
    )
    assert result.dtype == tf.int32
    assert np.array_equal(result, numpy_conv2d(x, kernel))


@pytest.mark.parametrize("vector_popcount", [True, False])
@pytest.mark.parametrize("count", [1, 2, 3, 8, 72])
def testtotal_popcount_is_the_number_of_ones(count, vector_popcount, monkeypatch):
    monkeypatch.setattr(graph_ops, "VECTOR_POPCOUNT", vector_popcount)
    words = np.random.default_rng(count).integers(0, 2**64, (count, 5), np.uint64)
    # All bits of one lane set: no carry may get lost.
    words[:, 0] = np.iinfo(np.uint64).max
    total = graph_ops.total_popcount(map(tf.constant, words))
    np.testing.assert_array_equal(total, np.bitwise_count(words).sum(axis=0))


def test_vector_popcount_is_read_from_the_feature_bits(tmp_path):
    (tmp_path / "with").write_text("flags\t\t: fpu popcnt avx512f avx512_vpopcntdq\n")
    (tmp_path / "without").write_text("flags\t\t: fpu popcnt avx2\n")
    assert graph_ops.has_vector_popcount(tmp_path / "with")
    assert not graph_ops.has_vector_popcount(tmp_path / "without")
    assert not graph_ops.has_vector_popcount(tmp_path / "missing")


def test_same_padding_is_tensorflows():
    rng = np.random.default_rng(0)
    x, kernel = signs(rng, 2, 5, 6, 7), signs(rng, 3, 2, 7, 4)
    expected = tf.nn.conv2d(x.astype(np.float32), kernel.astype(np.float32), 1, "SAME")
    result = graph_ops.xnor_conv2d(graph_ops.pack_bits(x), packed_kernel(kernel), 7, 4)
    assert np.array_equal(result, expected)


@pytest.mark.parametrize("value", [-1, 1])
def test_padded_taps_count_nothing(value):
    """Equal signs everywhere: a sum is the number of taps inside the image, times channels."""
    x, kernel = np.full((1, 3, 3, 10), value), np.full((3, 3, 10, 1), value)
    result = graph_ops.xnor_conv2d(graph_ops.pack_bits(x), packed_kernel(kernel), 10, 1)
    assert np.array_equal(result[0, ..., 0], [[40, 60, 40], [60, 90, 60], [40, 60, 40]])


def test_unused_bits_may_lie_between_used_ones():
    """Flattened images of 10 channels leave 54 unused bits in each word."""
    rng = np.random.default_rng(0)
    x, w = signs(rng, 3, 4, 10), signs(rng, 5, 4, 10)
    flat = [tf.reshape(graph_ops.pack_bits(v), [len(v), -1]) for v in (x, w)]
    assert np.array_equal(graph_ops.xnor_matmul(*flat, 40), x.reshape(3, 40) @ w.reshape(5, 40).T)


def test_words_that_do_not_match_are_an_error():
    a = np.zeros((3, 2), np.uint64)
    with pytest.raises(ValueError, match="2 words meet weights of 1"):
        graph_ops.xnor_matmul(a, np.zeros((4, 1), np.uint64), 64)
    with pytest.raises(ValueError, match="129 bits do not fit into 2 words"):
        graph_ops.xnor_matmul(a, a, 129)


# --- Training ---------------------------------------------------------------------------------


@pytest.mark.parametrize("values", [signs, ternaries], ids=["binary", "ternary"])
@pytest.mark.parametrize("channels, size", [(64, 3), (70, 2), (5, 1)])
def test_counted_convolution_has_the_products_and_gradients_of_the_multiplied_one(
    values, channels, size
):
    rng = np.random.default_rng(channels)
    images = tf.constant(values(rng, 3, 5, 4, channels), tf.float32)
    kernel = tf.constant(values(rng, size, size, channels, 33), tf.float32)
    upstream = tf.constant(rng.standard_normal((3, 5, 4, 33)), tf.float32)

    def counted(images, kernel):
        return graph_ops.counted_conv2d(images, kernel, values is ternaries)

    products = counted(images, kernel)
    np.testing.assert_array_equal(products, tf.nn.conv2d(images, kernel, 1, "SAME"))
    tensors = images, kernel, upstream
    for ours, theirs in zip(
        gradients_of(counted, *tensors),
        gradients_of(graph_ops.convolve, *tensors),
        strict=True,
    ):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("quantizer", ["binary", "ternary"])
def test_layers_count_in_training_what_they_would_multiply(quantizer, monkeypatch):
    counted = []
    count = graph_ops.counted_conv2d
    monkeypatch.setattr(
        graph_ops, "counted_conv2d", lambda *args: counted.append(args) or count(*args)
    )
    options = {"weight_quantizer": quantizer, "threshold": 0.02 * (quantizer == "ternary")}
    layers = [
        graph_ops.BinaryConv2D(8, kernel_initializer=keras.initializers.GlorotUniform(1), **more)
        for more in (options, {**options, "input_quantizer": quantizer})
    ]
    values = signs if quantizer == "binary" else ternaries
    x = tf.constant(values(np.random.default_rng(0), 2, 6, 6, 64), tf.float32)
    for layer in layers:
        layer.build(x.shape)
    multiplied, in_bits = (layer.pre_activation(x, training=True) for layer in layers)
    assert len(counted) == 1
    np.testing.assert_array_equal(in_bits, multiplied)


def test_a_layer_that_trains_in_bfloat16_is_counted_elsewhere(monkeypatch):
    calls = []
    monkeypatch.setattr(
        graph_ops, "convolve", lambda images, _: calls.append(images.dtype.name) or images
    )
    monkeypatch.setattr(
        graph_ops, "counted_conv2d", lambda images, *_: calls.append("counted") or images
    )
    layer = graph_ops.BinaryConv2D(64, input_quantizer="binary", dtype="mixed_bfloat16")
    x = tf.constant(signs(np.random.default_rng(0), 2, 6, 6, 64), tf.float32)
    layer.build(x.shape)
    layer.pooled_products(x, training=True)
    layer.pooled_products(x)
    layer.pooled_products(x, counted=True)
    assert calls == ["bfloat16", "float32", "counted"]


@pytest.mark.parametrize(
    "options, channels",
    [
        ({"input_quantizer": None}, 64),  # Pixels.
        ({"input_quantizer": "clip"}, 64),
        ({"input_quantizer": "ternary"}, 64),
        ({"input_quantizer": "binary"}, 63),
        ({"input_quantizer": "binary", "basis": "rotation"}, 64),
        ({"input_quantizer": "clip", "weight_quantizer": "clip"}, 64),
    ],
)
def test_layers_count_nothing_but_bits(options, channels):
    layer = graph_ops.BinaryConv2D(8, **options)
    layer.build((None, 6, 6, channels))
    assert not layer._counts()


# --- Thresholds and pooling -------------------------------------------------------------------


@pytest.mark.parametrize("units", [5, 100])
def test_thresholds_are_per_unit_and_inclusive(units):
    rng = np.random.default_rng(units)
    thresholds = rng.integers(-3, 4, units, dtype=np.int32)
    products = rng.integers(-4, 5, (2, 3, units), dtype=np.int32)
    bits = graph_ops.threshold_bits(products, thresholds).numpy()
    assert np.array_equal(unpacked(bits, units), products >= thresholds)

    lower = thresholds - rng.integers(1, 3, units, dtype=np.int32)
    planes = [p.numpy() for p in graph_ops.threshold_ternary(products, lower, thresholds)]
    expected = (products >= thresholds).astype(int) - (products <= lower)
    assert np.array_equal(unpacked_ternaries(planes, units), expected)


def test_extreme_thresholds_make_constant_units():
    products = np.array([[-(2**24)] * 3, [2**24] * 3], np.int32)
    bits = graph_ops.threshold_bits(products, np.array([INT32.min, 0, INT32.max], np.int32)).numpy()
    assert np.array_equal(unpacked(bits, 3), [[1, 0, 0], [1, 1, 0]])

    lower = np.array([INT32.min, INT32.max - 1, INT32.min], np.int32)
    upper = np.array([INT32.min + 1, INT32.max, INT32.max], np.int32)
    planes = [plane.numpy() for plane in graph_ops.threshold_ternary(products, lower, upper)]
    assert np.array_equal(unpacked_ternaries(planes, 3), [[1, -1, 0], [1, -1, 0]])


@pytest.mark.parametrize("rows, columns", [(1, 1), (4, 6), (5, 4), (7, 7)])
def test_pooling_bits_is_pooling_values(rows, columns):
    rng = np.random.default_rng(rows)
    # Mostly −1, so that windows without a +1 occur.
    x = np.where(rng.random((2, rows, columns, 70)) < 0.2, 1, -1)
    pooled = graph_ops.max_pool_bits(graph_ops.pack_bits(x)).numpy()
    assert np.array_equal(unpacked_signs(pooled, 70), numpy_max_pool(x))

    x = rng.choice([-1, 0, 1], x.shape, p=[0.7, 0.2, 0.1])
    planes = [plane.numpy() for plane in graph_ops.max_pool_ternary(graph_ops.pack_ternary(x))]
    assert np.array_equal(unpacked_ternaries(planes, 70), numpy_max_pool(x))


# --- The first layer --------------------------------------------------------------------------


@few
@given(
    seed=seeds,
    images=st.tuples(st.integers(1, 3), st.integers(1, 7), st.integers(1, 7)),
    size=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    channels=st.integers(1, 4),
    values=st.sampled_from([[-1, 1], [-1, 0, 1]]),
)
@example(seed=0, images=(1, 28, 27), size=(3, 3), channels=1, values=[-1, 1])
def test_pixel_conv2d_is_the_integer_convolution(seed, images, size, channels, values):
    rng = np.random.default_rng(seed)
    # Half the pixels at the ends of their range, where sums are largest.
    pixels = rng.choice(np.uint8([0, 0, 255, 255, 1, 127, 128, 254]), (*images, channels))
    kernel = rng.choice(np.float32(values), (*size, channels, 40))
    result = graph_ops.pixel_conv2d(pixels, kernel)
    assert result.dtype == tf.int32
    assert np.array_equal(result, numpy_conv2d(2 * pixels.astype(np.int64) - 255, kernel))


def test_pixel_matmul_is_exact_at_the_largest_sums():
    depth = 2**24 // 255
    pixels = np.full((2, depth), 255, np.uint8)
    pixels[1] = np.random.default_rng(0).integers(0, 256, depth)
    kernel = np.ones((depth, 2), np.float32)
    kernel[::2, 1] = -1
    expected = (2 * pixels.astype(np.int64) - 255) @ kernel.astype(np.int64)
    assert np.array_equal(graph_ops.pixel_matmul(pixels, kernel), expected)


def test_sums_beyond_float32_are_refused():
    depth = 2**24 // 255 + 1
    with pytest.raises(ValueError, match="too many for exact float32"):
        graph_ops.pixel_matmul(np.zeros((1, depth), np.uint8), np.ones((depth, 1), np.float32))


# --- Together ---------------------------------------------------------------------------------


class SmallNetwork:
    """Pixels → 40 filters → pool → 20 filters → 10 scores, packed and in NumPy."""

    def __init__(self, ternary):
        rng = np.random.default_rng(ternary)
        draw = ternaries if ternary else signs
        self.ternary = ternary
        self.pixel_kernel = draw(rng, 3, 3, 2, 40).astype(np.float32)
        self.kernel = draw(rng, 3, 3, 40, 20)
        self.dense = draw(rng, 3 * 4, 20, 10)
        self.upper = [np.int32(rng.integers(-200, 200, 40)), np.int32(rng.integers(-9, 9, 20))]
        self.lower = [upper - 5 for upper in self.upper]
        pack_kernel = packed_ternary_kernel if ternary else packed_kernel
        self.packed_kernel = pack_kernel(self.kernel)
        # A word per position becomes a word of one long vector, as in the flattened activations.
        self.packed_dense = tf.nest.map_structure(
            lambda x: tf.reshape(x, [-1, 1, 1, 12, 32]), pack_kernel(self.dense[None])
        )

    def packed(self, pixels):
        bits = self.quantize(graph_ops.pixel_conv2d(pixels, self.pixel_kernel), 0)
        pool = graph_ops.max_pool_ternary if self.ternary else graph_ops.max_pool_bits
        bits = self.quantize(self.convolve(pool(bits), self.packed_kernel, 40, 20), 1)
        return bits, self.scores(bits)

    def convolve(self, bits, kernel, channels, filters):
        if self.ternary:
            return graph_ops.ternary_conv2d(bits, kernel, filters)
        return graph_ops.xnor_conv2d(bits, kernel, channels, filters)

    def quantize(self, products, layer):
        if self.ternary:
            return graph_ops.threshold_ternary(products, self.lower[layer], self.upper[layer])
        return graph_ops.threshold_bits(products, self.upper[layer])

    def scores(self, bits):
        flat = tf.nest.map_structure(lambda x: tf.reshape(x, [-1, 1, 1, 12]), bits)
        return tf.reshape(self.convolve(flat, self.packed_dense, 12 * 20, 10), [-1, 10])

    def in_numpy(self, pixels):
        x = self.numpy_quantize(numpy_conv2d(2 * pixels.astype(int) - 255, self.pixel_kernel), 0)
        x = self.numpy_quantize(numpy_conv2d(numpy_max_pool(x), self.kernel), 1)
        return x, x.reshape(len(x), -1) @ self.dense.reshape(-1, 10)

    def numpy_quantize(self, products, layer):
        positive = products >= self.upper[layer]
        if self.ternary:
            return positive.astype(int) - (products <= self.lower[layer])
        return 2 * positive.astype(int) - 1


@pytest.mark.parametrize("jit_compile, batch", [(False, 3), (False, None), (True, None)])
@pytest.mark.parametrize("ternary", [False, True], ids=["binary", "ternary"])
def test_a_network_gives_numpys_bits_and_scores(ternary, jit_compile, batch):
    network = SmallNetwork(ternary)
    predict = tf.function(
        network.packed,
        jit_compile=jit_compile,
        input_signature=[tf.TensorSpec([batch, 5, 7, 2], tf.uint8)],
    )
    for n in [3] if batch else [3, 1]:
        pixels = np.random.default_rng(n).integers(0, 256, (n, 5, 7, 2), dtype=np.uint8)
        bits, scores = tf.nest.map_structure(lambda x: x.numpy(), predict(pixels))
        expected_bits, expected_scores = network.in_numpy(pixels)
        unpack = unpacked_ternaries if ternary else unpacked_signs
        assert np.array_equal(unpack(bits, 20), expected_bits)
        assert np.array_equal(scores, expected_scores)


@pytest.mark.parametrize("jit_compile", [False, True])
def test_matmul_inside_a_function_of_unknown_batch(jit_compile):
    w = signs(np.random.default_rng(0), 40, 100)

    @tf.function(jit_compile=jit_compile, input_signature=[tf.TensorSpec([None, 100], tf.float32)])
    def products(x):
        return graph_ops.xnor_matmul(graph_ops.pack_bits(x), graph_ops.pack_bits(w), 100)

    for m in (1, 6):
        a = signs(np.random.default_rng(m), m, 100)
        assert np.array_equal(products(a.astype(np.float32)), a @ w.T)
