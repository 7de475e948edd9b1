"""Convolutions whose products are counted in bits and whose gradients are quick.

The gradients of 3×3 convolutions in float32 take a quarter of the multiplications by Winograd's
algorithm; in bfloat16, narrow images lie side by side.
"""

from collections.abc import Callable

from fast import compiled
from fast.bits import arrange_kernel, pack_bits, pack_ternary, ternary_conv2d, xnor_conv2d

# isort: split
import numpy as np
import tensorflow as tf

# In the gradient of a filter: images in a row, and up to which width of the images.
SIDE_BY_SIDE, NARROW = 10, 8


def convolve(
    images: tf.Tensor,
    kernel: tf.Tensor,
    products: Callable[[tf.Tensor, tf.Tensor], tf.Tensor] | None = None,
) -> tf.Tensor:
    """`tf.nn.conv2d` (stride 1, SAME), and its gradient as fast as it comes.

    Parameters
    ----------
    images : tensor, shape (n, rows, columns, channels)
    kernel : tensor, shape (height, width, channels, filters)
    products : callable, optional
        Another way to the same products of `images` and `kernel`.
    """
    options = {"strides": [1] * 4, "padding": "SAME"}
    products = products or (lambda *tensors: tf.nn.conv2d(*tensors, **options))

    @tf.custom_gradient
    def forward(images, kernel):
        def backward(upstream):
            if _suits_winograd(images, kernel):
                with tf.name_scope("winograd"):  # By which the profiler knows them.
                    return winograd_gradients(images, kernel, upstream)
            of_images = tf.raw_ops.Conv2DBackpropInput(
                input_sizes=tf.shape(images), filter=kernel, out_backprop=upstream, **options
            )
            of_kernel = tf.raw_ops.Conv2DBackpropFilter(
                input=_spread(images, kernel),
                filter_sizes=tf.shape(kernel),
                out_backprop=_spread(upstream, kernel),
                **options,
            )
            return of_images, of_kernel

        return products(images, kernel), backward

    return forward(images, kernel)


def _spread(images, kernel):
    """Narrow bfloat16 images side by side, zeros between them; others as they are.

    With AMX, 58 ms became 29 for the narrow layers of the paper's network at batch 100; float32
    kernels take longer by it.
    """
    _, rows, columns, channels = images.shape
    if images.dtype != tf.bfloat16 or columns > NARROW:
        return images
    missing = -tf.shape(images)[0] % SIDE_BY_SIDE
    gap = kernel.shape[1] // 2
    images = tf.pad(images, [[0, missing], [0, 0], [0, gap], [0, 0]])
    images = tf.reshape(images, [-1, SIDE_BY_SIDE, rows, columns + gap, channels])
    images = tf.transpose(images, [0, 2, 1, 3, 4])
    return tf.reshape(images, [-1, rows, SIDE_BY_SIDE * (columns + gap), channels])


# --- Gradients of 3×3 convolutions, with a quarter of the multiplications ---------------------

# Winograd's algorithm F(4×4, 3×3), as Lavin and Gray give it (arXiv 1509.09308): a tile of 4×4
# products is Y = Aᵀ[(G w Gᵀ) ⊙ (Bᵀ x B)]A, with x the 6×6 images that it sees and ⊙ a product at
# each of 36 points. Summed over channels the latter are 36 matrix products, which make a quarter
# of the multiplications. Y is linear in x and in w: with Ẏ the loss's gradient by Y, and
# Z = A Ẏ Aᵀ, those by x and w are ẋ = B[(G w Gᵀ) ⊙ Z]Bᵀ and ẇ = Gᵀ[(Bᵀ x B) ⊙ Z]G, summed over
# filters and over tiles.
TILE = 4
WINOGRAD_BT = np.array(
    [
        [4, 0, -5, 0, 1, 0],
        [0, -4, -4, 1, 1, 0],
        [0, 4, -4, -1, 1, 0],
        [0, -2, -1, 2, 1, 0],
        [0, 2, -1, -2, 1, 0],
        [0, 4, 0, -5, 0, 1],
    ],
    np.float32,
)
WINOGRAD_G = (
    np.array([[6, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24]], np.float32)
    / 24
)
WINOGRAD_A = np.array(
    [[1, 0, 0, 0], [1, 1, 1, 1], [1, -1, 1, -1], [1, 2, 4, 8], [1, -2, 4, -8], [0, 0, 0, 1]],
    np.float32,
)
POINTS = len(WINOGRAD_BT)
# Along rows and columns at once; as in `_at_points`, the points of the columns come first.
WINOGRAD_GG = np.einsum("pa,qb->qpab", WINOGRAD_G, WINOGRAD_G).reshape(POINTS**2, 9)
# With fewer, transforms take longer than the multiplications that they save.
WINOGRAD_CHANNELS = 32


def _suits_winograd(images, kernel):
    # bfloat16 has too few digits for it. GPUs have their own library do it.
    return (
        images.dtype == tf.float32
        and kernel.shape[:2] == (3, 3)
        and kernel.shape[2] >= WINOGRAD_CHANNELS
        and None not in images.shape[1:]
        and not tf.config.list_physical_devices("GPU")
    )


