"""Gradient masks, layer order, padding and the pipeline, against independent NumPy."""

import keras
import numpy as np
import pytest
import tensorflow as tf

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


@pytest.fixture(scope="session")
def runs_bfloat16():
    if not graph_ops.bfloat16_speedup():
        pytest.skip("bfloat16 kills TensorFlow on this machine")


def cosine(a, b):
    a, b = np.ravel(a).astype(np.float64), np.ravel(b).astype(np.float64)
    return a @ b / np.sqrt((a @ a) * (b @ b))


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (lambda dtype: graph_ops.BinaryConv2D(64, dtype=dtype), (4, 16, 16, 64)),
        (lambda dtype: graph_ops.BinaryConv2D(64, pool=True, dtype=dtype), (4, 8, 8, 64)),
        (lambda dtype: graph_ops.BinaryDense(128, dtype=dtype), (64, 512)),
    ],
    ids=["conv", "conv and pool", "dense"],
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
