"""Images that fool a network: pixels changed a little, by gradients or at random.

Pixels are whole 8-bit numbers. ε is on the scale from 0 to 1, so a pixel may change by ⌊255·ε⌋.
Gradients pass straight through the quantizers.
"""

import functools

import stream
import walk
from utils import radius_of, require

# isort: split
import keras
import numpy as np
import tensorflow as tf
from tqdm import tqdm

# A step of an attack in n steps is this many n-th parts of the largest change (Madry et al. 2018,
# arXiv 1706.06083).
STEP = 2.5
# Images that are attacked at once.
BATCH = 250


# --- Steps of an attack -----------------------------------------------------------------------


def limits(x: np.ndarray | tf.Tensor, radius: float | tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """The smallest and the largest allowed pixels around uint8 images `x`, as floats."""
    pixels = tf.cast(x, tf.float32)
    return tf.maximum(pixels - radius, 0.0), tf.minimum(pixels + radius, 255.0)


def ascend(
    model: keras.Model,
    pixels: tf.Tensor,
    y: tf.Tensor,
    low: tf.Tensor,
    high: tf.Tensor,
    size: float | tf.Tensor,
    training: bool = False,
) -> tf.Tensor:
    """Change float pixels by `size` in the direction that raises the cross-entropy, inside limits.

    Parameters
    ----------
    model : keras.Model
        Takes floats in [−1, 1]; see `walk.taking_floats`.
    pixels, low, high : tensor, shape (n, height, width, channels)
        From 0 to 255.
    y : tensor of integers, shape (n,)
    size : float or scalar tensor
    training : bool
        With the batch's own statistics in batch norm?

    Returns
    -------
    tensor
        Like `pixels`.
    """
    with tf.GradientTape() as tape:
        tape.watch(pixels)
        scores = model((2 * pixels - 255) / 255, training=training)
        # The squared hinge would have no gradient where an image is classified well.
        loss = keras.losses.sparse_categorical_crossentropy(y, scores, from_logits=True)
    moved = pixels + size * tf.sign(tape.gradient(loss, pixels))
    return tf.clip_by_value(moved, low, high)


def attacked(
    model: keras.Model,
    x: tf.Tensor,
    y: tf.Tensor,
    radius: tf.Tensor,
    steps: tf.Tensor,
    seed: tf.Tensor,
    training: bool = False,
) -> tf.Tensor:
    """uint8 images after projected gradient ascent from a random start, as tensors.

    Parameters
    ----------
    model : keras.Model
        As `ascend` takes it.
    x : tensor of uint8, shape (n, height, width, channels)
    y : tensor of integers, shape (n,)
    radius : scalar tensor of float32
        Whole number of grey levels.
    steps : scalar tensor of int32
    seed : tensor of integers, shape (2,)
        Decides the start.
    training : bool

    Returns
    -------
    tensor of uint8
        Like `x`.
    """
    low, high = limits(x, radius)
    start = tf.cast(x, tf.float32) + radius * tf.random.stateless_uniform(tf.shape(x), seed, -1, 1)
    size = STEP * radius / tf.cast(steps, tf.float32)
    _, pixels = tf.while_loop(
        lambda step, pixels: step < steps,
        lambda step, pixels: (step + 1, ascend(model, pixels, y, low, high, size, training)),
        (0, tf.clip_by_value(start, low, high)),
    )
    return tf.cast(tf.round(tf.stop_gradient(pixels)), tf.uint8)


# --- Attacks on a finished network ------------------------------------------------------------


def fool(
    model: keras.Model,
    x: np.ndarray,
    y: np.ndarray,
    epsilon: float,
    steps: int = 100,
    searches: int = 1000,
    seed: int = 0,
    progress: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """Look for images within ε that a network classifies wrongly.

    Gradient ascent first, and then, from the nearest miss, a random search: some pixels of the
    image are changed to allowed whole numbers, and what does not raise the lead of the right score
    is kept.

    Parameters
    ----------
    model : keras.Model
        From uint8 images to scores.
    x : ndarray of uint8, shape (n, height, width, channels)
    y : ndarray of integers, shape (n,)
    epsilon : float
        From 0 to 1.
    steps, searches : int
        Steps of gradient ascent, and of the random search.
    seed : int
    progress : bool
        Draw a progress bar?

    Returns
    -------
    images : ndarray of uint8
        Like `x`: of each image the one within ε whose lead is least.
    fooled : ndarray of bool, shape (n,)
        Does the network classify it wrongly? So it is where `x` itself is classified wrongly.

    Raises
    ------
    ValueError
        If the images are not uint8, or a number is out of range.
    """
    require(x.dtype == np.uint8, f"attacked images must be uint8, not {x.dtype}")
    for name, value in (("steps", steps), ("searches", searches)):
        require(value >= 0, f"{name} must be a whole number of at least 0, not {value}")
    radius = radius_of(epsilon)
    parts = [
        _fool_batch(
            model, x[start : start + BATCH], y[start : start + BATCH], radius, steps, searches, seed
        )
        for start in tqdm(range(0, len(x), BATCH), "attacks", unit="batch", disable=not progress)
    ]
    images = np.concatenate(parts)
    return images, leads(model, images, y) <= 0


def leads(model: keras.Model, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """How far the score of the right label is ahead of all others; ≤ 0 where it is not highest.

    Of equal scores the first counts as the highest.

    Returns
    -------
    ndarray of float32, shape (n,)
    """
    found = []
    for start in range(0, len(x), stream.INFERENCE_BATCH):
        labels = np.asarray(y[start : start + stream.INFERENCE_BATCH])
        images = tf.constant(x[start : start + stream.INFERENCE_BATCH])
        scores = _scores(model)(images).numpy()
        rows = np.arange(len(scores))
        right = scores[rows, labels]
        rest = scores.copy()
        rest[rows, labels] = -np.inf
        lead = right - rest.max(axis=1)
        # A tie is won by the lower label.
        lost = (lead == 0) & (scores.argmax(axis=1) != labels)
        lead[(lead == 0) & ~lost] = np.finfo(np.float32).tiny
        found.append(lead)
    return np.concatenate(found)


@functools.lru_cache(maxsize=4)
def _scores(model):
    return tf.function(lambda images: model(images, training=False), reduce_retracing=True)


def _fool_batch(model, x, y, radius, steps, searches, seed):
    low, high = limits(x, float(radius))
    best = _Best(model, x, y)
    rng = np.random.default_rng(seed)
    if steps and radius:
        taking_floats, labels = walk.taking_floats(model), tf.constant(y)
        step = tf.function(
            lambda pixels: ascend(taking_floats, pixels, labels, low, high, STEP * radius / steps)
        )
        start = x + rng.uniform(-radius, radius, x.shape).astype(np.float32)
        pixels = tf.clip_by_value(start, low, high)
        for _ in range(steps):
            pixels = step(pixels)
            best.keep(np.rint(pixels).astype(np.uint8))
    low, high = (limit.numpy().astype(int) for limit in (low, high))
    for number in range(searches if radius else 0):
        # Ever fewer pixels, down to one.
        share = max(0.2 * (1 - number / searches) ** 2, 1 / x[0].size)
        anywhere = rng.integers(low, high + 1)
        ends = np.where(rng.random(x.shape) < 0.5, low, high)
        drawn = np.where(rng.random(len(x))[:, None, None, None] < 0.5, ends, anywhere)
        best.keep(np.where(rng.random(x.shape) < share, drawn, best.images).astype(np.uint8))
    return best.images


class _Best:
    """Of all images that were tried, those whose lead is least."""

    def __init__(self, model, x, y):
        self._model, self._y = model, y
        self.images, self._leads = x.copy(), leads(model, x, y)

    def keep(self, images):
        found = leads(self._model, images, self._y)
        # Equal leads, too: the scores change in steps.
        better = (found <= self._leads) & (self._leads > 0)
        self.images[better], self._leads[better] = images[better], found[better]
