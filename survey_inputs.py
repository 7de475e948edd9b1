"""Patches of the inputs of every product of a model, drawn at random in bounded memory.

A patch is what one unit multiplies: a row of a dense layer's inputs, what lies under a kernel. The
draw depends on the number of images, not on the batches in which they come.
"""

import functools
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import products
import walk
from utils import require

# isort: split
import keras
import numpy as np
import tensorflow as tf
from tqdm import tqdm

# Patches of one product: one half gives the covariance, the other the correlation.
ROWS = 2048
# Units of a group whose dot products are formed.
UNITS = 256
# Floats of one product's patches, and of those that are collected in one pass over the images.
PRODUCT_FLOATS, PASS_FLOATS = 2**24, 2**27
# Floats that the inputs and outputs of one batch may take.
BATCH_FLOATS = 2**26
LARGEST_BATCH = 100


@dataclass
class Site:
    """A product of a model, and the patches of its inputs.

    Attributes
    ----------
    name : str
    layer : keras.Layer
    kernel : products.Kernel
    fan_in, units : int
    visits : int
        How often it is formed in one run of the model: time steps, or uses of a shared layer.
    positions : int
        Products of a unit per image and visit.
    scales : bool
        Do its inputs grow with the number of images?
    patches : ndarray, shape (rows, groups, fan_in)
    mask : ndarray of bool, shape (rows, taps)
        Which positions under the kernel lie inside of the image, and are no zero padding.
    images : ndarray, shape (rows,)
        From which image each patch is.
    """

    name: str
    layer: keras.Layer
    kernel: products.Kernel
    fan_in: int
    units: int
    visits: int
    positions: int
    scales: bool
    patches: np.ndarray = field(default=None, repr=False)
    mask: np.ndarray = field(default=None, repr=False)
    images: np.ndarray = field(default=None, repr=False)

    @property
    def groups(self) -> int:
        return self.kernel.groups

    def rows(self, images: int) -> tuple[int, int]:
        """How many patches are drawn, and from how many."""
        count = (images if self.scales else 1) * self.visits * self.positions
        most = max(2, PRODUCT_FLOATS // (self.groups * self.fan_in))
        return min(count, ROWS, most), count

    def halves(self) -> tuple[np.ndarray, np.ndarray] | tuple[slice, slice]:
        """The numbers of the patches of even and of odd images; all of them of a single image."""
        odd = self.images % 2 == 1
        return (~odd, odd) if 0 < odd.sum() < len(odd) else (slice(None), slice(None))

    def grouped(self, columns: np.ndarray | tf.Tensor) -> np.ndarray:
        """A kernel (..., units) as (groups, fan-in, units of a group), at most `UNITS` of them."""
        matrix = np.asarray(columns, np.float32).reshape(self.fan_in, self.groups, -1)
        return matrix.transpose(1, 0, 2)[:, :, :: -(-matrix.shape[2] // UNITS)]

    def rows_of(self, columns: np.ndarray | tf.Tensor) -> np.ndarray:
        """A kernel of shape (..., units) as (units, fan-in)."""
        return np.ascontiguousarray(np.reshape(columns, (-1, self.units)).T)

    def wide_mask(self, which: np.ndarray | slice) -> np.ndarray:
        """The mask in a shape that broadcasts to the patches."""
        mask = self.mask[which]
        return np.repeat(mask, self.fan_in // mask.shape[1], axis=1)[:, None]


# --- Where the products are -------------------------------------------------------------------


def sites(model: keras.Model, x: np.ndarray) -> tuple[list[Site], dict[str, str], int]:
    """Where a model forms products whose weights can be quantized.

    Returns
    -------
    list of Site
        Without patches, in the order in which they are formed.
    left_out : dict
        Why the other layers that own a kernel are not among them, by name.
    batch : int
        How many images may go through the model at once.

    Raises
    ------
    ValueError
        If the data do not fit the model, or it has no such layer.
    """
    first, leading, floats = {}, ({}, {}), 0

    def look(found, product):
        nonlocal floats
        count, positions = _leading(product)
        found.setdefault(product.name, []).append((count, positions))
        floats += int(tf.size(product.inputs)) + count * positions * product.kernel.shape[-1]
        first.setdefault(product.name, product)

    for found, images in zip(leading, (1, min(2, len(x))), strict=True):
        floats = 0
        take = functools.partial(look, found)
        fitted(walk.visit, model, x[:images], take, known_only=True)
    kernels, left_out, made = walk.kernels(model), walk.unknown_layers(model), []
    for name, product in first.items():
        if product.kernel_quantizer is not None:
            left_out[name] = "it quantizes its weights itself"
            continue
        (one, positions), (two, _) = leading[0][name][0], leading[1][name][0]
        units = product.kernel.shape[-1]
        made.append(
            Site(
                name,
                *kernels[name],
                fan_in=int(tf.size(product.kernel)) // units,
                units=units,
                visits=len(leading[0][name]),
                positions=one * positions,
                scales=len(x) == 1 or two == 2 * one,
            )
        )
    unused = sorted(set(kernels) - set(first))
    left_out |= dict.fromkeys(unused, "it is not used on these data")
    require(made, "the model has no layer whose weights can be quantized")
    return made, left_out, max(1, min(LARGEST_BATCH, 2 * BATCH_FLOATS // max(floats, 1)))


def fitted(
    run: Callable, model: keras.Model, x: np.ndarray, *args: object, **kwargs: object
) -> object:
    """`run(model, x, ...)`, whose errors mean that the data do not fit."""
    try:
        return run(model, x, *args, **kwargs)
    except (ValueError, TypeError, tf.errors.OpError) as error:
        # Keras prints the reason in bold, among other things.
        bold = re.search("\x1b\\[1m(.*?)\x1b\\[0m", str(error), re.DOTALL)
        cause = " ".join((bold[1] if bold else str(error)).split())
        raise ValueError(
            f"data of shape {x.shape} and type {x.dtype} do not fit the model: {cause}"
        ) from None


def _leading(product):
    """Images, and positions of each."""
    count, *sizes = product.inputs.shape[:-1]
    places = [len(index) for index in _taps(product)] or sizes
    return count, int(np.prod(places, dtype=np.int64))


# --- Patches ----------------------------------------------------------------------------------


def _taps(product):
    """For each axis of an image: which entry lies under each tap of each output, −1 for none.

    A list of arrays of shape (outputs, taps); empty where it is the last axis that is multiplied.
    """
    layer, sizes = product.layer, tuple(product.inputs.shape[1:-1])
    if product.part == "pointwise_kernel" or not hasattr(layer, "kernel_size"):
        return []
    options, outputs = (layer.kernel_size, layer.strides, layer.dilation_rate), [None] * len(sizes)
    if hasattr(layer, "output_padding"):  # Transposed.
        outputs = layer.compute_output_shape(product.inputs.shape)[1:-1]
    return [
        _axis_taps(n, out, *option, layer.padding)
        for n, out, *option in zip(sizes, outputs, *options, strict=True)
    ]


def _axis_taps(length, outputs, size, stride, rate, padding):
    taps = np.arange(size) * rate
    window = products.Window((size,), (stride,), (rate,), "valid" if padding == "valid" else "same")
    if outputs is not None:  # The outputs of a convolution are a transposed one's inputs.
        before = window.outputs_and_padding((outputs,))[0][1][0]
        where = np.arange(outputs)[:, None] + before - taps
        index, hit = where // stride, where % stride == 0
    else:
        outputs, (before, _) = window.outputs_and_padding((length,))[0]
        if padding == "causal":
            before = taps[-1]
        index = np.arange(outputs)[:, None] * stride + taps - before
        hit = True
    return np.where(hit & (index >= 0) & (index < length), index, -1)


def patches(
    product: products.Product, images: np.ndarray, places: np.ndarray, groups: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """Patches of a product's inputs.

    Parameters
    ----------
    product : walk.Product
    images, places : ndarray of int, shape (rows,)
        Numbers of the images in the batch, and of the positions in the order of the outputs.
    groups : int

    Returns
    -------
    values : ndarray, shape (rows, groups, fan_in)
    mask : ndarray of bool, shape (rows, taps)
        False at zero padding.
    """
    x, taps = keras.ops.convert_to_numpy(product.inputs), _taps(product)
    if isinstance(product.layer, keras.layers.Embedding):
        numbers = x.reshape(len(x), -1)[images, places].astype(int)
        values = np.zeros((len(numbers), product.kernel.shape[0]), np.float32)
        values[np.arange(len(numbers)), numbers] = 1
        return values[:, None], np.ones((len(numbers), 1), bool)
    if not taps:
        values = x.reshape(len(x), -1, x.shape[-1])[images, places]
        return _as_groups(values[:, None], groups), np.ones((len(values), 1), bool)
    rank, under, inside = len(taps), [], True
    shape = [len(index) for index in taps]
    for axis, (index, place) in enumerate(zip(taps, np.unravel_index(places, shape), strict=True)):
        found = index[place]
        found = found.reshape(len(found), *(-1 if a == axis else 1 for a in range(rank)))
        under.append(found)
        inside = inside & (found >= 0)
    values = x[(images.reshape(-1, *[1] * rank), *under)].astype(np.float32) * inside[..., None]
    mask = inside.reshape(len(values), -1)
    return _as_groups(values.reshape(*mask.shape, x.shape[-1]), groups), mask


def _as_groups(values, groups):
    """(rows, taps, channels) as (rows, groups, taps times channels of a group)."""
    rows, taps, channels = values.shape
    parts = values.reshape(rows, taps, groups, channels // groups).transpose(0, 2, 1, 3)
    return parts.reshape(rows, groups, -1).astype(np.float32)


def collected(
    model: keras.Model, x: np.ndarray, found: list[Site], batch: int, progress: bool = False
) -> Iterator[Site]:
    """Yield the sites with their patches, block by block, so that memory is bounded.

    Parameters
    ----------
    model : keras.Model
    x : ndarray, shape (n, ...)
    found : list of Site
    batch : int
        Images at a time.
    progress : bool

    Yields
    ------
    Site
        Its patches are gone once the next block begins.
    """
    blocks = [[]]
    taken = 0
    for site in found:
        floats = site.rows(len(x))[0] * site.groups * site.fan_in
        if blocks[-1] and taken + floats > PASS_FLOATS:
            blocks.append([])
            taken = 0
        blocks[-1].append(site)
        taken += floats
    with tqdm(total=len(blocks) * len(x), desc="inputs", unit="image", disable=not progress) as bar:
        for number, block in enumerate(blocks):
            _collect(model, x, block, batch, number, bar)
            for site in block:
                yield site
                site.patches = site.mask = None


def _collect(model, x, block, batch, number, bar):
    wanted, parts = {}, {site.name: [] for site in block}
    for k, site in enumerate(block):
        rows, count = site.rows(len(x))
        chosen = np.random.default_rng((number, k)).choice(count, rows, replace=False)
        chosen.sort()
        image, rest = np.divmod(chosen, site.visits * site.positions)
        wanted[site.name] = (site, image, *np.divmod(rest, site.positions))
    visits = {}

    def take(product):
        if product.name not in wanted:
            return
        site, image, visit, place = wanted[product.name]
        turn = visits[product.name] = visits.get(product.name, -1) + 1
        first, last = (start, start + batch) if site.scales else (0, 1)
        if not site.scales and start:
            return
        rows = np.flatnonzero((visit == turn) & (image >= first) & (image < last))
        if not len(rows):
            return
        # Inputs may hold several rows of an image along the first axis.
        share = site.positions * (min(last, len(x)) - first) // product.inputs.shape[0]
        where = (image[rows] - first) * site.positions + place[rows]
        values, mask = patches(product, *np.divmod(where, share), site.groups)
        parts[product.name].append((values, mask, image[rows] if site.scales else place[rows]))

    for start in range(0, len(x), batch):
        visits.clear()
        walk.visit(model, x[start : start + batch], take, known_only=True)
        bar.update(len(x[start : start + batch]))
    for site in block:
        site.patches, site.mask, site.images = map(
            np.concatenate, zip(*parts.pop(site.name), strict=True)
        )
        require(
            np.isfinite(site.patches).all(), f"the inputs of layer {site.name} hold NaN or infinity"
        )
