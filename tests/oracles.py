"""What several tests compare with: NumPy that knows nothing of bits, words, lanes or layers."""

import numpy as np
import tensorflow as tf

from fast import bits

# --- Values -----------------------------------------------------------------------------------


def signs(rng, *shape):
    return rng.choice(np.array([-1, 1], np.int32), shape)


def ternaries(rng, *shape):
    return rng.choice(np.array([-1, 0, 1], np.int32), shape)


def numpy_sign(x):
    return np.where(x >= 0, 1.0, -1.0)


def numpy_ternary(x, threshold):
    return np.sign(x) * (np.abs(x) > threshold)


# --- Layers -----------------------------------------------------------------------------------


def numpy_convolution(images, kernel, strides=(1, 1), dilation=(1, 1), padding="same"):
    """Correlation of NHWC images with an HWIO kernel, tap by tap; SAME pads with zeros."""
    reach = [(n - 1) * rate + 1 for n, rate in zip(kernel.shape[:2], dilation, strict=True)]
    if padding == "same":
        pads = [
            max(((n - 1) // step) * step + seen - n, 0)
            for n, step, seen in zip(images.shape[1:3], strides, reach, strict=True)
        ]
        around = [(pad // 2, pad - pad // 2) for pad in pads]
        images = np.pad(images, [(0, 0), *around, (0, 0)])
    ends = [n - seen + 1 for n, seen in zip(images.shape[1:3], reach, strict=True)]
    total = 0
    for i, j in np.ndindex(*kernel.shape[:2]):
        top, left = i * dilation[0], j * dilation[1]
        rows = slice(top, top + ends[0], strides[0])
        columns = slice(left, left + ends[1], strides[1])
        total = total + images[:, rows, columns] @ kernel[i, j]
    return total


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


def numpy_batch_norm(x, norm):
    """Inference of the layer `norm`, a batch norm over all axes but the last, in float64."""
    mean, variance, beta = (
        np.float64(v.numpy()) for v in (norm.moving_mean, norm.moving_variance, norm.beta)
    )
    return (x - mean) / np.sqrt(variance + 1e-3) + beta


# --- Packed values ----------------------------------------------------------------------------


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


def packed_kernel(kernel):
    """An HWIO ±1 kernel as `xnor_conv2d` takes it."""
    return bits.arrange_kernel(bits.pack_bits(kernel.transpose(0, 1, 3, 2)))


def packed_ternary_kernel(kernel):
    planes = bits.pack_ternary(kernel.transpose(0, 1, 3, 2))
    return tuple(bits.arrange_kernel(plane) for plane in planes)


# --- Gradients --------------------------------------------------------------------------------


def gradient(function, x, upstream):
    """Gradient of `function` at `x`."""
    x = tf.constant(x)
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = function(x)
    return tape.gradient(y, x, output_gradients=tf.constant(upstream)).numpy()


def gradients_of(convolve, *tensors):
    """Gradients of convolve(images, kernel), for images, kernel and upstream gradient."""
    images, kernel, upstream = map(tf.constant, tensors)
    with tf.GradientTape() as tape:
        tape.watch([images, kernel])
        products = convolve(images, kernel)
    return [g.numpy() for g in tape.gradient(products, [images, kernel], upstream)]


def relative_error(found, expected):
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)


def cosine(a, b):
    a, b = np.ravel(a).astype(np.float64), np.ravel(b).astype(np.float64)
    return a @ b / np.sqrt((a @ a) * (b @ b))