def winograd_gradients(
    images: tf.Tensor, kernel: tf.Tensor, upstream: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """Gradients of a 3×3 `tf.nn.conv2d` (stride 1, SAME) by Winograd's algorithm.

    On two AVX2 cores they took 0.9 s of a step of the paper's network, batch 100, where the
    framework's kernels took 2.6 s.

    Parameters
    ----------
    images : tensor of float32, shape (n, rows, columns, channels)
        Only n may be unknown.
    kernel : tensor of float32, shape (3, 3, channels, filters)
    upstream : tensor of float32, shape (n, rows, columns, filters)

    Returns
    -------
    of_images, of_kernel : tensors of float32
        Of the shapes of `images` and `kernel`, a few 10⁻⁶ of their norm off the exact ones.
    """
    _, rows, columns, channels = images.shape
    missing = [-rows % TILE, -columns % TILE]
    seen = tf.pad(images, [[0, 0], [1, 1 + missing[0]], [1, 1 + missing[1]], [0, 0]])
    upstream = tf.pad(upstream, [[0, 0], [0, missing[0]], [0, missing[1]], [0, 0]])
    tiles = [upstream.shape[1] // TILE, upstream.shape[2] // TILE]
    z = _at_points(upstream, WINOGRAD_A)
    of_kernel = tf.matmul(_at_points(seen, WINOGRAD_BT), z, transpose_a=True)
    of_kernel = tf.matmul(WINOGRAD_GG.T, tf.reshape(of_kernel, [POINTS**2, -1]))
    kernel_points = tf.matmul(WINOGRAD_GG, tf.reshape(kernel, [9, -1]))
    kernel_points = tf.reshape(kernel_points, [POINTS**2, channels, -1])
    of_images = tf.matmul(z, kernel_points, transpose_b=True)
    of_images = tf.reshape(of_images, [POINTS, POINTS, -1, *tiles, channels])
    of_images = _from_winograd_points(_from_winograd_points(of_images, axis=-2), axis=-3)
    return of_images[:, :rows, :columns], tf.reshape(of_kernel, kernel.shape)


def _at_points(images, matrix):
    """(36, n·tiles, channels): what every tile of `images` is at each point."""
    points = _winograd_points(_winograd_points(images, matrix, axis=-3), matrix, axis=-2)
    return tf.reshape(points, [POINTS**2, -1, images.shape[-1]])


def _sliced(axis, *of_axis):
    """An index that takes `of_axis` along `axis`, counted from the end, and all of the others."""
    return (..., *of_axis, *[slice(None)] * (-axis - 1))


# One compiled function per axis: XLA makes one of both that computes the first six times over.
@compiled
def _winograd_points(images, matrix, axis):
    """`matrix` times every tile along `axis`, the points on a new first axis."""
    taps = matrix.shape[1]
    last = images.shape[axis] - taps
    total = 0.0
    for tap in range(taps):
        pixels = images[_sliced(axis, slice(tap, tap + last + 1, TILE))]
        total += tf.reshape(matrix[:, tap], [-1] + [1] * len(images.shape)) * pixels[None]
    return total


@compiled
def _from_winograd_points(points, axis):
    """The transpose of `_winograd_points` by `WINOGRAD_BT`, without what is in the padding."""
    # Of the six pixels that a tile sees the first is its neighbour's last, the last its
    # neighbour's first, and each comes from one point alone.
    first, last = points[0] * WINOGRAD_BT[0, 0], points[-1] * WINOGRAD_BT[-1, -1]
    pixels = sum(
        _column(WINOGRAD_BT[p, 1:-1], axis) * points[p][_sliced(axis, slice(None), None)]
        for p in range(POINTS)
    )
    pixels += _column([1, 0, 0, 0], axis) * _shifted(last, axis, 1)
    pixels += _column([0, 0, 0, 1], axis) * _shifted(first, axis, -1)
    shape = [-1 if size is None else size for size in pixels.shape]
    shape[axis - 1] *= TILE
    del shape[axis]
    return tf.reshape(pixels, shape)


def _column(numbers, axis):
    """Numbers along an axis that comes after `axis`, counted from the end."""
    return tf.reshape(tf.constant(numbers, tf.float32), [-1] + [1] * (-axis - 1))


def _shifted(tiles, axis, by):
    """Every tile's neighbour, zeros where there is none; a new axis for pixels after `axis`."""
    kept, padding = slice(None, -by) if by > 0 else slice(-by, None), [[0, 0]] * len(tiles.shape)
    padding[axis] = [max(by, 0), max(-by, 0)]
    return tf.pad(tiles[_sliced(axis, kept)], padding)[_sliced(axis, slice(None), None)]


# --- Products counted in bits -----------------------------------------------------------------


@compiled
def _counted_conv2d(images, kernel, ternary):
    channels, filters = kernel.shape[2:]
    pack = pack_ternary if ternary else pack_bits
    weights = tf.nest.map_structure(arrange_kernel, pack(tf.transpose(kernel, [0, 1, 3, 2])))
    if ternary:
        return tf.cast(ternary_conv2d(pack(images), weights, filters), images.dtype)
    return tf.cast(xnor_conv2d(pack(images), weights, channels, filters), images.dtype)


def counted_conv2d(images: tf.Tensor, kernel: tf.Tensor, ternary: bool = False) -> tf.Tensor:
    """`tf.nn.conv2d` (stride 1, SAME) of quantized images with quantized weights, in bits.

    The products are whole numbers that float32 holds, so they are equal to the last bit. Gradients
    are those of `convolve`, not counted: what flows back has many digits.

    Parameters
    ----------
    images : tensor of float32, shape (n, rows, columns, channels)
        −1 and +1 only, with `ternary` also 0. Only n may be unknown.
    kernel : tensor of float32, shape (height, width, channels, filters)
        Of such values, too.
    ternary : bool

    Returns
    -------
    tensor of float32, shape (n, rows, columns, filters)
    """

    return convolve(images, kernel, lambda *tensors: _counted_conv2d(*tensors, ternary))
