"""XNOR and popcount: ±1 and ternary values as bits, and their exact products.

A ±1 value is one bit, 64 of them one uint64 word. The dot product of two ±1 vectors of length d
is d − 2·popcount(a XOR w): one instruction does the work of 64 multiply-adds. All results are
exact integers. Ternary values take two bit planes, `nonzero` and `sign` (1 for +1).

What makes it fast in plain TensorFlow is the shape of the loop that XLA is left with. The words
of the fan-in are unrolled in the graph, and output units lie side by side in memory, 32 at a
time, so that the compiler works on as many units as a vector register holds and never sums
across a register. Composed inside one `tf.function(jit_compile=True)`, XLA fuses a convolution
with its thresholds and the packing of its bits, and integers never reach memory. Alone, or inside
a plain `tf.function`, each function compiles itself. Only the batch may be of unknown size, and
XLA compiles once for each that it meets: pad the last, partial batch.
"""

import collections
import os
import pathlib
from collections.abc import Iterable, Sequence

from fast import compiled

# isort: split
import numpy as np
import tensorflow as tf

WORD_BITS = 64
LANES = 32
# More words of a unit than these are counted in a loop: an unrolled one would compile for minutes.
UNROLLED_WORDS = 256


# --- Packing ----------------------------------------------------------------------------------


