"""XNOR-popcount against NumPy's integers, which know nothing of bits, words or lanes."""

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import example, given, settings
from hypothesis import strategies as st
from oracles import (
    numpy_convolution,
    numpy_max_pool,
    packed_kernel,
    packed_ternary_kernel,
    signs,
    ternaries,
    unpacked,
    unpacked_signs,
    unpacked_ternaries,
)

from fast import bits

INT32 = np.iinfo(np.int32)
# Every new shape is compiled, so examples are few; the explicit ones are the corners.
few = settings(max_examples=5, deadline=None)
seeds = st.integers(0, 2**32 - 1)
depths = st.integers(1, 200)


# --- Packing ----------------------------------------------------------------------------------


@pytest.mark.parametrize("depth", [1, 31, 63, 64, 65, 130])
def test_packed_bits_are_the_signs_in_order_and_zero_past_the_end(depth):
    x = np.random.default_rng(depth).standard_normal((3, 2, depth)).astype(np.float32)
    words = bits.pack_bits(x).numpy()
    assert words.dtype == np.uint64
    assert words.shape == (3, 2, -(-depth // 64))
    assert np.array_equal(unpacked(words, depth), x >= 0)


def test_zero_of_either_sign_packs_to_one():
    assert bits.pack_bits(np.float32([0.0, -0.0, -1e-30, 1e-30])).numpy() == [0b1011]


@pytest.mark.parametrize("depth", [1, 64, 70])
def test_ternary_planes_hold_the_values(depth):
    x = ternaries(np.random.default_rng(depth), 4, depth)
    planes = [plane.numpy() for plane in bits.pack_ternary(x)]
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
    result = bits.xnor_matmul(bits.pack_bits(a), bits.pack_bits(w), depth)
    assert result.dtype == tf.int32
    assert np.array_equal(result, a @ w.T)


@few
@given(seeds, st.integers(1, 9), st.integers(1, 80), depths)
@example(0, 1, 1, 1)
@example(0, 4, 40, 1000)
def test_ternary_matmul_is_the_integer_product(seed, m, n, depth):
    rng = np.random.default_rng(seed)
    a, w = ternaries(rng, m, depth), ternaries(rng, n, depth)
    result = bits.ternary_matmul(bits.pack_ternary(a), bits.pack_ternary(w))
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
    result = bits.xnor_conv2d(bits.pack_bits(x), packed_kernel(kernel), channels, filters)
    assert result.dtype == tf.int32
    assert np.array_equal(result, numpy_convolution(x, kernel))


@few
@convolutions
@one_channel
@kernel_larger_than_image
@whole_words
def test_ternary_conv2d_is_the_integer_convolution(seed, images, size, channels, filters):
    rng = np.random.default_rng(seed)
    x, kernel = ternaries(rng, *images, channels), ternaries(rng, *size, channels, filters)
    result = bits.ternary_conv2d(bits.pack_ternary(x), packed_ternary_kernel(kernel), filters)
    assert result.dtype == tf.int32
    assert np.array_equal(result, numpy_convolution(x, kernel))


@pytest.mark.parametrize("vector_popcount", [True, False])
@pytest.mark.parametrize("count", [1, 2, 3, 8, 72])
def test_total_popcount_is_the_number_of_ones(count, vector_popcount, monkeypatch):
    monkeypatch.setattr(bits, "VECTOR_POPCOUNT", vector_popcount)
    words = np.random.default_rng(count).integers(0, 2**64, (count, 5), np.uint64)
    # All bits of one lane set: no carry may get lost.
    words[:, 0] = np.iinfo(np.uint64).max
    total = bits.total_popcount(map(tf.constant, words))
    np.testing.assert_array_equal(total, np.bitwise_count(words).sum(axis=0))


def test_vector_popcount_is_read_from_the_feature_bits(tmp_path):
    (tmp_path / "with").write_text("flags\t\t: fpu popcnt avx512f avx512_vpopcntdq\n")
    (tmp_path / "without").write_text("flags\t\t: fpu popcnt avx2\n")
    assert bits.has_vector_popcount(tmp_path / "with")
    assert not bits.has_vector_popcount(tmp_path / "without")
    assert not bits.has_vector_popcount(tmp_path / "missing")


def test_same_padding_is_tensorflows():
    rng = np.random.default_rng(0)
    x, kernel = signs(rng, 2, 5, 6, 7), signs(rng, 3, 2, 7, 4)
    expected = tf.nn.conv2d(x.astype(np.float32), kernel.astype(np.float32), 1, "SAME")
    result = bits.xnor_conv2d(bits.pack_bits(x), packed_kernel(kernel), 7, 4)
    assert np.array_equal(result, expected)


@pytest.mark.parametrize("value", [-1, 1])
def test_padded_taps_count_nothing(value):
    """Equal signs everywhere: a sum is the number of taps inside the image, times channels."""
    x, kernel = np.full((1, 3, 3, 10), value), np.full((3, 3, 10, 1), value)
    result = bits.xnor_conv2d(bits.pack_bits(x), packed_kernel(kernel), 10, 1)
    assert np.array_equal(result[0, ..., 0], [[40, 60, 40], [60, 90, 60], [40, 60, 40]])


def test_many_words_are_counted_in_parts(monkeypatch):
    monkeypatch.setattr(bits, "UNROLLED_WORDS", 2)
    rng, depth = np.random.default_rng(0), 5 * 64 - 3
    x, w = signs(rng, 3, 1, 1, depth), signs(rng, 1, 1, depth, 35)
    packed = bits.pack_bits(x.astype(np.float32)), packed_kernel(w)
    found = bits.xnor_conv2d(*packed, depth, 35).numpy()
    np.testing.assert_array_equal(found, numpy_convolution(x, w))
    x, w = ternaries(rng, 3, 1, 1, depth), ternaries(rng, 1, 1, depth, 35)
    found = bits.ternary_conv2d(bits.pack_ternary(x), packed_ternary_kernel(w), 35).numpy()
    np.testing.assert_array_equal(found, numpy_convolution(x, w))


def test_unused_bits_may_lie_between_used_ones():
    """Flattened images of 10 channels leave 54 unused bits in each word."""
    rng = np.random.default_rng(0)
    x, w = signs(rng, 3, 4, 10), signs(rng, 5, 4, 10)
    flat = [tf.reshape(bits.pack_bits(v), [len(v), -1]) for v in (x, w)]
    assert np.array_equal(bits.xnor_matmul(*flat, 40), x.reshape(3, 40) @ w.reshape(5, 40).T)


def test_words_that_do_not_match_are_an_error():
    a = np.zeros((3, 2), np.uint64)
    with pytest.raises(ValueError, match="2 words meet weights of 1"):
        bits.xnor_matmul(a, np.zeros((4, 1), np.uint64), 64)
    with pytest.raises(ValueError, match="129 bits do not fit into 2 words"):
        bits.xnor_matmul(a, a, 129)


# --- Thresholds and pooling -------------------------------------------------------------------


@pytest.mark.parametrize("units", [5, 100])
def test_thresholds_are_per_unit_and_inclusive(units):
    rng = np.random.default_rng(units)
    thresholds = rng.integers(-3, 4, units, dtype=np.int32)
    products = rng.integers(-4, 5, (2, 3, units), dtype=np.int32)
    plane = bits.threshold_bits(products, thresholds).numpy()
    assert np.array_equal(unpacked(plane, units), products >= thresholds)

    lower = thresholds - rng.integers(1, 3, units, dtype=np.int32)
    planes = [p.numpy() for p in bits.threshold_ternary(products, lower, thresholds)]
    expected = (products >= thresholds).astype(int) - (products <= lower)
    assert np.array_equal(unpacked_ternaries(planes, units), expected)


def test_extreme_thresholds_make_constant_units():
    products = np.array([[-(2**24)] * 3, [2**24] * 3], np.int32)
    plane = bits.threshold_bits(products, np.array([INT32.min, 0, INT32.max], np.int32)).numpy()
    assert np.array_equal(unpacked(plane, 3), [[1, 0, 0], [1, 1, 0]])

    lower = np.array([INT32.min, INT32.max - 1, INT32.min], np.int32)
    upper = np.array([INT32.min + 1, INT32.max, INT32.max], np.int32)
    planes = [plane.numpy() for plane in bits.threshold_ternary(products, lower, upper)]
    assert np.array_equal(unpacked_ternaries(planes, 3), [[1, -1, 0], [1, -1, 0]])


@pytest.mark.parametrize("rows, columns", [(1, 1), (4, 6), (5, 4), (7, 7)])
def test_pooling_bits_is_pooling_values(rows, columns):
    rng = np.random.default_rng(rows)
    # Mostly −1, so that windows without a +1 occur.
    x = np.where(rng.random((2, rows, columns, 70)) < 0.2, 1, -1)
    pooled = bits.max_pool_bits(bits.pack_bits(x)).numpy()
    assert np.array_equal(unpacked_signs(pooled, 70), numpy_max_pool(x))

    x = rng.choice([-1, 0, 1], x.shape, p=[0.7, 0.2, 0.1])
    planes = [plane.numpy() for plane in bits.max_pool_ternary(bits.pack_ternary(x))]
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
    result = bits.pixel_conv2d(pixels, kernel)
    assert result.dtype == tf.int32
    assert np.array_equal(result, numpy_convolution(2 * pixels.astype(np.int64) - 255, kernel))


def test_pixel_matmul_is_exact_at_the_largest_sums():
    depth = 2**24 // 255
    pixels = np.full((2, depth), 255, np.uint8)
    pixels[1] = np.random.default_rng(0).integers(0, 256, depth)
    kernel = np.ones((depth, 2), np.float32)
    kernel[::2, 1] = -1
    expected = (2 * pixels.astype(np.int64) - 255) @ kernel.astype(np.int64)
    assert np.array_equal(bits.pixel_matmul(pixels, kernel), expected)


def test_sums_beyond_float32_are_refused():
    depth = 2**24 // 255 + 1
    with pytest.raises(ValueError, match="too many for exact float32"):
        bits.pixel_matmul(np.zeros((1, depth), np.uint8), np.ones((depth, 1), np.float32))


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
        values = self.quantize(bits.pixel_conv2d(pixels, self.pixel_kernel), 0)
        pool = bits.max_pool_ternary if self.ternary else bits.max_pool_bits
        values = self.quantize(self.convolve(pool(values), self.packed_kernel, 40, 20), 1)
        return values, self.scores(values)

    def convolve(self, values, kernel, channels, filters):
        if self.ternary:
            return bits.ternary_conv2d(values, kernel, filters)
        return bits.xnor_conv2d(values, kernel, channels, filters)

    def quantize(self, products, layer):
        if self.ternary:
            return bits.threshold_ternary(products, self.lower[layer], self.upper[layer])
        return bits.threshold_bits(products, self.upper[layer])

    def scores(self, values):
        flat = tf.nest.map_structure(lambda x: tf.reshape(x, [-1, 1, 1, 12]), values)
        return tf.reshape(self.convolve(flat, self.packed_dense, 12 * 20, 10), [-1, 10])

    def in_numpy(self, pixels):
        x = self.numpy_quantize(
            numpy_convolution(2 * pixels.astype(int) - 255, self.pixel_kernel), 0
        )
        x = self.numpy_quantize(numpy_convolution(numpy_max_pool(x), self.kernel), 1)
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
        values, scores = tf.nest.map_structure(lambda x: x.numpy(), predict(pixels))
        expected_bits, expected_scores = network.in_numpy(pixels)
        unpack = unpacked_ternaries if ternary else unpacked_signs
        assert np.array_equal(unpack(values, 20), expected_bits)
        assert np.array_equal(scores, expected_scores)


@pytest.mark.parametrize("jit_compile", [False, True])
def test_matmul_inside_a_function_of_unknown_batch(jit_compile):
    w = signs(np.random.default_rng(0), 40, 100)

    @tf.function(jit_compile=jit_compile, input_signature=[tf.TensorSpec([None, 100], tf.float32)])
    def products(x):
        return bits.xnor_matmul(bits.pack_bits(x), bits.pack_bits(w), 100)

    for m in (1, 6):
        a = signs(np.random.default_rng(m), m, 100)
        assert np.array_equal(products(a.astype(np.float32)), a @ w.T)