def _lanes(flags, width):
    """Flags with the last axis zero-padded to whole words, split into (words, 64/width, width)."""
    *outer, depth = flags.shape
    words = -(-depth // WORD_BITS)
    flags = tf.pad(flags, [[0, 0]] * len(outer) + [[0, words * WORD_BITS - depth]])
    outer = [-1 if n is None else n for n in outer]
    return tf.reshape(flags, [*outer, words, WORD_BITS // width, width])


def _pack(flags):
    # 32-bit lanes: as wide as what is compared, and a block of LANES units is never straddled.
    values = (np.uint32(1) << np.arange(LANES, dtype=np.uint32)).view(np.int32)
    halves = tf.reduce_sum(tf.where(_lanes(flags, LANES), values, 0), -1)
    return tf.bitcast(tf.bitcast(halves, tf.uint32), tf.uint64)


def _pack_pair(first, second):
    """`_pack` of both in one reduction; in two, XLA would compute the products twice."""
    # Sixteen units of both to 32 bits, for the reason given in `_pack`.
    values = (np.uint32(1) << np.arange(LANES, dtype=np.uint32)).view(np.int32).reshape(2, -1)
    bits = [
        tf.where(_lanes(flags, 16), own, 0)
        for flags, own in zip((first, second), values, strict=True)
    ]
    quarters = tf.reduce_sum(sum(bits), -1)
    quarters = tf.bitcast(quarters, tf.uint16)
    return tf.bitcast(quarters[..., 0], tf.uint64), tf.bitcast(quarters[..., 1], tf.uint64)


@compiled
def pack_bits(x: tf.Tensor | np.ndarray) -> tf.Tensor:
    """Pack the signs of the last axis into words.

    Parameters
    ----------
    x : tensor of numbers, shape (..., depth)

    Returns
    -------
    tensor of uint64, shape (..., ceil(depth / 64))
        Bit i of word k is 1 where x[..., 64·k + i] ≥ 0; bits past the end are 0.
    """
    return _pack(x >= 0)


@compiled
def pack_ternary(x: tf.Tensor | np.ndarray) -> tuple[tf.Tensor, tf.Tensor]:
    """Pack values in {−1, 0, +1} into the planes (nonzero, sign), each as from `pack_bits`.

    Bits of `nonzero` are 1 where x ≠ 0, bits of `sign` where x > 0.
    """
    return _pack_pair(x != 0, x > 0)


@compiled
def threshold_bits(products: tf.Tensor, thresholds: tf.Tensor) -> tf.Tensor:
    """Pack sign(products − thresholds), the activation that follows a layer, into words.

    Parameters
    ----------
    products : tensor of int32, shape (..., units)
    thresholds : tensor of int32, shape (units,)
        A unit's bit is 1 where its product is at least this. The smallest int32 makes a unit
        constantly +1, the largest constantly −1. A falling unit (−1 above a threshold) is a
        rising one with all its weights negated.

    Returns
    -------
    tensor of uint64, shape (..., ceil(units / 64))
    """
    return _pack(products >= thresholds)


@compiled
def threshold_ternary(
    products: tf.Tensor, lower: tf.Tensor, upper: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """Pack the ternary activation: +1 where products ≥ upper, −1 where products ≤ lower, else 0.

    Returns
    -------
    nonzero, sign : tensors of uint64, shape (..., ceil(units / 64))
    """
    positive = products >= upper
    return _pack_pair(positive | (products <= lower), positive)


def pack_flags(flags: tf.Tensor) -> tf.Tensor:
    """Pack booleans, shape (..., depth), into words as `pack_bits` does."""
    return _pack(flags)


@compiled
def threshold_shortcut(products: tf.Tensor, bits: tf.Tensor, thresholds: tf.Tensor) -> tf.Tensor:
    """`threshold_bits` where bits of a shortcut choose between two thresholds.

    Parameters
    ----------
    products : tensor of int32, shape (..., units)
    bits : tensor of uint64, shape (..., ceil(units / 64))
    thresholds : tensor of int32, shape (2, units)
        Where a bit is 0, and where it is 1.
    """
    off, on = _pack_pair(*(products >= limits for limits in tf.unstack(thresholds)))
    return (off & ~bits) | (on & bits)


# --- Products ---------------------------------------------------------------------------------


@compiled
def arrange_kernel(bits: tf.Tensor) -> tf.Tensor:
    """Lay packed weights out for the inner loop: units in blocks of 32, block by block.

    Parameters
    ----------
    bits : tensor of uint64, shape (..., units, words)
        For a convolution the leading axes are height and width.

    Returns
    -------
    tensor of uint64, shape (ceil(units / 32), ..., words, 32)

    Notes
    -----
    With all units on the last axis, successive words of a unit would lie units·8 bytes apart: with
    512 units that is 4096 bytes, and all of them would fall into the same few lines of the
    first-level cache (1.0 fell to 0.4 tera-operations a second).
    """
    *outer, units, words = bits.shape
    n = len(outer)
    bits = tf.pad(bits, [[0, 0]] * n + [[0, -units % LANES], [0, 0]])
    blocks = tf.reshape(bits, [*outer, -1, LANES, words])
    return tf.transpose(blocks, [n, *range(n), n + 2, n + 1])


def _popcount(words):
    return tf.cast(tf.raw_ops.PopulationCount(x=words), tf.int64)


def has_vector_popcount(cpuinfo: str | os.PathLike = "/proc/cpuinfo") -> bool:
    """Does the processor count the bits of a whole vector register in one instruction?

    Parameters
    ----------
    cpuinfo : path-like
        In the format of Linux; without such a file it does not.
    """
    try:
        return "avx512_vpopcntdq" in pathlib.Path(cpuinfo).read_text(encoding="utf-8").split()
    except OSError:
        return False


VECTOR_POPCOUNT = has_vector_popcount()


def total_popcount(words: Iterable[tf.Tensor]) -> tf.Tensor:
    """How many bits of all `words` together are 1, lane by lane."""
    if VECTOR_POPCOUNT:
        return sum(map(_popcount, words))
    # Elsewhere a popcount is eight instructions, and carry-save adders (Harley & Seal) leave few of
    # them: three words of weight 2ⁱ become one of that weight and one of the next in five. 1.2 to
    # 1.4 × as fast under AVX2; slower than the one instruction where there is one.
    pending = collections.defaultdict(list)
    for word in words:
        level = 0
        while len(pending[level]) == 2:
            a, b = pending[level]
            odd = a ^ b
            pending[level] = [odd ^ word]
            word = (a & b) | (odd & word)
            level += 1
        pending[level].append(word)
    return sum(_popcount(word) * 2**level for level, words in pending.items() for word in words)


def output_size(size: int, taps: int, stride: int, padding: str) -> int:
    """How many positions a convolution has along one axis, by TensorFlow's rules.

    Parameters
    ----------
    size, taps, stride : int
        Of the image, of the kernel, and between two positions.
    padding : {'same', 'valid'}
    """
    return -(-size // stride) if padding == "same" else max(0, (size - taps) // stride + 1)


def _padded(size, taps, stride, padding):
    """Zeros before and after an axis of an image."""
    if padding == "valid":
        return 0, 0
    missing = max(0, (output_size(size, taps, stride, padding) - 1) * stride + taps - size)
    return missing // 2, missing - missing // 2


def _windows(images, taps, strides, padding):
    """For each tap of a kernel, row by row, the zero-padded images as that tap sees them."""
    sizes = images.shape[1:3]
    axes = list(zip(sizes, taps, strides, strict=True))
    rows, columns = ((output_size(*axis, padding) - 1) * axis[2] + 1 for axis in axes)
    images = tf.pad(images, [[0, 0], *(_padded(*axis, padding) for axis in axes), [0, 0]])
    for y in range(taps[0]):
        for x in range(taps[1]):
            yield images[:, y : y + rows : strides[0], x : x + columns : strides[1]]


def _word_pairs(images, kernel, strides, padding):
    """Every word of the fan-in beside its weights, shaped to broadcast to (…, blocks, 32)."""
    _, height, width, words, _ = kernel.shape
    if images.shape[-1] != words:
        raise ValueError(f"activations of {images.shape[-1]} words meet weights of {words}")
    for tap, window in enumerate(_windows(images, (height, width), strides, padding)):
        for k in range(words):
            yield window[..., k, None, None], kernel[:, tap // width, tap % width, k]


def _xnor_lanes(pairs, depth):
    """Dot products of ±1 vectors of `depth` entries, from words beside their weights."""
    return depth - 2 * total_popcount(a ^ w for a, w in pairs)


def _ternary_lanes(nonzero_pairs, sign_pairs):
    nonzero = [a & w for a, w in nonzero_pairs]
    different = [both & (a ^ w) for both, (a, w) in zip(nonzero, sign_pairs, strict=True)]
    return total_popcount(nonzero) - 2 * total_popcount(different)


def _in_parts(lanes, images, kernel):
    """`lanes` of images and kernel, or its sum over parts of the words if there are many.

    Parameters
    ----------
    lanes : callable
        Takes and returns tensors; linear in the words.
    images, kernel : sequences of tensors
        Planes, each as in `xnor_conv2d`.
    """
    words = images[0].shape[-1]
    if words <= UNROLLED_WORDS:
        return lanes(images, kernel)
    parts = -(-words // UNROLLED_WORDS)

    def split(plane, axis):
        # Words of zeros on both sides count nothing.
        missing = [[0, 0]] * plane.shape.rank
        missing[axis] = [0, parts * UNROLLED_WORDS - words]
        plane = tf.pad(plane, missing)
        return tf.stack(tf.split(plane, parts, axis))

    planes = [split(plane, 3) for plane in (*images, *kernel)]
    first, rest = [plane[0] for plane in planes], [plane[1:] for plane in planes]
    count = len(images)
    return tf.foldl(
        lambda total, part: total + lanes(part[:count], part[count:]),
        rest,
        lanes(first[:count], first[count:]),
    )


def _units(lanes, filters):
    """(…, blocks, 32) as int32 (…, filters)."""
    _, rows, columns, blocks, _ = lanes.shape
    return tf.cast(tf.reshape(lanes, [-1, rows, columns, blocks * LANES]), tf.int32)[..., :filters]


def _taps_outside(sizes, taps, strides):
    """(positions, taps) float32: 1 where a tap at a position lies in the SAME padding."""

    def inside(size, taps, stride):
        first = np.arange(output_size(size, taps, stride, "same"))[:, None] * stride
        position = first + np.arange(taps) - _padded(size, taps, stride, "same")[0]
        return (position >= 0) & (position < size)

    rows, columns = map(inside, sizes, taps, strides)
    both = rows[:, None, :, None] & columns[None, :, None, :]
    return 1 - both.reshape(len(rows) * len(columns), -1).astype(np.float32)


def _counted_in_padding(kernel, channels, sizes, strides):
    """What padded taps add where zeros stand for −1: (positions, blocks·32), int32."""
    _, height, width, _, _ = kernel.shape
    # A tap whose activations are all −1 contributes minus the sum of its weights.
    tap = channels - 2 * tf.reduce_sum(_popcount(kernel), 3)
    tap = tf.reshape(tf.transpose(tap, [1, 2, 0, 3]), [height * width, -1])
    # A float32 product of small integers: exact, and unlike a sum of masks XLA does not repeat it
    # for every image.
    outside = _taps_outside(sizes, (height, width), strides)
    return tf.cast(tf.matmul(outside, tf.cast(tap, tf.float32)), tf.int32)


@compiled
def xnor_conv2d(
    images: tf.Tensor,
    kernel: tf.Tensor,
    channels: int,
    filters: int,
    strides: tuple[int, int] = (1, 1),
    padding: str = "same",
) -> tf.Tensor:
    """Convolve packed ±1 images with packed ±1 weights.

    A fully connected layer is a 1×1 convolution of 1×1 images.

    Parameters
    ----------
    images : tensor of uint64, shape (n, rows, columns, words)
        From `pack_bits` over channels. Only n may be unknown.
    kernel : tensor of uint64, shape (blocks, height, width, words, 32)
        `arrange_kernel` of weights packed over input channels, (height, width, filters, words).
    channels : int
        How many bits of a position's words count. The others are 0 in images and weights, and
        may stand anywhere in the words.
    filters : int
    strides : (int, int)
        Of rows and columns.
    padding : {'same', 'valid'}
        With zeros, as TensorFlow does, or none.

    Returns
    -------
    tensor of int32, shape (n, `output_size` of rows and columns, filters)
        A tap in the padding counts 0.

    Raises
    ------
    ValueError
        If images and kernel differ in their number of words, or it is too small for `channels`.
    """
    _, height, width, words, _ = kernel.shape
    if channels > words * WORD_BITS:
        raise ValueError(f"{channels} bits do not fit into {words} words")

    def lanes(images, kernel):
        return _xnor_lanes(_word_pairs(*images, *kernel, strides, padding), 0)

    depth = channels * height * width
    products = _units(depth + _in_parts(lanes, [images], [kernel]), filters)
    if height * width == 1 or padding == "valid":
        return products
    counted = _counted_in_padding(kernel, channels, images.shape[1:3], strides)
    return products - tf.reshape(counted, [*products.shape[1:3], -1])[..., :filters]


@compiled
def ternary_conv2d(
    images: Sequence[tf.Tensor],
    kernel: Sequence[tf.Tensor],
    filters: int,
    strides: tuple[int, int] = (1, 1),
    padding: str = "same",
) -> tf.Tensor:
    """`xnor_conv2d` for ternary values.

    Parameters
    ----------
    images, kernel : pairs of tensors of uint64
        The planes (nonzero, sign), each as in `xnor_conv2d`.
    filters, strides, padding
        See `xnor_conv2d`.
    """

    def lanes(images, kernel):
        planes = zip(images, kernel, strict=True)
        return _ternary_lanes(*(_word_pairs(*plane, strides, padding) for plane in planes))

    return _units(_in_parts(lanes, images, kernel), filters)


def _block_pairs(a, w):
    """Every word of the rows beside its weights, shaped to broadcast to (blocks, m, 32)."""
    if a.shape[1] != w.shape[1]:
        raise ValueError(f"activations of {a.shape[1]} words meet weights of {w.shape[1]}")
    return ((a[:, k, None], w[:, k, None]) for k in range(a.shape[1]))


@compiled
def _xnor_blocks(a, w, depth):
    return tf.cast(_xnor_lanes(_block_pairs(a, w), depth), tf.int32)


@compiled
def _ternary_blocks(a, w):
    return tf.cast(_ternary_lanes(*map(_block_pairs, a, w)), tf.int32)


def _joined(blocks, units):
    """(blocks, m, 32) as (m, units)."""
    lanes = tf.transpose(blocks, [1, 0, 2])
    return tf.reshape(lanes, [-1, lanes.shape[1] * LANES])[:, :units]


# All rows meet one block of units before the next, as a block fits into the first-level cache
# and all weights do not: three times as fast with 512 units of 72 words under AVX-512. Not compiled
# as a whole: XLA would merge the arranging of the weights, and the joining, into the loop, in the
# order of the result.
@tf.function(autograph=False)
def xnor_matmul(a: tf.Tensor, w: tf.Tensor, depth: int) -> tf.Tensor:
    """Dot products of packed ±1 vectors.

    Parameters
    ----------
    a : tensor of uint64, shape (m, words)
        From `pack_bits`.
    w : tensor of uint64, shape (n, words)
    depth : int
        Length of the vectors: bits past it do not count.

    Returns
    -------
    tensor of int32, shape (m, n)

    Raises
    ------
    ValueError
        If a and w differ in their number of words, or it is too small for `depth`.
    """
    if depth > w.shape[-1] * WORD_BITS:
        raise ValueError(f"{depth} bits do not fit into {w.shape[-1]} words")
    return _joined(_xnor_blocks(a, arrange_kernel(w), depth), w.shape[0])


@tf.function(autograph=False)
def ternary_matmul(a: Sequence[tf.Tensor], w: Sequence[tf.Tensor]) -> tf.Tensor:
    """`xnor_matmul` for ternary vectors, a and w being the pairs of planes (nonzero, sign)."""
    return _joined(_ternary_blocks(a, [arrange_kernel(plane) for plane in w]), w[0].shape[0])


# --- Pooling ----------------------------------------------------------------------------------


def _pool(bits):
    _, rows, columns, _ = bits.shape
    bits = tf.pad(bits, [[0, 0], [0, rows % 2], [0, columns % 2], [0, 0]])
    bits = bits[:, ::2] | bits[:, 1::2]
    return bits[:, :, ::2] | bits[:, :, 1::2]


@compiled
def max_pool_bits(bits: tf.Tensor) -> tf.Tensor:
    """2×2 max pooling (SAME: odd sizes round up) of packed ±1 images: an OR.

    Parameters
    ----------
    bits : tensor of uint64, shape (n, rows, columns, words)
    """
    return _pool(bits)


@compiled
def max_pool_ternary(planes: Sequence[tf.Tensor]) -> tuple[tf.Tensor, tf.Tensor]:
    """`max_pool_bits` for the planes (nonzero, sign): +1 where any is, −1 where all are."""
    nonzero, sign = planes
    positive = _pool(sign)
    return positive | ~_pool(~nonzero | sign), positive


# --- The first layer --------------------------------------------------------------------------


def _odd_integers(images, fan_in):
    if 255 * fan_in >= 2**24:
        raise ValueError(f"{fan_in} pixels to a unit are too many for exact float32 sums")
    return 2 * tf.cast(images, tf.float32) - 255


@compiled
def pixel_conv2d(
    images: tf.Tensor, kernel: tf.Tensor, strides: tuple[int, int] = (1, 1), padding: str = "same"
) -> tf.Tensor:
    """Convolve the odd integers 2x − 255 of 8-bit images, exactly.

    In float32, which holds every partial sum: its fused multiply-adds are several times faster
    than popcounts over the eight bit planes of so few channels.

    Parameters
    ----------
    images : tensor of uint8, shape (n, rows, columns, channels)
        Only n may be unknown.
    kernel : tensor of float32, shape (height, width, channels, filters)
        Values −1, 0 and +1.
    strides, padding
        See `xnor_conv2d`.

    Returns
    -------
    tensor of int32, shape (n, `output_size` of rows and columns, filters)
        A tap in the padding counts 0, not −255.

    Raises
    ------
    ValueError
        If a unit sees so many pixels that its sums could exceed 2²⁴.
    """
    height, width, channels, _ = kernel.shape
    pixels = _odd_integers(images, height * width * channels)
    # Unrolled like the packed products, so that it fuses with what follows.
    return tf.cast(
        sum(
            window[..., c, None] * kernel[tap // width, tap % width, c]
            for tap, window in enumerate(_windows(pixels, (height, width), strides, padding))
            for c in range(channels)
        ),
        tf.int32,
    )


@compiled
def pixel_matmul(images: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
    """`pixel_conv2d` for a fully connected first layer: (n, depth) uint8 by (depth, units)."""
    return tf.cast(tf.matmul(_odd_integers(images, kernel.shape[0]), kernel), tf.int32)
